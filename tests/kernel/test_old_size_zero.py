"""Mirroring by mremap: every case that other projects test or tables list, on the real kernel.

Each test names its source. `mirrored` goes through the package both ways: old_size 0 and the flag.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mirrormap as mm
from mirrormap import procmaps, residency
from support import (
    FUTEX,
    MAP_ANONYMOUS,
    MAP_HUGETLB,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MFD_ALLOW_SEALING,
    PAGE,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    RW,
    USERFAULTFD,
    Raw,
    checked,
    dies_by,
    is_mapped,
    libc,
    lock,
    protections,
    read,
    succeeds,
    unmap,
    write,
)  # fmt: skip

Mirrored = Callable[..., int]
M, X, D = mm.MREMAP_MAYMOVE, mm.MREMAP_FIXED, mm.MREMAP_DONTUNMAP
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
libc.shmdt.argtypes = [ctypes.c_void_p]


@pytest.fixture(params=["old_size 0", "MREMAP_MIRROR"])
def mirrored(request: pytest.FixtureRequest) -> Iterator[Mirrored]:
    made: list[tuple[int, int]] = []

    def call(address: int, nbytes: int, flags: int = M, target: int | None = None) -> int:
        if request.param == "old_size 0":
            got = mm.mremap(address, 0, nbytes, flags, target)
        else:
            got = mm.mremap(address, nbytes, nbytes, flags | mm.MREMAP_MIRROR, target)
        made.append((got, nbytes))
        return got

    yield call
    for address, nbytes in made:
        if is_mapped(address):
            unmap(address, nbytes)


def refused(number: int, mirrored: Mirrored, *arguments: int) -> mm.MapError:
    with pytest.raises(mm.MapError) as caught:
        mirrored(*arguments)
    assert caught.value.errno == number
    return caught.value


@pytest.fixture
def source() -> Iterator[Raw]:
    with Raw(4 * PAGE) as raw:
        for index in range(4):
            raw.buffer[index * PAGE] = index + 1
        yield raw


def test_without_maymove_is_enomem(source: Raw, mirrored: Mirrored) -> None:
    """gVisor mremap.cc InPlace_Copy; the manual page says EINVAL."""
    refused(errno.ENOMEM, mirrored, source.address, PAGE, 0)


def test_maymove_gives_another_address_and_keeps_the_source(source: Raw, mirrored: Mirrored) -> None:
    """gVisor MayMove_Copy; Khandual's mremap_mirror_shared_anon (2017, not merged)."""
    got = mirrored(source.address, 4 * PAGE)
    assert got != source.address
    assert read(got, 4 * PAGE) == bytes(source.buffer)
    write(got + PAGE, b"x")
    assert source.buffer[PAGE] == ord("x")


def test_fixed_lands_on_its_target_and_replaces_it(source: Raw, mirrored: Mirrored) -> None:
    """gVisor MustMove_Copy; mremap(2): what was at the target is gone."""
    with Raw(4 * PAGE, flags=MAP_PRIVATE | MAP_ANONYMOUS) as target:
        assert mirrored(source.address, 4 * PAGE, M | X, target.address) == target.address
        assert target.buffer[PAGE] == 2
        assert source.buffer[PAGE] == 2
        Raw(4 * PAGE, at=target.address)


def test_a_write_protected_memfd_keeps_its_writable_views() -> None:
    """ART jit_memory_region_test.cc: no new writable mapping, but mirrors of an old one, and two pages of it."""
    fd = os.memfd_create("art", MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, 2 * PAGE)
        with Raw(2 * PAGE, RW, MAP_SHARED, fd) as old:
            checked(libc.fcntl(fd, 1033, 0x10))  # F_ADD_SEALS, F_SEAL_FUTURE_WRITE
            with pytest.raises(PermissionError):
                Raw(2 * PAGE, RW, MAP_SHARED, fd)
            old.protect(0, 2 * PAGE, PROT_READ)
            old.protect(0, 2 * PAGE, RW)
            with mm.mirror(old.buffer) as view:
                view.array()[PAGE] = 7
                assert old.buffer[PAGE] == 7
            got = mm.mremap(old.address, 0, 2 * PAGE, M)
            write(got, b"z")
            assert old.buffer[0] == ord("z")
            unmap(got, 2 * PAGE)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "flags", [MAP_PRIVATE | MAP_ANONYMOUS, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE]
)
def test_private_memory_is_einval_and_nothing_moves(flags: int, mirrored: Mirrored) -> None:
    """Khandual's mremap_mirror_private_anon; EINVAL since commit dba58d3b8c50 (4.14)."""
    nbytes = procmaps.default_huge_nbytes()
    if nbytes is None and flags & MAP_HUGETLB:
        pytest.skip("this kernel has no huge pages")
    nbytes = nbytes or PAGE
    with Raw(nbytes, flags=flags) as private:
        error = refused(errno.EINVAL, mirrored, private.address, nbytes)
        assert isinstance(error, mm.NotMirrorableError)
        assert is_mapped(private.address)


def test_the_proposal_s_demo_on_ordinary_and_on_huge_pages(huge: int, mirrored: Mirrored) -> None:
    """Kravetz's demo program (2017): five chunks and a FIXED mirror right behind; `hugetlb` was the unmet case."""
    for flags in (MAP_SHARED | MAP_ANONYMOUS, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB):
        with Raw(11 * huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE) as window:
            base = window.address + -window.address % huge
            first = Raw(5 * huge, flags=flags, at=base)
            for index in range(5):
                first.buffer[index * huge] = index + 1
            assert mirrored(base, 5 * huge, M | X, base + 5 * huge) == base + 5 * huge
            assert [read(base + (5 + index) * huge, 1)[0] for index in range(5)] == [1, 2, 3, 4, 5]
            write(base + 9 * huge, b"!")
            assert first.buffer[4 * huge] == ord("!")
            for start in (base, base + 5 * huge):
                unmap(start, 5 * huge)


@pytest.mark.parametrize("flags", [0, MAP_NORESERVE, MAP_POPULATE])
def test_flags_of_the_source_are_no_obstacle_and_population_is_not_repeated(
    flags: int, mirrored: Mirrored
) -> None:
    """Table of sources: NORESERVE, POPULATE; the mirror has no page-table entries."""
    with Raw(8 * PAGE, flags=MAP_SHARED | MAP_ANONYMOUS | flags) as raw:
        got = mirrored(raw.address, 8 * PAGE)
        assert residency.nbytes_present(got, 8 * PAGE) == 0


@pytest.mark.parametrize("protection", [PROT_READ, PROT_NONE, RW | PROT_EXEC, PROT_READ | PROT_EXEC])
def test_the_protection_is_inherited(protection: int, mirrored: Mirrored) -> None:
    """Table of sources: PROT_READ, PROT_NONE, RWX."""
    with Raw(2 * PAGE, protection) as raw:
        got = mirrored(raw.address, 2 * PAGE)
        assert protections(got, PAGE) == protections(raw.address, PAGE)


def test_a_system_v_segment_counts_its_mirror(mirrored: Mirrored) -> None:
    """Kravetz: the original use, shmat and then mremap; LTP shmat04: nattch."""
    segment = checked(libc.shmget(0, 2 * PAGE, 0o1600))
    try:
        address = checked(libc.shmat(segment, None, 0))
        write(address, b"sysv")
        got = mirrored(address, 2 * PAGE)
        assert read(got, 4) == b"sysv"
        line = next(
            line
            for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
            if int(line.split()[1]) == segment
        )
        assert int(line.split()[6]) == 2
        checked(libc.shmdt(got))
        assert not is_mapped(got)
        checked(libc.shmdt(address))
    finally:
        libc.shmctl(segment, 0, None)


def test_a_locked_source_gives_a_locked_populated_mirror(mirrored: Mirrored) -> None:
    """Table of sources: mlock."""
    with Raw(4 * PAGE) as raw:
        lock(raw.address, 4 * PAGE)
        got = mirrored(raw.address, 4 * PAGE)
        assert residency.nbytes_present(got, 4 * PAGE) == 4 * PAGE


def test_an_inner_page_keeps_its_offset(source: Raw, mirrored: Mirrored) -> None:
    """Arguments: an offset in the middle shows the right pages; LTP mremap06 vm_pgoff."""
    assert read(mirrored(source.address + 2 * PAGE, PAGE), 1) == b"\x03"


@pytest.mark.parametrize(
    "bad", ["new_size 0", "unaligned", "huge", "fixed without maymove", "dontunmap", "unknown flag"]
)
def test_arguments_the_kernel_calls_invalid(bad: str, source: Raw, mirrored: Mirrored) -> None:
    """Arguments table; LTP mremap02."""
    a = source.address
    calls: dict[str, tuple[int, ...]] = {
        "new_size 0": (a, 0), "unaligned": (a + 1, PAGE), "huge": (a, (1 << 64) - PAGE),
        "fixed without maymove": (a, PAGE, X, a + 64 * PAGE), "dontunmap": (a, PAGE, M | D), "unknown flag": (a, PAGE, M | 64),
    }  # fmt: skip
    if bad == "new_size 0":
        with pytest.raises(mm.MapError) as caught:
            mm.mremap(a, 0, 0, M)
        assert caught.value.errno == errno.EINVAL
    else:
        refused(errno.EINVAL, mirrored, *calls[bad])
    assert source.buffer[PAGE] == 2


def test_an_unmapped_address_is_efault(mirrored: Mirrored) -> None:
    """LTP mremap03."""
    with Raw(PAGE) as raw:
        gone = raw.address
    refused(errno.EFAULT, mirrored, gone, PAGE)


def test_fixed_onto_its_source_is_refused_and_nothing_moves(source: Raw, mirrored: Mirrored) -> None:
    """Arguments: the kernel answers EFAULT and has unmapped the source; overlaps at a+1 and a-1 pages too."""
    for target in (source.address, source.address + PAGE, source.address - PAGE):
        refused(errno.EINVAL, mirrored, source.address, 4 * PAGE, M | X, target)
    assert bytes(source.buffer[::PAGE]) == bytes([1, 2, 3, 4])


def test_the_kernel_really_unmaps_the_source_when_nobody_checks() -> None:
    """The fact behind the check."""
    from mirrormap import kernel

    raw = Raw(PAGE)
    with pytest.raises(mm.MapError) as caught:
        kernel.mremap(raw.address, 0, PAGE, M | X, raw.address)
    assert caught.value.errno in (errno.EFAULT, errno.EINVAL)
    if is_mapped(raw.address):
        raw.unmap()


def test_beyond_the_object_is_refused_instead_of_a_sigbus(mirrored: Mirrored) -> None:
    """Arguments: past the object the call succeeds and the touch is a SIGBUS."""
    with Raw(16 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS) as window:
        Raw(4 * PAGE, at=window.address)
        unmap(window.address + 4 * PAGE, 12 * PAGE)
        refused(errno.EFAULT, mirrored, window.address, 8 * PAGE)
    assert (
        dies_by(
            "import ctypes\nfrom support import Raw, PAGE, read\nfrom mirrormap import kernel\n"
            "raw = Raw(PAGE)\ngot = kernel.mremap(raw.address, 0, 2 * PAGE, 1)\nread(got + PAGE, 1)"
        )
        == 7
    )


def test_beyond_the_entry_but_inside_the_object_shows_what_was_never_mapped() -> None:
    """Arguments: with old_size 0 the kernel follows the object, not the mapping."""
    fd = os.memfd_create("long")
    try:
        os.ftruncate(fd, 4 * PAGE)
        os.pwrite(fd, b"tail", 3 * PAGE)
        with Raw(64 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS) as window:
            Raw(PAGE, RW, MAP_SHARED, fd, at=window.address)
            unmap(window.address + PAGE, 63 * PAGE)
            got = mm.mremap(window.address, 0, 4 * PAGE, M)
            assert read(got + 3 * PAGE, 4) == b"tail"
            unmap(got, 4 * PAGE)
            with pytest.raises(mm.MapError, match="Nothing is mapped"):
                mm.mirror((ctypes.c_ubyte * (4 * PAGE)).from_address(window.address))
    finally:
        os.close(fd)


def test_two_entries_keep_their_own_protection(source: Raw, mirrored: Mirrored) -> None:
    """Arguments: the kernel gives both the first one's (a read-only half became writable)."""
    source.protect(2 * PAGE, 2 * PAGE, PROT_READ)
    got = mirrored(source.address, 4 * PAGE)
    assert [letters[:3] for letters in protections(got, 4 * PAGE)] == ["rw-", "r--"]


def test_two_objects_keep_their_own_pages(mirrored: Mirrored) -> None:
    """Arguments: the kernel shows the first object's continuation for both."""
    with Raw(2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS) as window:
        for index in range(2):
            Raw(PAGE, at=window.address + index * PAGE)
            window.buffer[index * PAGE] = 65 + index
        got = mirrored(window.address, 2 * PAGE)
        assert (read(got, 1), read(got + PAGE, 1)) == (b"A", b"B")


def test_contiguous_mirrors_merge_and_reversed_ones_do_not() -> None:
    """Arguments: 64 page mirrors in order are one entry, reversed 64."""
    with Raw(64 * PAGE) as raw, Raw(64 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS) as window:
        for order, entries in ((range(64), 1), (range(63, -1, -1), 64)):
            for index, page in enumerate(order):
                mm.mremap(raw.address + page * PAGE, 0, PAGE, M | X, window.address + index * PAGE)
            assert len(protections(window.address, 64 * PAGE)) == entries


def test_truncation_is_seen_by_both_and_regrowth_reads_zeros(tmp_path: Path) -> None:
    """Arguments: SIGBUS in both views; LTP mmap09, mmap13."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 2 * PAGE)
    for address in ("first", "second"):
        script = f"""
import mmap, os, mirrormap as mm
from support import PAGE, address_of, read
file = open({str(path)!r}, "r+b"); source = mmap.mmap(file.fileno(), 0)
view = mm.mirror(source)
first, second = address_of(source), view.address
os.truncate({str(path)!r}, PAGE)
read({address} + PAGE, 1)
"""
        path.write_bytes(b"x" * 2 * PAGE)
        assert dies_by(script) == 7
    with (
        path.open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as source,
        pytest.raises(ValueError, match="fit"),
    ):
        mm.mirror(source, 0, 2 * PAGE)


def test_seals_see_a_mirror_as_a_writable_view(mirrored: Mirrored) -> None:
    """Inheritance: a mirror alone makes F_SEAL_WRITE EBUSY; LTP memfd_create01."""
    fd = os.memfd_create("seals", MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, PAGE)
        raw = Raw(PAGE, RW, MAP_SHARED, fd)
        got = mirrored(raw.address, PAGE)
        raw.unmap()
        assert libc.fcntl(fd, 1033, 8) == -1
        assert ctypes.get_errno() == errno.EBUSY
        unmap(got, PAGE)
        checked(libc.fcntl(fd, 1033, 8))
    finally:
        os.close(fd)


def test_later_changes_are_per_view(source: Raw, mirrored: Mirrored) -> None:
    """Inheritance: mprotect and MADV_DONTNEED concern one view, MADV_REMOVE all."""
    got = mirrored(source.address, 4 * PAGE)
    checked(libc.mprotect(got, PAGE, PROT_READ))
    source.buffer[0] = 9
    assert read(got, 1) == b"\x09"
    checked(libc.madvise(got, 4 * PAGE, 4))
    assert residency.nbytes_present(got, 4 * PAGE) == 0
    assert source.buffer[PAGE] == 2
    checked(libc.madvise(source.address + PAGE, PAGE, 9))
    assert read(got + PAGE, 1) == b"\0"


def test_a_source_under_userfaultfd_waits_for_its_monitor_without_the_lock() -> None:
    """Inheritance: UFFD_FEATURE_EVENT_REMAP blocks the call until the event is read: by a Python thread here."""
    script = f"""
import ctypes, os, struct, threading, mirrormap as mm
from support import PAGE, Raw, libc
fd = libc.syscall(ctypes.c_long({USERFAULTFD.get(os.uname().machine, 282)}), 0)
if fd < 0:
    print("skip"); raise SystemExit
import fcntl
api = bytearray(struct.pack("QQQ", 0xAA, 1 << 2, 0))
try:
    fcntl.ioctl(fd, 0xC018AA3F, api)
except OSError:
    print("skip"); raise SystemExit
raw = Raw(4 * PAGE)
raw.buffer[0] = 1; raw.buffer[PAGE] = 1; raw.buffer[2 * PAGE] = 1; raw.buffer[3 * PAGE] = 1
fcntl.ioctl(fd, 0xC020AA00, bytearray(struct.pack("QQQQ", raw.address, 4 * PAGE, 1, 0)))
seen = []
monitor = threading.Thread(target=lambda: seen.append(os.read(fd, 32)), daemon=True)
monitor.start()
got = mm.mremap(raw.address, 0, 4 * PAGE, 1)
monitor.join(20)
assert seen and seen[0][0] == 0x14, seen
print("waited")
"""
    answer = succeeds(script).strip()
    if answer == "skip":
        pytest.skip("userfaultfd is not permitted here")
    assert answer == "waited"


def test_shared_futexes_wake_across_views() -> None:
    """Inheritance: FUTEX_WAKE through a mirror wakes a waiter on the source."""
    number = FUTEX.get(os.uname().machine)
    if number is None:
        pytest.skip("futex's number is not listed for this architecture")
    with Raw(PAGE) as raw, mm.mirror(raw.buffer) as view:
        call, address = libc.syscall, ctypes.c_void_p
        woken: list[int] = []
        waiter = threading.Thread(
            target=lambda: woken.append(
                call(ctypes.c_long(number), address(raw.address), 0, 0, None, None, 0)
            )
        )
        waiter.start()
        for _ in range(2000):
            if call(ctypes.c_long(number), address(view.address), 1, 1, None, None, 0) == 1:
                break
            waiter.join(0.005)
        waiter.join(10)
        assert woken == [0]
