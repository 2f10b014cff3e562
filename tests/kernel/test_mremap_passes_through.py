"""mremap() without mirroring: the kernel's call with the kernel's errno, replayed from LTP and the selftests."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import mirrormap as mm
from support import (
    MAP_ANONYMOUS,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    MFD_HUGETLB,
    PAGE,
    PROT_NONE,
    PROT_READ,
    RW,
    Raw,
    dies_by,
    is_mapped,
    protections,
    read,
    unmap,
    write,
)  # fmt: skip

M, X, D = mm.MREMAP_MAYMOVE, mm.MREMAP_FIXED, mm.MREMAP_DONTUNMAP
PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS


def refused(number: int | tuple[int, ...], *arguments: int) -> None:
    with pytest.raises(mm.MapError) as caught:
        mm.mremap(*arguments)
    assert caught.value.errno in (number if isinstance(number, tuple) else (number,))


def test_a_file_mapping_grows_and_syncs(tmp_path: Path) -> None:
    """LTP mremap01."""
    path = tmp_path / "file"
    path.write_bytes(b"\0" * 2000 * PAGE)
    with path.open("r+b") as file:
        raw = Raw(1000 * PAGE, RW, MAP_SHARED, file.fileno())
        got = mm.mremap(raw.address, 1000 * PAGE, 2000 * PAGE, M)
        for index in range(2000):
            write(got + index * PAGE, b"a")
        unmap(got, 2000 * PAGE)
    assert path.read_bytes()[::PAGE] == b"a" * 2000


def test_unaligned_unmapped_and_no_room() -> None:
    """LTP mremap02, 03, 04; gVisor InPlace_Expansion failure."""
    with Raw(4 * PAGE) as raw:
        refused(errno.EINVAL, raw.address + PAGE - 1, PAGE, 2 * PAGE, M)
        refused(errno.ENOMEM, raw.address, 2 * PAGE, 3 * PAGE, 0)
    refused(errno.EFAULT, raw.address, PAGE, 2 * PAGE, M)


def test_rules_of_fixed() -> None:
    """LTP mremap05: not without MAYMOVE, aligned, not onto the source; free and occupied targets."""
    with Raw(2 * PAGE) as raw, Raw(2 * PAGE) as taken:
        refused(errno.EINVAL, raw.address, PAGE, PAGE, X, taken.address)
        refused(errno.EINVAL, raw.address, PAGE, PAGE, M | X, taken.address + 1)
        refused(errno.EINVAL, raw.address, 2 * PAGE, PAGE, M | X, raw.address)
        raw.buffer[0] = 5
        taken.buffer[0] = 6
        assert mm.mremap(raw.address, 2 * PAGE, 2 * PAGE, M | X, taken.address) == taken.address
        assert taken.buffer[0] == 5
        assert not is_mapped(raw.address)
        Raw(2 * PAGE, at=raw.address)
    with pytest.raises(ValueError, match="new_address"):
        mm.mremap(taken.address, PAGE, PAGE, M | X)


@pytest.mark.parametrize("protected", [None, 2, 0])
def test_a_page_moved_away_and_back_keeps_the_order(protected: int | None, tmp_path: Path) -> None:
    """LTP mremap06."""
    path = tmp_path / "file"
    path.write_bytes(b"".join(bytes([index]) * PAGE for index in range(4)))
    with path.open("r+b") as file, Raw(4 * PAGE, RW, MAP_SHARED, file.fileno()) as raw:
        third = raw.address + 3 * PAGE
        unmap(third, PAGE)
        mm.mremap(raw.address + PAGE, PAGE, PAGE, M | X, third)
        if protected is not None:
            raw.protect(protected * PAGE, PAGE, PROT_READ)
        mm.mremap(third, PAGE, PAGE, M | X, raw.address + PAGE)
        assert [read(raw.address + index * PAGE, 1)[0] for index in range(3)] == [0, 1, 2]
        Raw(PAGE, at=third)


def test_overlapping_moves_are_invalid_and_moves_keep_their_bytes() -> None:
    """kselftest mremap_test: overlap, misaligned, moves of 2 pages, 2 MiB and 5 MiB."""
    with Raw(8 * PAGE, flags=PRIVATE) as raw:
        refused(errno.EINVAL, raw.address, 2 * PAGE, 2 * PAGE, M | X, raw.address + PAGE)
        refused(errno.EINVAL, raw.address, 2 * PAGE, 2 * PAGE, M | X, raw.address + 4 * PAGE + PAGE // 4)
    for nbytes in (2 * PAGE, 2 << 20, 5 << 20):
        raw = Raw(nbytes, flags=PRIVATE)
        raw.buffer[0], raw.buffer[nbytes - 1] = 1, 2
        with Raw(nbytes, PROT_NONE, PRIVATE) as target:
            mm.mremap(raw.address, nbytes, nbytes, M | X, target.address)
            assert (read(target.address, 1), read(target.address + nbytes - 1, 1)) == (b"\1", b"\2")


def test_growing_into_a_hole_stays_and_merges() -> None:
    """kselftest mremap_test: expand and merge; gVisor InPlace_Expansion."""
    with Raw(3 * PAGE, flags=PRIVATE) as raw:
        unmap(raw.address + PAGE, PAGE)
        assert mm.mremap(raw.address, PAGE, 2 * PAGE, 0) == raw.address
        assert len(protections(raw.address, 3 * PAGE)) in (1, 2)


def test_moves_over_several_mappings_work_or_are_efault() -> None:
    """kselftest mremap_test: multi-VMA moves, Linux 6.17."""
    with Raw(3 * PAGE, flags=PRIVATE) as raw, Raw(3 * PAGE, PROT_NONE, PRIVATE) as target:
        raw.protect(PAGE, PAGE, PROT_READ)
        try:
            assert mm.mremap(raw.address, 3 * PAGE, 3 * PAGE, M | X, target.address) == target.address
            Raw(3 * PAGE, at=raw.address)
        except mm.MapError as error:
            assert error.errno == errno.EFAULT


def test_shrinking_in_place_keeps_the_front() -> None:
    """gVisor InPlace_Shrinking, whole and across entries."""
    with Raw(4 * PAGE) as raw:
        raw.buffer[0] = 3
        raw.protect(2 * PAGE, PAGE, PROT_READ)
        assert mm.mremap(raw.address, 4 * PAGE, PAGE, 0) == raw.address
        assert raw.buffer[0] == 3
        assert not is_mapped(raw.address + PAGE, 3 * PAGE)


def test_growing_shared_memory_past_its_object_is_the_kernel_s_sigbus() -> None:
    """gVisor SharedAnon: it passes through as it is; Mapping.resize is the way that grows the object."""
    script = """
import mirrormap as mm
from support import Raw, PAGE, read
raw = Raw(PAGE)
got = mm.mremap(raw.address, PAGE, 2 * PAGE, mm.MREMAP_MAYMOVE)
read(got + PAGE, 1)
"""
    assert dies_by(script) == 7


def test_dontunmap() -> None:
    """kselftest mremap_dontunmap: private (source reads zeros), shared (both alias, 5.13), invalid combinations."""
    with Raw(2 * PAGE, flags=PRIVATE) as raw:
        raw.buffer[0] = 9
        got = mm.mremap(raw.address, 2 * PAGE, 2 * PAGE, M | D)
        assert (read(got, 1), raw.buffer[0]) == (b"\x09", 0)
        unmap(got, 2 * PAGE)
        refused(errno.EINVAL, raw.address, 2 * PAGE, 2 * PAGE, D)
        refused(errno.EINVAL, raw.address, 2 * PAGE, PAGE, M | D)
        refused(errno.EINVAL, raw.address, PAGE, PAGE, M | 64)
        refused(errno.EINVAL, raw.address, PAGE, 0, M)
    with Raw(2 * PAGE) as raw:
        raw.buffer[0] = 9
        try:
            got = mm.mremap(raw.address, 2 * PAGE, 2 * PAGE, M | D)
        except mm.MapError as error:
            assert error.errno == errno.EINVAL
            return
        assert read(got, 1) == b"\x09"
        assert raw.buffer[0] == 9
        unmap(got, 2 * PAGE)


def test_huge_pages_shrink_move_and_grow(huge: int) -> None:
    """kselftest hugetlb-mremap; libhugetlbfs mremap-expand: the kernel refuses growth, this call does not."""
    from mirrormap import kernel

    for flags in (MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB,):
        raw = Raw(2 * huge, flags=flags)
        raw.buffer[0], raw.buffer[huge] = 1, 2
        with pytest.raises(mm.MapError) as caught:
            kernel.mremap(raw.address, 2 * huge, 4 * huge, M)
        assert caught.value.errno == errno.EINVAL
        got = mm.mremap(raw.address, 2 * huge, 4 * huge, M)
        assert (read(got, 1), read(got + huge, 1)) == (b"\1", b"\2")
        write(got + 3 * huge, b"z")
        assert mm.mremap(got, 4 * huge, huge, 0) == got
        with Raw(2 * huge, PROT_NONE, PRIVATE) as window:
            target = window.address + -window.address % huge
            assert mm.mremap(got, huge, huge, M | X, target) == target
            assert read(target, 1) == b"\1"
            Raw(huge, PROT_NONE, PRIVATE, at=target)


def test_two_maps_of_a_huge_memfd_see_each_other(huge: int) -> None:
    """LTP hugemmap31; memfd_create03: a short munmap is EINVAL."""
    fd = os.memfd_create("huge", MFD_HUGETLB)
    try:
        os.ftruncate(fd, huge)
        with Raw(huge, RW, MAP_SHARED, fd) as one, Raw(huge, RW, MAP_SHARED, fd) as two:
            one.buffer[5] = 7
            assert two.buffer[5] == 7
            with pytest.raises(OSError, match="Invalid argument"):
                unmap(one.address, PAGE)
    finally:
        os.close(fd)


def test_populate_facts() -> None:
    """kselftest madv_populate: per view, holes are ENOMEM."""
    with mm.Pages(4 * PAGE) as pages, pages.map() as one, pages.map() as two:
        one.populate()
        assert (one.resident, two.resident) == (4 * PAGE, 0)
    with mm.Pages(PAGE) as pages, pages.map(protection="r") as view:
        view.populate()
        assert view.resident == PAGE


def test_noreplace_is_eexist_over_any_overlap() -> None:
    """kselftest map_fixed_noreplace; LTP mmap17."""
    with Raw(5 * PAGE, PROT_NONE, PRIVATE) as taken, mm.Pages(3 * PAGE) as pages:
        for start in (taken.address, taken.address + PAGE, taken.address - PAGE, taken.address + 4 * PAGE):
            with pytest.raises(mm.MapError) as caught:
                pages.map(address=start)
            assert caught.value.errno == errno.EEXIST
