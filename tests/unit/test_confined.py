"""Containers, namespaces and groups: what works in each, what is refused, and with which words."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from support import SANITIZED, run_python, succeeds

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make namespaces, groups and mounts")
sanitized = pytest.mark.skipif(SANITIZED, reason="a sanitizer's own memory is charged too")

USES = """
import mmap, os, numpy as np, mirrormap as mm
from multiprocessing import shared_memory
def everything(block_too=True):
    with mm.Pages("1MiB") as pages, pages.map(populate=True) as view, view.mirror() as other:
        view.array()[7] = 9
        assert other.array()[7] == 9 and view.resident == view.nbytes
        pages.resize("2MiB")
    with mmap.mmap(-1, 1 << 16) as source, mm.mirror(source, populate=True) as view:
        source[5] = 3
        assert view.array()[5] == 3
    if block_too:
        block = shared_memory.SharedMemory(create=True, size=1 << 16)
        with mm.mirror(block) as view:
            view.array()[4] = 2
        assert block.buf[4] == 2
        block.close(); block.unlink()
    with mm.Ring(1000, "i4") as ring, ring.reader("oldest") as reader:
        ring.extend(range(900))
        assert reader.read(900)[-1] == 899
    with mm.Channel("1MiB") as channel, channel.sender() as sender, channel.receiver() as receiver:
        sender.send(np.arange(10))
        with receiver.receive(timeout=1) as message:
            assert message.array[-1] == 9
    with mm.Growable("i8") as grown:
        grown.extend(range(5000))
        with mm.snapshot(mm.share(np.arange(1 << 19))) as frozen:
            assert frozen[-1] == (1 << 19) - 1
    found = mm.mirrors()
    assert found.processes[0].vmas > 10
    return mm.probe()
"""

# the calls that Docker's default profile refuses and that Python programs might meet, by number on x86-64;
# its documentation lists them under "Significant syscalls blocked by the default profile"
DOCKER = """
from seccomp import refuse_number
import ctypes, platform
if platform.machine() == "x86_64":
    for number in (101, 103, 134, 135, 136, 139, 155, 161, 163, 165, 166, 167, 168, 169, 170, 172, 173, 174,
                   175, 176, 177, 178, 179, 180, 212, 237, 238, 239, 246, 248, 249, 250, 256, 272, 279, 298,
                   303, 304, 305, 308, 310, 311, 312, 313, 320, 321, 323):
        refuse_number(number)
"""
CAPABILITIES = (
    "chown,dac_override,fowner,fsetid,kill,setgid,setuid,setpcap,net_bind_service,net_raw,sys_chroot,mknod,"
    "audit_write,setfcap"
)


def under(*command: str) -> list[str]:
    """The command, or a skip where its program is not installed."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    return list(command)


@root
def test_a_container_with_docker_s_default_profile_and_capabilities() -> None:
    kept = ",".join(f"+{name}" for name in CAPABILITIES.split(","))
    prefix = under("setpriv", f"--bounding-set=-all,{kept}", "--inh-caps=-all")
    succeeds(
        f"{USES}{DOCKER}"
        """
found = everything()
assert found.works and found.mirror_shared and found.mirror_file and found.populate
assert not found.map_files and not found.frames
cures = {check.name: check.cure for check in found.checks if not check.ok}
assert "CAP_CHECKPOINT_RESTORE" in cures["follow /proc/self/map_files"], cures
""",
        prefix=prefix,
    )


@root
def test_no_dev_shm_and_a_read_only_root() -> None:
    shell = (
        "umount -l /dev/shm 2>/dev/null; mount -t tmpfs -o ro,size=4k none /dev/shm && "
        "mount -o remount,ro,bind / && for d in /tmp /var/tmp /usr/tmp; do "
        '[ -d $d ] && mount --bind $d $d && mount -o remount,ro,bind $d; done; exec "$@"'
    )
    prefix = under("unshare", "-m", "sh", "-c", shell, "sh")
    succeeds(
        f"{USES}"
        """
try:
    open("/probe-of-a-read-only-root", "w")
except OSError:
    pass
else:
    raise AssertionError("the root can be written")
found = everything(block_too=False)
assert found.works and found.mirror_shared and found.populate
(file,) = [check for check in found.checks if check.name == "mirror a file mapping"]
assert file.ok and "no folder can be written to" in file.detail, file
""",
        prefix=prefix,
        cwd="/",  # the checkout may be a mount of its own
    )


@root
@pytest.mark.skipif(SANITIZED, reason="AddressSanitizer reads its options in /proc")
@pytest.mark.parametrize("hidden", ["/proc", "/proc /sys"])
def test_without_proc_there_are_heaps_and_arrays(hidden: str) -> None:
    """Nobody can count the mappings there: a heap makes no more of them, and the allocator takes the kernel's default."""
    hide = " ".join(f"mount -t tmpfs none {folder} &&" for folder in hidden.split())
    succeeds(
        """
import numpy as np, mirrormap as mm
with mm.numpy_allocator():
    array = np.ones(1 << 20, "u1")
with mm.Heap("16MiB", collector="manual") as heap:
    kept = [heap.put(bytes([at % 256]) * 500) for at in range(4000)][::16]
    views = [ref.array for ref in kept]
    heap.collect()
    assert array.all() and all(bytes(ref) == view.tobytes() for ref, view in zip(kept, views))
    assert heap._meshing() == (0, 0)
    heap.verify()
    del views
""",
        prefix=under("unshare", "-m", "sh", "-c", f'{hide} exec "$@"', "sh"),
    )


def test_a_user_namespace() -> None:
    prefix = under("unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc")
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("this kernel lets nobody make a user namespace")
    succeeds(
        f"{USES}"
        """
found = everything()
assert found.works and not found.frames
""",
        prefix=prefix,
    )


@root
@pytest.mark.skipif(SANITIZED, reason="AddressSanitizer makes mlock do nothing")
def test_memory_that_may_not_be_locked_twice() -> None:
    """A mirror of locked memory is locked too, and counted once more."""
    succeeds(
        """
import errno, mmap, resource, mirrormap as mm
from support import libc, address_of
source = mmap.mmap(-1, 1 << 20)
resource.setrlimit(resource.RLIMIT_MEMLOCK, (3 << 19, 3 << 19))
import os; os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
import ctypes
libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
assert libc.mlock(address_of(source), 1 << 20) == 0
try:
    mm.mirror(source)
except mm.MapError as error:
    assert error.errno == errno.EAGAIN and "RLIMIT_MEMLOCK" in str(error), error
else:
    raise AssertionError
source[3] = 4
"""
    )


# --- memory cgroups ------------------------------------------------------------------------


@contextlib.contextmanager
def limited(nbytes: int) -> Generator[Path]:
    """A memory cgroup of its own, of whichever version is here."""
    name = f"mirrormap-test-{os.getpid()}"
    first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    if (first / "memory.limit_in_bytes").exists():
        folder, limit = first / name, "memory.limit_in_bytes"
    elif "memory" in _text(second / "cgroup.controllers"):
        (second / "cgroup.subtree_control").write_text("+memory")
        folder, limit = second / name, "memory.max"
    else:
        pytest.skip("this machine has no memory cgroup that could be made")
    folder.mkdir()
    try:
        (folder / limit).write_text(str(nbytes))
        yield folder
    finally:
        folder.rmdir()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@root
@sanitized
@pytest.mark.parametrize(
    "work",
    [
        'mm.Pages("300MiB").map(populate=True)',
        'mm.Pages("300MiB", page_size="thp").map(populate=True)',
        'mm.Pages("300MiB").map().populate(write=True)',
        'mm.zeros(300 << 20, "u1", populate=True)',
        'mm.full(300 << 20, 1, "u1")',
        'mm.share(np.broadcast_to(np.uint8(1), 300 << 20))',
        'mm.mirror(mmap.mmap(-1, 300 << 20), populate=True)',
    ],
)  # fmt: skip
def test_the_limit_of_a_memory_cgroup_is_an_error_and_no_kill(work: str) -> None:
    with limited(160 << 20) as folder:
        succeeds(f"""
import errno, mmap, numpy as np, mirrormap as mm
open("{folder}/cgroup.procs", "w").write("0")
held = mm.full(16 << 20, 7, "u1")
try:
    {work}
except mm.MapError as error:
    assert error.errno == errno.ENOMEM and "memory cgroup" in str(error), error
    assert "MiB more" in str(error) or "allows 0 B more" in str(error), error
else:
    raise AssertionError
assert (mm.mirror(held, populate=True) == 7).all()
assert (mm.full(32 << 20, 3, "u1") == 3).all()
""")


@root
@sanitized
def test_without_the_look_the_kernel_kills() -> None:
    """What the check above is for: the same population, unasked."""
    with limited(160 << 20) as folder:
        done = run_python(f"""
import mirrormap as mm
from mirrormap import cgroups
cgroups.memory_left = lambda: None
open("{folder}/cgroup.procs", "w").write("0")
mm.Pages("300MiB").map(populate=True)
""")
        assert done.returncode == -9


@root
def test_a_group_above_counts_too_and_clean_files_do_not(tmp_path: Path) -> None:
    with limited(200 << 20) as folder:
        inner = folder / "inner"
        inner.mkdir()
        try:
            succeeds(f"""
from mirrormap import cgroups
outside = cgroups.memory_left()
open("{inner}/cgroup.procs", "w").write("0")
left = cgroups.memory_left()
assert left is not None and 0 < left <= 200 << 20, (outside, left)
""")
        finally:
            inner.rmdir()
