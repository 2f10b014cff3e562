"""Memory on a tmpfs of the package's own: huge pages at the first touch, and what happens where there is none."""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mirrormap as mm
import seccomp
from mirrormap import kernel, procmaps
from support import PAGE, succeeds

MIB = 1 << 20
PMD = procmaps.pmd_nbytes()
needs_them = pytest.mark.skipif(
    not kernel.has_huge_files() or not PAGE < PMD <= 32 * MIB,
    reason="no tmpfs with huge=advise can be mounted here, or its huge pages are larger than these tests",
)


def huge_nbytes(array: np.ndarray) -> int:
    """Bytes of an array that huge page-table entries show, by /proc/self/smaps."""
    start, end = array.ctypes.data, array.ctypes.data + array.nbytes
    here, found = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            low, high = (int(word, 16) for word in first.split("-"))
            here = low < end and start < high
        elif here and first == "ShmemPmdMapped:":
            found += int(line.split()[1]) << 10
    return found


def is_given(array: np.ndarray) -> bool:
    """Huge pages need free memory in one piece, which a busy machine may be out of: one of many is enough."""
    return huge_nbytes(array) >= PMD


def faults_so_far() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@needs_them
def test_a_large_array_takes_huge_pages_as_it_is_touched() -> None:
    with mm.numpy_allocator(cache=0):
        array = np.empty(8 * PMD, "u1")
    assert huge_nbytes(array) == 0
    assert mm.mappings()  # nothing of this touches it
    array[0] = 1
    array[5 * PMD :] = 1
    assert is_given(array)
    other = mm.mirror(array)
    other[3] = 9
    assert array[3] == 9
    assert "/mirrormap:numpy" in {group.name for group in mm.mirrors()}


@needs_them
@pytest.mark.parametrize("make", [np.empty, np.zeros])
@pytest.mark.parametrize("nbytes", [1 << 16, 3 << 18, MIB, MIB + 3 * PAGE])
def test_an_array_below_a_huge_page_has_its_pages_when_it_is_made(make: Any, nbytes: int) -> None:
    if nbytes >= PMD or PAGE > 1 << 12:
        pytest.skip("huge pages are smaller here, or an ordinary one large")
    with mm.numpy_allocator(1, cache=0):
        array = make(nbytes, "u1")
    mapping = next(vma for vma in mm.mappings() if vma.start <= array.ctypes.data < vma.end)
    assert mapping.name == "/mirrormap:numpy (deleted)"
    (fd,) = procmaps.descriptors_of(mapping.dev, mapping.inode)
    assert os.fstat(fd).st_blocks * 512 == mapping.nbytes >= nbytes
    before = faults_so_far()
    array[:] = 7
    faults = [faults_so_far() - before]
    assert (mm.mirror(array) == 7).all()
    if tuple(map(int, platform.release().split(".")[:2])) < (6, 14):
        return  # fallocate takes no large pieces
    with mm.numpy_allocator(1, cache=0):  # a busy machine may be out of them for a while
        others = [make(nbytes, "u1") for _ in range(20)]
    for other in others:
        before = faults_so_far()
        other[:] = 7
        faults.append(faults_so_far() - before)
    assert min(faults) <= nbytes // PAGE // 4


@needs_them
@pytest.mark.skipif(PMD > 16 * MIB, reason="a growing array takes no huge pages of more than 16 MiB unasked")
def test_a_growing_array_takes_huge_pages_once_there_is_much_of_it() -> None:
    with mm.Growable("u1") as grown:
        grown.extend(np.full(MIB, 7, "u1"))
        assert huge_nbytes(grown.array) == 0
        before = grown.array
        for _ in range(20):
            grown.extend(np.full(8 * MIB, 7, "u1"))
        rows = grown.array
        assert is_given(rows)
        assert (rows == 7).all()
        assert (before == 7).all()
        del before, rows
        grown.resize(MIB)
        assert grown._room.backing.allocated < 4 * MIB


@needs_them
def test_nobody_s_view_becomes_a_sigbus_by_a_smaller_size() -> None:
    with mm.numpy_allocator(cache=0):
        array = np.full(2 * PMD, 5, "u1")
    vma = next(vma for vma in mm.mappings() if vma.start <= array.ctypes.data < vma.end)
    (fd,) = procmaps.descriptors_of(vma.dev, vma.inode)
    with mm.Pages.from_fd(fd) as pages:
        pages.resize(PMD)
    assert (array[:PMD] == 5).all()
    assert not array[PMD:].any()


CLOSED_BY_SOMEBODY = """
import os, numpy as np, mirrormap as mm
from mirrormap import kernel
def filled(value):
    with mm.numpy_allocator(cache=0):
        return np.full(8 << 20, value, "u1")
first = filled(1)
had = kernel.has_huge_files()
os.closerange(3, 64)
taken = [os.open("/", os.O_RDONLY) for _ in range(8)]  # the numbers mean something else now
second = filled(2)
assert kernel.has_huge_files() == had
assert not any(name.startswith("mirrormap") for name in os.listdir("/"))
assert (first == 1).all() and (second == 2).all()
assert mm.mirror(second)[5] == 2
"""


@pytest.mark.leaks_by_nature  # of descriptors that were closed under it
def test_a_program_that_closes_all_descriptors() -> None:
    succeeds(CLOSED_BY_SOMEBODY)


REFUSED = """
import errno, numpy as np, mirrormap as mm, seccomp
from mirrormap import kernel
for call in {calls}:
    seccomp.refuse(call, errno.{error})
assert not kernel.has_huge_files()
with mm.numpy_allocator() as allocator:
    array = np.full(40 << 20, 4, "u1")
    mm.mirror(array)[7] = 9
    assert array[7] == 9
    assert any(vma.name.startswith("/memfd:mirrormap:numpy") for vma in mm.mappings())
grown = mm.Growable("u1")
for _ in range(5):
    grown.extend(array)
assert (grown.array[::5000] == 4).all()
"""


@pytest.mark.parametrize(
    ("calls", "error"), [(("fsopen",), "ENOSYS"), (("fsopen", "unshare"), "EPERM")], ids=["old", "sandbox"]
)
def test_where_none_can_be_mounted_there_is_a_memfd(calls: tuple[str, ...], error: str) -> None:
    if not seccomp.numbers():
        pytest.skip("system call numbers of this architecture are not listed in tests/seccomp.py")
    succeeds(REFUSED.format(calls=calls, error=error))


PLAIN_USER = """
import ctypes, os, signal, numpy as np, mirrormap as mm
from mirrormap import kernel
ended = []
signal.signal(signal.SIGCHLD, lambda *_: ended.append(1))
os.setgroups([]); os.setgid(12345); os.setuid(12345)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, as a program begun by that user is
here = os.stat("/proc/self/ns/user").st_ino, os.stat("/proc/self/ns/mnt").st_ino
mounts = open("/proc/self/mounts").read()
had = kernel.has_huge_files()
assert mounts.count("tmpfs") == open("/proc/self/mounts").read().count("tmpfs")
assert here == (os.stat("/proc/self/ns/user").st_ino, os.stat("/proc/self/ns/mnt").st_ino)
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    pass
assert not ended
with mm.numpy_allocator(cache=0):
    array = np.full(8 << 20, 3, "u1")
assert mm.mirror(array)[9] == 3
print(had)
"""


def test_an_ordinary_user_gets_one_through_a_user_namespace() -> None:
    if os.geteuid():
        pytest.skip("this user is an ordinary one already")
    told = succeeds(PLAIN_USER)
    maximum = Path("/proc/sys/user/max_user_namespaces")
    restricted = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
    allowed = maximum.exists() and int(maximum.read_text()) > 0
    if kernel.has_huge_files() and allowed and not (restricted.exists() and int(restricted.read_text())):
        assert told == "True\n"


AT_ONCE = """
import os, threading
from mirrormap import kernel
def ask():
    for _ in range(300):
        fd = kernel.huge_file("mirrormap:same")
        assert os.fstat(fd).st_nlink == 0
        os.close(fd)
kernel.has_huge_files()
threads = [threading.Thread(target=ask) for _ in range(3)]
for thread in threads:
    thread.start()
children = []
for _ in range(3):
    child = os.fork()
    if not child:
        ask()
        os._exit(0)
    children.append(child)
ask()
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
"""


@needs_them
def test_threads_and_children_may_ask_at_once() -> None:
    succeeds("import warnings; warnings.simplefilter('ignore')\n" + AT_ONCE)
