"""The one routine that puts pages at addresses: reserve a window, place runs in it, or undo.

An arrangement is a list of runs laid side by side. A ring is the same run twice, stitched
arrays are runs of several objects, a mirror of a plain mapping is one run. Nothing here maps
over a range it has not reserved itself.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mirrormap import kernel, procmaps
from mirrormap.backing import Backing
from mirrormap.errors import MapError
from mirrormap.kernel import PAGE_NBYTES, Region
from mirrormap.units import format_nbytes

__all__ = ["Arrangement", "Run", "fill", "place", "reserve", "settle"]


class Run(NamedTuple):
    """Consecutive pages of one object.

    Attributes:
        backing: the object, or None for memory known only by an address that shows it.
        offset: of the first byte in the object.
        nbytes: bytes shown; only the last run of an arrangement may end inside a page.
        protection: PROT_* bits.
        page_nbytes: the page size behind it.
        source: an address that shows the same pages, for runs without a backing.
        source_protection: what is allowed there, and so in the mirror before it is changed.
        notes_writes: a file: the first store to each page must fault, whatever is populated.
    """

    backing: Backing | None
    offset: int
    nbytes: int
    protection: int
    page_nbytes: int = PAGE_NBYTES
    source: int = 0
    source_protection: int = 0
    notes_writes: bool = False

    @property
    def room(self) -> int:
        """Bytes of address space it takes: whole pages (round_up, without the price of a call)."""
        return (self.nbytes + self.page_nbytes - 1) & -self.page_nbytes

    def part(self, start: int, nbytes: int, protection: int | None = None) -> Run:
        """Bytes [start, start + nbytes) of the run, with another protection if one is given."""
        return self._replace(
            offset=self.offset + start,
            nbytes=nbytes,
            protection=self.protection if protection is None else protection,
            source=self.source + start if self.source else 0,
        )

    def continues(self, other: Run) -> bool:
        """Does it go on where `other` ends, so that both are one run?

        Memory known only by address stays in the pieces it was found in: one mremap over two entries
        of the address space would show the first one's object for both.
        """
        return (
            self.offset == other.offset + other.nbytes
            and self.protection == other.protection
            and self.backing is other.backing
            and self.backing is not None
        )


class Arrangement:
    """The runs a region shows, in order of address. Not thread-safe: its Mapping holds a lock.

    Attributes:
        nbytes: bytes shown by all runs together.
        room: bytes of address space they take.
        page_nbytes: the largest page size among them.
        protection: PROT_* bits that all runs share, or None where they differ.
    """

    __slots__ = ("_common", "_runs", "nbytes", "page_nbytes", "protection", "room")

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs

    @property
    def runs(self) -> Sequence[Run]:
        """Replaced as a whole, never changed in place."""
        return self._runs

    @runs.setter
    def runs(self, runs: Sequence[Run]) -> None:
        nbytes = room = page = some = 0
        common = runs[0].protection
        for run in runs:
            nbytes += run.nbytes
            room += run.room
            if run.page_nbytes > page:
                page = run.page_nbytes
            common &= run.protection
            some |= run.protection
        self._runs, self._common = runs, common
        self.nbytes, self.room, self.page_nbytes = nbytes, room, page
        self.protection = common if common == some else None

    def part(self, start: int, nbytes: int, address: int, protection: int | None = None) -> list[Run]:
        """The runs under [start, start + nbytes), for showing them once more.

        Args: address: of the region that shows the arrangement: runs without a backing are
            mirrored from there.
        """
        found: list[Run] = []
        at = 0
        for run in self.runs:
            first, last = max(start, at), min(start + nbytes, at + run.nbytes)
            if first < last:
                piece = run.part(first - at, last - first, protection)
                if piece.backing is None:
                    piece = piece._replace(source=address + first)
                found.append(piece)
            at += run.nbytes
        return found

    def stretches(self, backing: Backing) -> Iterator[tuple[int, int, int]]:
        """Where the object's bytes are shown: (byte in the region, offset in the object, nbytes)."""
        at = 0
        for run in self.runs:
            if run.backing is backing:
                yield at, run.offset, run.nbytes
            at += run.nbytes

    def protect(self, start: int, nbytes: int, protection: int) -> None:
        """Note that [start, start + nbytes) has another protection now."""
        self.runs = _joined(
            [
                *self.part(0, start, 0),
                *self.part(start, nbytes, 0, protection),
                *self.part(start + nbytes, self.nbytes - start - nbytes, 0),
            ]
        )

    @property
    def is_plain(self) -> bool:
        """One stretch of one object, whatever protections its parts have?"""
        return all(
            after.backing is before.backing and after.offset == before.offset + before.nbytes
            for before, after in itertools.pairwise(self.runs)
        )

    def check_thawed(self, start: int = 0, nbytes: int | None = None) -> None:
        """Raises: MirrorError while a snapshot of the range (the whole by default) is open."""
        for run in self.runs if nbytes is None else self.part(start, nbytes, 0):
            if run.backing is not None and run.backing.frozen:
                run.backing.check_thawed(run.offset, run.room)

    def allows(self, bit: int, start: int = 0, nbytes: int | None = None) -> bool:
        """Do all runs under the range (the whole by default) have this PROT_* bit?"""
        if nbytes is None:
            return bool(self._common & bit)
        return all(run.protection & bit for run in self.part(start, nbytes, 0))


def _joined(runs: Sequence[Run]) -> list[Run]:
    joined: list[Run] = []
    for run in runs:
        if joined and run.continues(joined[-1]):
            last = joined[-1]
            joined[-1] = last._replace(nbytes=last.nbytes + run.nbytes)
        else:
            joined.append(run)
    return joined


# --- windows -------------------------------------------------------------------------------


def reserve(
    nbytes: int, page_nbytes: int, *, offset: int = 0, address: int | None = None, label: str = ""
) -> Region:
    """A window for pages of this size, placed so that huge page-table entries are possible.

    Those need address and object offset to agree modulo the size one entry maps; a window off by
    one page populated 700 times slower than an aligned one.

    Args: offset: of the first byte shown, in its object. address: a page multiple, or None.
    """
    if address is not None:
        return kernel.reserve(nbytes, address=address, label=label)
    alignment = page_nbytes
    if nbytes >= (pmd := procmaps.pmd_nbytes()):
        alignment = max(alignment, pmd)
    return kernel.reserve(nbytes, alignment=alignment, skew=offset % alignment, label=label)


def place(
    runs: Sequence[Run],
    *,
    label: str,
    window_nbytes: int = 0,
    address: int | None = None,
) -> Region:
    """Show `runs` side by side in a new region.

    Args: window_nbytes: address space to reserve, for growth in place; at least the runs'.
        address: of the first byte, a multiple of the largest page size, where nothing is mapped.
    Returns: a region whose `keep` is the Arrangement, ready to export buffers.
    Raises: MapError EEXIST for an occupied address; ENOMEM with the limit or the pool that is
        used up, and its cure; whatever the kernel says to the single runs.
    """
    runs = _joined(runs)
    arrangement = Arrangement(runs)
    arrangement.check_thawed()
    room = arrangement.room
    window_nbytes = max(room, window_nbytes)
    first = runs[0]
    try:
        _check_map_count(len(runs))
        if (
            len(runs) == 1
            and first.backing is not None
            and address is None
            and window_nbytes == room
            and (first.page_nbytes > PAGE_NBYTES or room < procmaps.pmd_nbytes())
        ):
            region = kernel.map_anywhere(room, first.protection, first.backing.fd, first.offset, label)
            settle(region, 0, first)
        else:
            region = reserve(
                window_nbytes, arrangement.page_nbytes, offset=first.offset, address=address, label=label
            )
            fill(region, 0, runs, label)
    except MapError as error:
        raise explained(error, arrangement) from None
    _finish(region, arrangement)
    return region


def fill_window(region: Region, runs: Sequence[Run], label: str) -> None:
    """Show `runs` in a region that is a bare window so far."""
    arrangement = Arrangement(_joined(runs))
    arrangement.check_thawed()
    fill(region, 0, arrangement.runs, label)
    _finish(region, arrangement)


def _finish(region: Region, arrangement: Arrangement) -> None:
    region.keep = arrangement
    noted = None
    for run in arrangement.runs:
        if run.backing is not None and run.backing is not noted:
            noted = run.backing
            noted.note(region)
    show(region, arrangement)


def fill(region: Region, at: int, runs: Sequence[Run], label: str) -> None:
    """Place `runs` from byte `at` of a region on. What was placed is taken out again on failure."""
    start = at
    try:
        for run in runs:
            room = run.room
            _put(region, at, run, room, label)
            at += room
    except BaseException:
        with contextlib.suppress(MapError, BufferError, ValueError):
            if start == 0:
                region.close()
            elif at > start:
                region.vacate(start, at - start)
        raise


def show(region: Region, arrangement: Arrangement) -> None:
    """Let buffers of the region show the arrangement."""
    region.expose(
        arrangement.nbytes,
        arrangement.allows(kernel.PROT_READ),
        arrangement.allows(kernel.PROT_WRITE),
    )


def _put(region: Region, at: int, run: Run, room: int, label: str) -> None:
    backing = run.backing
    if backing is None:
        kernel.remap_alias(region, at, room, run.source, label)
        if run.source_protection != run.protection:
            kernel.mprotect(region, at, room, run.protection, label)
    elif run.page_nbytes > PAGE_NBYTES:
        # A MAP_FIXED that finds the pool short has unmapped its target by then. The same
        # mapping made anywhere first takes the reservation, which belongs to the object.
        rehearsal = kernel.map_anywhere(room, run.protection, backing.fd, run.offset, label)
        try:
            kernel.map_over(region, at, room, run.protection, backing.fd, run.offset, label)
        finally:
            kernel.unmap(rehearsal, label)
    else:
        kernel.map_over(region, at, room, run.protection, backing.fd, run.offset, label)
    settle(region, at, run)


def settle(region: Region, at: int, run: Run) -> None:
    """Hints for a run that has just been placed."""
    backing, room = run.backing, run.room
    if backing is not None:
        if backing.kind.transparent:
            kernel.advise_quietly(region, at, room, kernel.MADV_HUGEPAGE)
        if backing.takes_dump(region, run.offset, run.nbytes):
            return
    kernel.advise_quietly(region, at, room, kernel.MADV_DONTDUMP)


# --- refusals ------------------------------------------------------------------------------


def _check_map_count(count: int) -> None:
    """Refuse an arrangement of very many pieces before half of it is mapped."""
    if count < 256:
        return
    used, limit = procmaps.map_count(), procmaps.max_map_count()
    if used + count > limit - 16:
        raise MapError(
            errno.ENOMEM,
            call="mmap",
            advice=f"The arrangement needs {count:,} mappings, and {used:,} of {limit:,} are used: "
            f"use fewer, longer runs, or `sysctl -w vm.max_map_count={used + count + limit}`",
        )


def explained(error: MapError, arrangement: Arrangement) -> MapError:
    """The same failure with the pool or limit that caused it, where that can be told."""
    if error.errno != errno.ENOMEM or error.advice:
        return error
    huge = next((run for run in arrangement.runs if run.page_nbytes > PAGE_NBYTES), None)
    try:
        if huge is not None and error.call == "mmap":
            advice = _pool_advice(huge.page_nbytes, arrangement)
        else:
            advice = procmaps.advice_for_enomem(error.nbytes)
    except (MemoryError, OSError):  # not even enough left to look
        return error
    return type(error)(errno.ENOMEM, call=error.call, nbytes=error.nbytes, label=error.label, advice=advice)


def _pool_advice(page_nbytes: int, arrangement: Arrangement) -> str:
    pool = procmaps.huge_pool(page_nbytes)
    needed = sum(run.room for run in arrangement.runs if run.page_nbytes == page_nbytes) // page_nbytes
    missing = max(1, needed - pool.available)
    return (
        f"The pool of {format_nbytes(page_nbytes)} pages is too short: {pool.available} free, up to "
        f"{needed} needed. Reserve more as root: `echo {pool.total + missing} > {pool.path}`"
    )


def find_backings(region: Region, arrangement: Arrangement) -> None:
    """Turn memory known by address into pages of an object, which alone can be lengthened.

    mremap would "grow" it too, into a range where every touch is a SIGBUS.
    """
    found: dict[tuple[int, int], Backing] = {}
    runs: list[Run] = []
    at = region.address
    with procmaps.AddressSpace() as space:
        for run in arrangement.runs:
            vma = space.at(at)
            assert vma is not None
            key = vma.dev, vma.inode
            if key not in found:
                found[key] = Backing.behind(vma, write=True)
            runs.append(run._replace(backing=found[key], source=0))
            at += run.nbytes
    arrangement.runs = runs
    for backing in found.values():
        backing.note(region)
