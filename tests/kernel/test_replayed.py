"""What is left of the assertions of LTP and of the kernel's selftests, replayed through the package."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
from collections.abc import Iterator

import pytest

import mirrormap as mm
from mirrormap import kernel, residency
from support import (
    MAP_ANONYMOUS,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    MFD_ALLOW_SEALING,
    PAGE,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    RW,
    USERFAULTFD,
    Raw,
    checked,
    is_mapped,
    libc,
    protections,
    read,
    succeeds,
    unmap,
    write,
)

M, X, D = mm.MREMAP_MAYMOVE, mm.MREMAP_FIXED, mm.MREMAP_DONTUNMAP
PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS
RELEASE = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
POPULATE_READ, POPULATE_WRITE = 22, 23
F_ADD_SEALS, SEAL, SHRINK, GROW, WRITE, FUTURE_WRITE = 1033, 1, 2, 4, 8, 16
MSEAL = 462  # the same number on every architecture


def refused(number: int, *arguments: int) -> None:
    with pytest.raises(mm.MapError) as caught:
        mm.mremap(*arguments)
    assert caught.value.errno == number


@pytest.fixture
def ten() -> Iterator[Raw]:
    """Ten pages of private memory with the page's number in each."""
    with Raw(10 * PAGE, flags=PRIVATE) as raw:
        for index in range(10):
            raw.buffer[index * PAGE] = index + 1
        yield raw


def firsts(address: int, count: int) -> list[int]:
    return [read(address + index * PAGE, 1)[0] for index in range(count)]


# --- mremap ------------------------------------------------------------------------------------


def test_growing_over_one_s_own_second_page_is_enomem() -> None:
    """LTP mremap04."""
    with Raw(2 * PAGE) as raw:
        refused(errno.ENOMEM, raw.address, PAGE, 2 * PAGE, 0)


def test_fixed_to_a_free_address_returns_it_and_keeps_the_bytes() -> None:
    """LTP mremap05."""
    raw = Raw(PAGE)
    with Raw(PAGE) as spare:
        free = spare.address
    raw.buffer[7] = 7
    assert mm.mremap(raw.address, PAGE, PAGE, M | X, free) == free
    assert read(free + 7, 1) == b"\7"
    unmap(free, PAGE)


@pytest.mark.parametrize("which", ["source", "target"])
def test_a_quarter_of_a_page_off_is_einval(which: str, ten: Raw) -> None:
    """kselftest mremap_test: misaligned by 1 KiB."""
    off = PAGE // 4
    source, target = ten.address, ten.address + 5 * PAGE
    source, target = (source + off, target) if which == "source" else (source, target + off)
    refused(errno.EINVAL, source, 2 * PAGE, 2 * PAGE, M | X, target)
    assert firsts(ten.address, 10) == list(range(1, 11))


def test_growing_into_a_hole_joins_both_sides_since_6_0() -> None:
    """kselftest mremap_test: mremap expand merge, and from an offset."""
    with Raw(3 * PAGE, flags=PRIVATE) as raw:
        unmap(raw.address + PAGE, PAGE)
        assert mm.mremap(raw.address, PAGE, 2 * PAGE, 0) == raw.address
        assert len(protections(raw.address, 3 * PAGE)) == (1 if RELEASE >= (6, 0) else 2)
    with Raw(4 * PAGE, flags=PRIVATE) as raw:
        unmap(raw.address + 2 * PAGE, PAGE)
        assert mm.mremap(raw.address + PAGE, PAGE, 2 * PAGE, 0) == raw.address + PAGE
        assert is_mapped(raw.address, 4 * PAGE)


def test_moves_over_several_mappings_and_holes_work_since_6_17(ten: Raw) -> None:
    """kselftest mremap_test: move multiple VMAs; EFAULT before."""
    unmap(ten.address + 2 * PAGE, PAGE)
    ten.protect(4 * PAGE, PAGE, PROT_READ)
    with Raw(10 * PAGE, PROT_NONE, PRIVATE) as target:
        if RELEASE >= (6, 17):
            assert mm.mremap(ten.address, 10 * PAGE, 10 * PAGE, M | X, target.address) == target.address
            assert firsts(target.address, 2) == [1, 2]
            assert firsts(target.address + 3 * PAGE, 7) == list(range(4, 11))
            Raw(10 * PAGE, at=ten.address)
        else:
            refused(errno.EFAULT, ten.address, 10 * PAGE, 10 * PAGE, M | X, target.address)


def test_shrinking_over_a_hole_keeps_the_front(ten: Raw) -> None:
    """kselftest mremap_test: shrink multiple VMAs."""
    unmap(ten.address + 5 * PAGE, 2 * PAGE)
    assert mm.mremap(ten.address, 10 * PAGE, 3 * PAGE, 0) == ten.address
    assert firsts(ten.address, 3) == [1, 2, 3]
    assert not is_mapped(ten.address + 3 * PAGE, 7 * PAGE)


# --- MREMAP_DONTUNMAP ----------------------------------------------------------------------------


def test_dontunmap_onto_the_front_of_a_mapping_keeps_its_rest(ten: Raw) -> None:
    """kselftest mremap_dontunmap: five pages onto the first five of ten."""
    with Raw(10 * PAGE, flags=PRIVATE) as target:
        target.buffer[9 * PAGE] = 99
        assert mm.mremap(ten.address, 5 * PAGE, 5 * PAGE, M | X | D, target.address) == target.address
        assert firsts(target.address, 10) == [1, 2, 3, 4, 5, 0, 0, 0, 0, 99]
        assert firsts(ten.address, 10) == [0, 0, 0, 0, 0, 6, 7, 8, 9, 10]


def test_dontunmap_of_the_middle_leaves_both_ends(ten: Raw) -> None:
    """kselftest mremap_dontunmap: partial mapping."""
    got = mm.mremap(ten.address + 2 * PAGE, 5 * PAGE, 5 * PAGE, M | D)
    assert firsts(got, 5) == [3, 4, 5, 6, 7]
    assert firsts(ten.address, 10) == [1, 2, 0, 0, 0, 0, 0, 8, 9, 10]
    unmap(got, 5 * PAGE)


def test_dontunmap_of_a_memfd_shows_the_same_pages_at_both_since_5_13() -> None:
    """kselftest mremap_dontunmap: shmem; EINVAL before."""
    fd = os.memfd_create("dontunmap")
    try:
        os.ftruncate(fd, 2 * PAGE)
        with Raw(2 * PAGE, RW, MAP_SHARED, fd) as raw:
            raw.buffer[PAGE] = 5
            if RELEASE < (5, 13):
                refused(errno.EINVAL, raw.address, 2 * PAGE, 2 * PAGE, M | D)
                return
            got = mm.mremap(raw.address, 2 * PAGE, 2 * PAGE, M | D)
            write(got, b"x")
            assert (raw.buffer[0], raw.buffer[PAGE]) == (ord("x"), 5)
            unmap(got, 2 * PAGE)
    finally:
        os.close(fd)


def test_what_dontunmap_left_behind_faults_to_its_userfaultfd() -> None:
    """LTP mremap07: the new range keeps the data, the old one is missing and its monitor is asked."""
    answer = succeeds(f"""
import ctypes, fcntl, os, struct, threading, mirrormap as mm
from support import PAGE, Raw, libc, read
fd = libc.syscall(ctypes.c_long({USERFAULTFD.get(platform.machine(), 282)}), 0)
if fd < 0:
    print("skip"); raise SystemExit
fcntl.ioctl(fd, 0xC018AA3F, bytearray(struct.pack("QQQ", 0xAA, 0, 0)))
raw = Raw(PAGE, flags=0x22)
raw.buffer[0] = 7
fcntl.ioctl(fd, 0xC020AA00, bytearray(struct.pack("QQQQ", raw.address, PAGE, 1, 0)))
got = mm.mremap(raw.address, PAGE, PAGE, mm.MREMAP_MAYMOVE | mm.MREMAP_DONTUNMAP)
asked = []
def monitor():
    asked.append(os.read(fd, 32))
    page = ctypes.create_string_buffer(b"from the monitor".ljust(PAGE, b"."), PAGE)
    fcntl.ioctl(fd, 0xC028AA03, bytearray(struct.pack("QQQQq", raw.address, ctypes.addressof(page), PAGE, 0, 0)))
thread = threading.Thread(target=monitor)
thread.start()
old = libc.process_vm_readv
local = ctypes.create_string_buffer(16)
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("count", ctypes.c_size_t)]
# the touch lets go of Python's lock, for which the monitor waits
here, there = Vector(ctypes.addressof(local), 16), Vector(raw.address, 16)
assert old(os.getpid(), ctypes.byref(here), ctypes.c_ulong(1), ctypes.byref(there), ctypes.c_ulong(1), ctypes.c_ulong(0)) == 16
thread.join(60)
assert read(got, 1) == b"\\7" and asked[0][0] == 0x12, (read(got, 1), asked)
print(local.raw.decode())
""").strip()
    if answer == "skip":
        pytest.skip("userfaultfd is not permitted here")
    assert answer == "from the monitor"


# --- populate ------------------------------------------------------------------------------------


def advised(address: int, nbytes: int, advice: int) -> int:
    return 0 if libc.madvise(address, nbytes, advice) == 0 else ctypes.get_errno()


@pytest.mark.skipif(RELEASE < (5, 14), reason="MADV_POPULATE_READ and _WRITE are of Linux 5.14")
def test_population_obeys_the_protection_and_names_holes() -> None:
    """kselftest madv_populate: prot_read, prot_write, holes, populate_read."""
    with Raw(4 * PAGE, PROT_READ) as raw:
        assert advised(raw.address, 4 * PAGE, POPULATE_READ) == 0
        assert advised(raw.address, 4 * PAGE, POPULATE_WRITE) == errno.EINVAL
        assert residency.nbytes_present(raw.address, 4 * PAGE) == 4 * PAGE
        got = mm.mremap(raw.address, 0, 4 * PAGE, M)
        assert residency.nbytes_present(got, 4 * PAGE) == 0
        unmap(got, 4 * PAGE)
    with Raw(4 * PAGE, PROT_WRITE) as raw:
        assert advised(raw.address, 4 * PAGE, POPULATE_WRITE) == 0
        if platform.machine() == "x86_64":  # elsewhere writing may imply reading
            assert advised(raw.address, 4 * PAGE, POPULATE_READ) == errno.EINVAL
    for hole in (0, 2, 4):
        with Raw(5 * PAGE) as raw:
            unmap(raw.address + hole * PAGE, PAGE)
            for advice in (POPULATE_READ, POPULATE_WRITE):
                assert advised(raw.address, 5 * PAGE, advice) == errno.ENOMEM


# --- memfd ---------------------------------------------------------------------------------------


def test_seals_refuse_what_they_name() -> None:
    """LTP memfd_create01, kselftest memfd_test: SHRINK, GROW, WRITE, SEAL; a mirror counts as a writable view."""
    fd = os.memfd_create("seals", MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, 2 * PAGE)
        checked(libc.fcntl(fd, F_ADD_SEALS, SHRINK | GROW))
        for nbytes in (PAGE, 3 * PAGE):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, nbytes)
        raw = Raw(PAGE, RW, MAP_SHARED, fd)
        alias = mm.mremap(raw.address, 0, PAGE, M)
        for live in (raw.address, alias):
            assert libc.fcntl(fd, F_ADD_SEALS, WRITE) == -1
            assert ctypes.get_errno() == errno.EBUSY
            unmap(live, PAGE)
        checked(libc.fcntl(fd, F_ADD_SEALS, WRITE))
        with pytest.raises(PermissionError):
            Raw(PAGE, RW, MAP_SHARED, fd)
        with Raw(PAGE, PROT_READ, MAP_SHARED, fd) as readable:
            got = mm.mremap(readable.address, 0, PAGE, M)
            assert protections(got, PAGE) == ["r--s"]
            unmap(got, PAGE)
        checked(libc.fcntl(fd, F_ADD_SEALS, SEAL))
        assert libc.fcntl(fd, F_ADD_SEALS, FUTURE_WRITE) == -1
        assert ctypes.get_errno() == errno.EPERM
    finally:
        os.close(fd)


@pytest.mark.parametrize(("name", "flags"), [("n" * 250, 0), ("flags", 0x4000)])
def test_memfd_arguments_the_kernel_calls_invalid(name: str, flags: int) -> None:
    """LTP memfd_create02; 249 bytes of name are the most."""
    with pytest.raises(OSError, match="Invalid argument"):
        os.memfd_create(name, flags)
    os.close(os.memfd_create("n" * 249))


# --- huge pages ----------------------------------------------------------------------------------


def test_facts_of_huge_mappings(huge: int) -> None:
    """kselftest hugetlb-mremap and others: moved since 5.16; neither grown nor mirrored by the call."""
    raw = Raw(huge, flags=MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB)
    for arguments in ((huge, 2 * huge, 0), (0, huge, M)):
        with pytest.raises(mm.MapError) as caught:
            kernel.mremap(raw.address, *arguments)
        assert caught.value.errno == errno.EINVAL
    with Raw(2 * huge, PROT_NONE, PRIVATE) as window:
        target = window.address + -window.address % huge
        raw.buffer[1] = 9
        if RELEASE >= (5, 16):
            assert kernel.mremap(raw.address, huge, huge, M | X, target) == target
            assert read(target + 1, 1) == b"\x09"
        else:
            with pytest.raises(mm.MapError) as caught:
                kernel.mremap(raw.address, huge, huge, M | X, target)
            assert caught.value.errno == errno.EINVAL
            raw.unmap()
    if RELEASE >= (5, 16):  # before, the call succeeds on memory that is gone
        refused(errno.EFAULT, raw.address, huge, huge, 0)


# --- mseal ---------------------------------------------------------------------------------------


def test_a_sealed_mapping_neither_moves_nor_is_mirrored_by_the_call() -> None:
    """kselftest mseal_test, Linux 6.10: EPERM; seals go with their process only."""
    answer = succeeds(f"""
import ctypes, mirrormap as mm
from support import PAGE, Raw, libc
raw = Raw(2 * PAGE)
raw.buffer[0] = 3
if libc.syscall(ctypes.c_long({MSEAL}), ctypes.c_void_p(raw.address), ctypes.c_size_t(2 * PAGE), ctypes.c_ulong(0)):
    print("skip"); raise SystemExit
found = []
for call in ((2 * PAGE, 2 * PAGE, mm.MREMAP_MAYMOVE), (0, 2 * PAGE, mm.MREMAP_MAYMOVE), (2 * PAGE, PAGE, 0)):
    try:
        mm.mremap(raw.address, *call)
        found.append(0)
    except mm.MapError as error:
        found.append(error.errno)
assert raw.buffer[0] == 3
print(*found)
""").strip()
    if answer == "skip":
        assert RELEASE < (6, 10) or os.uname().machine not in ("x86_64", "aarch64", "s390x"), RELEASE
        pytest.skip("this kernel has no mseal")
    moved, mirrored, shrunk = map(int, answer.split())
    assert (moved, shrunk) == (errno.EPERM, errno.EPERM)
    assert mirrored == errno.EPERM
