"""Limits of process and machine: reached, named, and survived."""

from __future__ import annotations

import os

import pytest

from support import SANITIZED, succeeds

NOBODY = """
import ctypes, os
libc0 = ctypes.CDLL(None)
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
libc0.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self is root's otherwise
"""
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become an ordinary user, or mount")


@pytest.mark.skipif(SANITIZED, reason="AddressSanitizer itself needs mappings when none is left")
def test_max_map_count_nearly_used_up_is_refused_before_anything_is_mapped() -> None:
    succeeds("""
import errno, mmap, mirrormap as mm
from mirrormap import procmaps
page = mmap.PAGESIZE
pages = mm.Pages(2 * page)
room = procmaps.max_map_count() - procmaps.map_count() - 280  # the interpreter needs some itself
held = [pages.arrange([(page, page), (0, page)]) for _ in range(room // 2)]
count = procmaps.map_count()
try:
    pages.arrange([(0, page)] * 400)
except mm.MapError as error:
    assert error.errno == errno.ENOMEM and "vm.max_map_count" in str(error), error
else:
    raise AssertionError
assert procmaps.map_count() <= count + 4
mm.mirror(held[0]).array()[0] = 2
assert held[0].array()[0] == 2
""")


def test_rlimit_as_reached() -> None:
    succeeds("""
import errno, resource, mirrormap as mm
from pathlib import Path
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
pages = mm.Pages("256MiB")
view = pages.map()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), resource.RLIM_INFINITY))
try:
    view.mirror()
except mm.MapError as error:
    assert error.errno == errno.ENOMEM and "RLIMIT_AS" in str(error), error
else:
    raise AssertionError
view.array()[0] = 1
view.mirror(0, "1MiB").array()[0] = 2
assert view.array()[0] == 2
""")


def test_rlimit_nofile_reached() -> None:
    succeeds("""
import errno, mirrormap as mm, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(mm.Pages(1))
except mm.MapError as error:
    assert error.errno == errno.EMFILE and "ulimit -n" in str(error), error
assert len(held) > 40
held.pop().close()
mm.Pages(1)
""")


@root
def test_a_full_tmpfs_is_an_exception_and_never_a_sigbus() -> None:
    succeeds("""
import ctypes, errno, os, mirrormap as mm, tempfile
from support import PAGE, checked, libc
libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
checked(libc.unshare(0x20000))
checked(libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None))
folder = tempfile.mkdtemp()
checked(libc.mount(b"t", folder.encode(), b"tmpfs", 0, b"size=1m"))
pages = mm.Pages.open(folder + "/data", "8MiB")
try:
    pages.map(populate=True)
except mm.MapError as error:
    assert error.errno in (errno.EFAULT, errno.ENOMEM, errno.ENOSPC), error
    assert "bytes 0 to" in str(error) and "full" in str(error), error
else:
    raise AssertionError
libc.umount2(folder.encode(), 2)
os.rmdir(folder)
""")


@root
def test_an_ordinary_user_mirrors_everything_but_huge_pages_without_descriptor(huge: int) -> None:
    succeeds(f"""
import errno, mmap, os, tempfile, mirrormap as mm, numpy as np
from multiprocessing import resource_tracker, shared_memory
from support import MAP_ANONYMOUS, MAP_HUGETLB, MAP_SHARED, MFD_HUGETLB, PAGE, Raw
huge = {huge}
raw = Raw(2 * huge, flags=MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB)
raw.buffer[0] = 1
resource_tracker.ensure_running()  # nobody may not be able to start the interpreter
fd = os.memfd_create("theirs", MFD_HUGETLB)
os.ftruncate(fd, huge)
{NOBODY}
found = mm.probe()
assert found.works and not found.map_files and not found.frames and not found.mirror_hugetlb_of_others
source = mmap.mmap(-1, 4 * PAGE)
with mm.mirror(source, populate=True) as view:
    view.array()[5] = 7
    assert source[5] == 7 and view.resident == 4 * PAGE
block = shared_memory.SharedMemory(create=True, size=5000)
with mm.mirror(block) as view:
    view.array()[4999] = 8
    assert block.buf[4999] == 8
block.close(); block.unlink()
with tempfile.NamedTemporaryFile(dir="/tmp") as file:
    file.truncate(10000)
    array = np.memmap(file.name, "u1", "r+")
    other = mm.mirror(array[3:9000:7])
    other[0] = 5
    assert array[3] == 5
with mmap.mmap(fd, huge) as theirs, mm.mirror(theirs) as view:
    view.array()[1] = 4
    assert theirs[1] == 4
try:
    mm.mirror(raw.buffer)
except mm.NotMirrorableError as error:
    assert error.errno == errno.EPERM and "CAP_CHECKPOINT_RESTORE" in str(error), error
else:
    raise AssertionError
assert raw.buffer[0] == 1
""")


@root
def test_an_ordinary_user_is_warned_of_a_truncated_file_too() -> None:
    """Without map_files the length is found out by asking whether the last page can be read."""
    succeeds(f"""
import mmap, os, tempfile, mirrormap as mm
from support import PAGE
{NOBODY}
with tempfile.NamedTemporaryFile(dir="/tmp") as file:
    file.truncate(4 * PAGE)
    with mmap.mmap(file.fileno(), 4 * PAGE) as source:
        file.truncate(PAGE)
        try:
            mm.mirror(source)
        except mm.MapError as error:
            assert "past the end" in str(error), error
        else:
            raise AssertionError
""")
