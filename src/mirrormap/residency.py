"""What this process's page table holds: which pages are there, huge, written, and in which frames.

mincore(2) cannot tell: it asks about the object. PAGEMAP_SCAN does, before Linux 6.7 /proc/self/pagemap,
eight bytes a page.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mirrormap import kernel, procmaps
from mirrormap.kernel import PAGE_NBYTES

__all__ = [
    "frames",
    "nbytes_huge",
    "nbytes_present",
    "nbytes_present_if_cheap",
    "present_stretches",
    "private_ranges",
    "stretches_read",
    "words",
]

_PAGEMAP: Final = "/proc/self/pagemap"
_STEP_PAGES: Final = 1 << 15
_PRESENT: Final = np.uint64(63)  # bits of an entry, by number
_SWAPPED: Final = np.uint64(62)
_OF_OBJECT: Final = np.uint64(61)
_GUARD: Final = np.uint64(58)  # of MADV_GUARD_INSTALL, beside 62, although nothing was swapped
_FRAME: Final = np.uint64((1 << 55) - 1)
_ONE: Final = np.uint64(1)
_SORTS: Final = {
    _PRESENT: kernel.PAGE_IS_PRESENT,
    _SWAPPED: kernel.PAGE_IS_SWAPPED,
    _OF_OBJECT: kernel.PAGE_IS_FILE,
}
_THERE: Final = np.uint64(kernel.PAGE_IS_PRESENT | kernel.PAGE_IS_SWAPPED)
_IN_PASSING_NBYTES: Final = 1 << 30


def nbytes_present(address: int, nbytes: int) -> int:
    """Bytes of [address, address + nbytes), widened to whole pages, that have page-table entries."""
    start, end = _pages(address, nbytes)
    with procmaps.opened(_PAGEMAP) as fd:
        if (scanned := _scanned(fd, start, end)) is not None:
            return scanned[0]
        return _count(fd, start, end)


def nbytes_present_if_cheap(address: int, nbytes: int) -> int | None:
    """The same of whole pages, or None where the table would have to be read."""
    try:
        with procmaps.opened(_PAGEMAP) as fd:
            return kernel.pagemap_scan(fd, address, address + nbytes)[0]
    except OSError:
        return None


def nbytes_huge(address: int, nbytes: int) -> int:
    """How much of `nbytes_present` huge entries map; before Linux 6.7 by smaps, entry by entry of maps."""
    start, end = _pages(address, nbytes)
    with procmaps.opened(_PAGEMAP) as fd:
        if (scanned := _scanned(fd, start, end)) is not None:
            return scanned[1]
        return min(_count(fd, start, end), _huge_by_smaps(start, end))


def present_stretches(address: int, nbytes: int) -> list[tuple[int, int]]:
    """Stretches of a range that have page-table entries, as (byte in the range, nbytes).

    Before Linux 6.7 empty for more than a GiB: reading the table of it takes too long for looking at
    something in passing.
    """
    steps: list[NDArray[np.uint64]] = []
    at, end = address, address + nbytes
    with procmaps.opened(_PAGEMAP) as fd:
        while at < end:
            try:
                step, at = kernel.pagemap_stretches(fd, at, end)
            except OSError:
                if nbytes > _IN_PASSING_NBYTES:
                    return []
                steps, at = [stretches_read(fd, address, end)], end
            else:
                steps.append(np.frombuffer(step, np.uint64).reshape(-1, 3))
    return [
        (start - address, stop - start)
        for step in steps
        for start, stop, sort in step.tolist()
        if sort & kernel.PAGE_IS_PRESENT
    ]


def frames(address: int, nbytes: int) -> list[int] | None:
    """Physical frame number of every page; 0 where there is no entry. None without CAP_SYS_ADMIN."""
    numbers: list[int] = []
    some = False
    with procmaps.opened(_PAGEMAP) as fd:
        for _, part in _read(fd, address, address + nbytes):
            present = part >> _PRESENT
            some = some or bool(present.any())
            numbers += ((part & _FRAME) * present).tolist()
    return None if some and not any(numbers) else numbers


def private_ranges(address: int, nbytes: int) -> list[tuple[int, int]]:
    """Which bytes of a private view of an object lie on pages of its own, because they were written.

    Pagemap bits: 63 present or 62 swapped, and not 61, which says that the page is the object's.
    Returns: [first, last) from `address` on; where pagemap cannot be read, the whole.
    """
    found: list[tuple[int, int]] = []
    try:
        with procmaps.opened(_PAGEMAP) as fd:
            for start, part in _read(fd, address, address + nbytes):
                written = (
                    (part >> _SWAPPED != 0) & (part >> _OF_OBJECT & _ONE == 0) & (part >> _GUARD & _ONE == 0)
                )
                edges = np.flatnonzero(np.diff(written, prepend=False, append=False)) * PAGE_NBYTES
                edges += start - address
                found += zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    except OSError:
        return [(0, nbytes)]
    return found


def stretches_read(fd: int, start: int, end: int) -> NDArray[np.uint64]:
    """What an open pagemap tells of [start, end).

    Returns: uint64, shape ``(n, 3)``: start, end, bits PAGE_IS_PRESENT, _SWAPPED and _FILE, by address.
    """
    told = words(fd, start // PAGE_NBYTES, (end - start) // PAGE_NBYTES)
    sorts = np.zeros(len(told), np.uint64)
    for bit, sort in _SORTS.items():
        sorts |= (told >> bit & _ONE) * np.uint64(sort)
    sorts[told >> _GUARD & _ONE != 0] = 0
    edges = np.concatenate((np.zeros(1, np.intp), np.flatnonzero(np.diff(sorts)) + 1, [len(sorts)]))
    rows = np.empty((len(edges) - 1, 3), np.uint64)
    rows[:, 0] = start + edges[:-1] * PAGE_NBYTES
    rows[:, 1] = start + edges[1:] * PAGE_NBYTES
    rows[:, 2] = sorts[edges[:-1]] if len(sorts) else 0
    there: NDArray[np.uint64] = rows[rows[:, 2] & _THERE != 0]
    return there


def words(fd: int, first: int, count: int) -> NDArray[np.uint64]:
    """Entries of a table of eight bytes a page; fewer where it ends."""
    return np.frombuffer(os.pread(fd, count * 8, first * 8), np.uint64)


def _scanned(fd: int, start: int, end: int) -> tuple[int, int] | None:
    """Bytes present, and those of them that are huge; None where nothing scans."""
    try:
        return kernel.pagemap_scan(fd, start, end)
    except OSError as error:
        if error.errno not in procmaps.NO_IOCTL:
            raise
    return None


def _count(fd: int, start: int, end: int) -> int:
    return sum(int((part >> _PRESENT).sum()) for _, part in _read(fd, start, end)) * PAGE_NBYTES


def _pages(address: int, nbytes: int) -> tuple[int, int]:
    return address & -PAGE_NBYTES, (address + nbytes + PAGE_NBYTES - 1) & -PAGE_NBYTES


def _read(fd: int, start: int, end: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """A part of the table at a time, each with the address where it begins."""
    step = _STEP_PAGES * PAGE_NBYTES
    for at in range(start, end, step):
        yield at, words(fd, at // PAGE_NBYTES, (min(end, at + step) - at) // PAGE_NBYTES)


_HUGE_LINE = re.compile(
    r"(?:AnonHugePages|ShmemPmdMapped|FilePmdMapped|Shared_Hugetlb|Private_Hugetlb): +(\d+) kB"
)


def _huge_by_smaps(start: int, end: int) -> int:
    nbytes, inside = 0, False
    with open("/proc/self/smaps", errors="replace") as file:
        for line in file:
            if (entry := procmaps.ENTRY_LINE.fullmatch(line.rstrip("\n"))) is not None:
                inside = int(entry[1], 16) < end and int(entry[2], 16) > start
            elif inside and (huge := _HUGE_LINE.match(line)) is not None:
                nbytes += int(huge[1]) << 10
    return nbytes
