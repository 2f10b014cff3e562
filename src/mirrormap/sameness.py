"""Which ranges of some address spaces show the same pages: the arithmetic, on what was read before.

Everything is one sort and a few running sums over all entries of all processes at once. Objects are laid
end to end on one line, so that an offset in any object is a point on it and no two objects meet.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mirrormap import kernel, procfs
from mirrormap.kernel import PAGE_NBYTES, VmaInfo, VmaTuple
from mirrormap.protections import protection_name

__all__ = ["PROTECTIONS", "MirrorGroup", "MirrorView", "Part", "Snapshot", "by_object"]

Numbers = NDArray[np.int64]
PROTECTIONS: Final = {bits: protection_name(bits) for bits in range(8)}


class MirrorView(NamedTuple):
    """One copy of an object in an address space: every byte of it at most once.

    Attributes:
        start, end: addresses, half open; what lies between may have gaps.
        offset: of the byte at `start` in the object.
        pid: the process. nbytes: bytes of the object that are shown.
        pieces: entries of the address space it takes.
        protection: "none", "r", "rw", ..., or "mixed". shared: False for MAP_PRIVATE.
        resident: bytes with page-table entries, or None.
        runs: what is shown where, as (address, offset, nbytes) in order of address; of private memory one
            run, which may have gaps.
    """

    start: int
    end: int
    offset: int
    pid: int
    nbytes: int
    pieces: int
    protection: str
    shared: bool
    resident: int | None
    runs: tuple[tuple[int, int, int], ...]


class MirrorGroup(NamedTuple):
    """Memory that is shown more than once; sizes in bytes.

    Attributes:
        name: of the object, as in /proc/PID/maps without " (deleted)", e.g. "/memfd:java_heap"; of
            private memory the entry's, e.g. "[heap]".
        nbytes: bytes of the object that are shown, each counted once.
        views: one a copy, by process and address.
        counts: how often each byte is shown, as (offset, nbytes, views) runs, where it is shown at all.
        resident: bytes that have a page in some view, each counted once. rss: bytes by which the views
            raise the RSS of their processes; 0 for hugetlb. None where the kernel does not show it.
        page_size: the kernel's page behind it.
        kind: "object"; "fork" for private pages that a fork left shared; "ksm" for equal ones merged.
        dev, inode: of the object; 0 and 0 for private memory.
    """

    name: str
    nbytes: int
    views: tuple[MirrorView, ...]
    counts: tuple[tuple[int, int, int], ...]
    resident: int | None
    rss: int | None
    page_size: int
    kind: str
    dev: int
    inode: int

    @property
    def most_views(self) -> int:
        """How often the bytes that are shown most often are shown."""
        return max(count for _, _, count in self.counts)


class Snapshot(NamedTuple):
    """One address space as it was read: entries, and stretches of its page table (or None)."""

    pid: int
    entries: list[VmaTuple]
    rows: NDArray[np.uint64] | None
    scanned: bool = True  # which tells huge entries and pages of zeros

    def residency(self) -> tuple[list[int], list[int], list[int]] | None:
        """Bytes present, swapped and under huge entries, one of each for every entry; or None."""
        if self.rows is None or not self.scanned:
            return None
        starts = np.array([vma[0] for vma in self.entries], np.uint64)
        ends = np.array([vma[1] for vma in self.entries], np.uint64)
        sorts = (kernel.PAGE_IS_PRESENT, kernel.PAGE_IS_SWAPPED, kernel.PAGE_IS_HUGE)
        present, swapped, huge = (_covered(_having(self.rows, sort), starts, ends).tolist() for sort in sorts)
        return present, swapped, huge


def _having(rows: NDArray[np.uint64], sort: int) -> NDArray[np.uint64]:
    chosen: NDArray[np.bool_] = rows[:, 2] & np.uint64(sort) != 0
    return rows[chosen]


def _covered(rows: NDArray[np.uint64], starts: NDArray[np.uint64], ends: NDArray[np.uint64]) -> Numbers:
    """How many bytes of each [start, end) lie in the rows, which are in order and do not overlap."""
    if not len(rows):
        return np.zeros(len(starts), np.int64)
    first, last = rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64)
    before = np.concatenate(([0], np.cumsum(last - first)))

    def below(addresses: NDArray[np.uint64]) -> Numbers:
        points = np.minimum(addresses, np.uint64((1 << 63) - 1)).astype(np.int64)
        index = np.searchsorted(first, points, "right")
        inside = np.clip(points - last[index - 1], None, 0)
        return np.where(index > 0, before[index] + inside, 0)

    return below(ends) - below(starts)


# --- objects -------------------------------------------------------------------------------


class Part(NamedTuple):
    """An entry of one of the snapshots that shows some of an object."""

    which: int
    vma: VmaInfo


Key = tuple[int, int, int]


def by_object(snapshots: list[Snapshot]) -> list[MirrorGroup]:
    """Groups of ranges that show the same bytes of the same object."""
    groups: list[MirrorGroup] = []
    for batch in _batches(_candidates(snapshots)):
        groups += _mirrored(snapshots, batch)
    return groups


def _mirrored(snapshots: list[Snapshot], parts: list[list[Part]]) -> list[MirrorGroup]:
    owners = np.repeat(np.arange(len(parts)), [len(each) for each in parts])
    flat = [part for each in parts for part in each]
    line = _Line(owners, flat)
    depths = _Depths(line.at, line.at + line.nbytes)
    deepest = np.zeros(len(parts), np.int64)
    np.maximum.at(deepest, line.owner_of(depths.at), depths.count)
    resident, rss, each = _resident(snapshots, flat, line)
    first = np.concatenate(([0], np.cumsum([len(each) for each in parts])))
    return [
        _group(snapshots, parts[index], line, depths, index, each[first[index] : first[index + 1]])._replace(
            resident=None if resident is None else int(resident[index]),
            rss=None if rss is None else int(rss[index]),
        )
        for index in np.flatnonzero(deepest > 1).tolist()
    ]


_LONGEST: Final = 1 << 62


def _batches(parts: list[list[Part]]) -> Iterator[list[list[Part]]]:
    """All at once, nearly always: only offsets of exbytes would make the line too long for 63 bits."""
    batch: list[list[Part]] = []
    length = 0
    for each in parts:
        span = max(part.vma.offset + part.vma.end - part.vma.start for part in each)
        if batch and length + span > _LONGEST:
            yield batch
            batch, length = [], 0
        batch.append(each)
        length += span + PAGE_NBYTES
    if batch:
        yield batch


def _candidates(snapshots: list[Snapshot]) -> list[list[Part]]:
    """Entries by object, for objects that are mapped shared and more than once."""
    nodes = procfs.device_of_nodes()
    shared: defaultdict[Key, list[Part]] = defaultdict(list)
    private: defaultdict[Key, list[Part]] = defaultdict(list)
    for which, snapshot in enumerate(snapshots):
        namespace = 0
        for row in snapshot.entries:
            if not row[7] and not row[6]:  # the first SysV segment of a system has a device and inode 0
                continue
            vma = VmaInfo._make(row)
            key = vma.dev, vma.inode, 0
            if vma.name.startswith("/SYSV"):  # its inode is its number, which a memfd may have as well
                namespace = namespace or procfs.ipc_namespace(snapshot.pid) or 1
                key = vma.dev, vma.inode, namespace
            (shared if vma.shared else private)[key].append(Part(which, vma))
    found: list[list[Part]] = []
    for key, parts in shared.items():
        name = parts[0].vma.name
        node = key[0] == nodes and not name.startswith("/dev/shm/")
        if not node and not name.startswith("anon_inode:"):  # of which there is one inode for all
            parts += private.get(key, [])
            if len(parts) > 1:
                found.append(parts)
    return found


class _Line:
    """Objects end to end: the bytes that entry i shows lie at [at[i], at[i] + nbytes[i])."""

    def __init__(self, owners: NDArray[Any], parts: list[Part]) -> None:
        count = int(owners[-1]) + 1
        self.nbytes = np.array([part.vma.end - part.vma.start for part in parts], np.int64)
        offsets = np.array([part.vma.offset for part in parts], np.int64)
        self.lowest = np.full(count, np.iinfo(np.int64).max)
        highest = np.zeros(count, np.int64)
        np.minimum.at(self.lowest, owners, offsets)
        np.maximum.at(highest, owners, offsets + self.nbytes)
        spans = highest - self.lowest + PAGE_NBYTES  # a page apart
        self.base = np.concatenate(([0], np.cumsum(spans)[:-1]))
        self.at = offsets - self.lowest[owners] + self.base[owners]
        self.owners = owners

    def owner_of(self, points: Numbers) -> NDArray[np.intp]:
        """Which object a point of the line belongs to."""
        return np.searchsorted(self.base, points, "right") - 1


class _Depths:
    """How often each stretch of a line is covered; uncovered ones are left out."""

    def __init__(self, starts: Numbers, ends: Numbers) -> None:
        points, place = np.unique(np.concatenate((starts, ends)), return_inverse=True)
        change = np.zeros(len(points), np.int64)
        np.add.at(change, place[: len(starts)], 1)
        np.add.at(change, place[len(starts) :], -1)
        keep = np.flatnonzero(change)  # where one range ends and the next begins nothing changes
        points, count = points[keep], np.cumsum(change[keep])
        covered = np.flatnonzero(count[:-1])
        self.at, self.nbytes, self.count = points[covered], np.diff(points)[covered], count[covered]

    def within(self, low: int, high: int) -> list[tuple[int, int, int]]:
        """(offset from low, nbytes, count) of the stretches between two points."""
        first, last = np.searchsorted(self.at, (low, high))
        columns = self.at[first:last] - low, self.nbytes[first:last], self.count[first:last]
        return list(zip(*(column.tolist() for column in columns), strict=True))


def _resident(
    snapshots: list[Snapshot], parts: list[Part], line: _Line
) -> tuple[Numbers | None, Numbers | None, Sequence[int | None]]:
    """Bytes of each object that have a page in some view; their share of RSS; and of each entry."""
    if any(snapshot.rows is None for snapshot in snapshots):
        return None, None, [None] * len(parts)
    count = len(line.base)
    each = np.zeros(len(parts), np.int64)
    starts: list[Numbers] = []
    ends: list[Numbers] = []
    owner = np.array([part.which for part in parts])
    for which, snapshot in enumerate(snapshots):
        mine = np.flatnonzero(owner == which)
        if not len(mine):
            continue
        vmas = [parts[index].vma for index in mine.tolist()]
        low = np.array([vma.start for vma in vmas], np.uint64)
        high = np.array([vma.end for vma in vmas], np.uint64)
        rows = snapshot.rows
        assert rows is not None
        # what a private mapping has copied is no longer the object's
        rows = _having(_having(rows, kernel.PAGE_IS_PRESENT), kernel.PAGE_IS_FILE)
        each[mine] = _covered(rows, low, high)
        first, last, which_entry = _clipped(rows, low, high)
        shift = line.at[mine] - low.astype(np.int64)
        starts.append(first + shift[which_entry])
        ends.append(last + shift[which_entry])
    small = np.array([part.vma.page_nbytes == PAGE_NBYTES for part in parts])
    rss = np.zeros(count, np.int64)
    np.add.at(rss, line.owners, np.where(small, each, 0))
    depths = _Depths(np.concatenate(starts), np.concatenate(ends))
    resident = np.zeros(count, np.int64)
    np.add.at(resident, line.owner_of(depths.at), depths.nbytes)
    return resident, rss, each.tolist()


def _clipped(
    rows: NDArray[np.uint64], low: NDArray[np.uint64], high: NDArray[np.uint64]
) -> tuple[Numbers, Numbers, NDArray[np.intp]]:
    """Every meeting of a row and a range [low, high): its start and end, and which range."""
    first = np.searchsorted(rows[:, 1], low, "right")
    count: NDArray[np.intp] = np.searchsorted(rows[:, 0], high, "left") - first
    which = np.repeat(np.arange(len(low)), count)
    row: NDArray[np.intp] = (
        np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count) + first[which]
    )
    start = np.maximum(rows[row, 0], low[which]).astype(np.int64)
    end = np.minimum(rows[row, 1], high[which]).astype(np.int64)
    return start, end, which


def _group(
    snapshots: list[Snapshot],
    parts: list[Part],
    line: _Line,
    depths: _Depths,
    index: int,
    resident: Sequence[int | None],
) -> MirrorGroup:
    low, lowest = int(line.base[index]), int(line.lowest[index])
    high = int(line.base[index + 1]) if index + 1 < len(line.base) else np.iinfo(np.int64).max
    counts = tuple((at + lowest, nbytes, count) for at, nbytes, count in depths.within(low, high))
    vma = parts[0].vma
    return MirrorGroup(
        name=vma.name.removesuffix(" (deleted)"),
        nbytes=sum(nbytes for _, nbytes, _ in counts),
        views=tuple(_copies(snapshots, zip(parts, resident, strict=True))),
        counts=counts,
        resident=None,
        rss=None,
        page_size=vma.page_nbytes,
        kind="object",
        dev=vma.dev,
        inode=vma.inode,
    )


def _copies(snapshots: list[Snapshot], parts: Iterable[tuple[Part, int | None]]) -> Iterator[MirrorView]:
    """Entries merged to views: in order of address, a byte that was shown already begins the next copy."""
    copy: _Copy | None = None
    for part, resident in sorted(parts, key=_by_address):
        if copy is None or not copy.takes(part):
            if copy is not None:
                yield copy.view(snapshots)
            copy = _Copy(part)
        copy.add(part.vma, resident)
    if copy is not None:
        yield copy.view(snapshots)


def _by_address(item: tuple[Part, int | None]) -> tuple[int, int]:
    return item[0].which, item[0].vma.start


class _Copy:
    """A view in the making, and which bytes of the object it shows already."""

    __slots__ = ("bits", "end", "first", "nbytes", "pieces", "resident", "runs", "taken")

    def __init__(self, first: Part) -> None:
        self.first = first
        self.taken: list[tuple[int, int]] = []  # (start, end) in the object, in order, not touching
        self.runs: list[tuple[int, int, int]] = []
        self.nbytes = self.pieces = 0
        self.bits: int | None = first.vma.protection
        self.resident: int | None = 0

    def takes(self, part: Part) -> bool:
        """Is this of the same process and kind, and nothing that is shown already?"""
        which, vma = part
        if which != self.first.which or vma.shared != self.first.vma.shared:
            return False
        start, end = vma.offset, vma.offset + vma.end - vma.start
        index = bisect.bisect_right(self.taken, (start, start))
        if index and self.taken[index - 1][1] > start:
            return False
        return index == len(self.taken) or self.taken[index][0] >= end

    def add(self, vma: VmaInfo, resident: int | None) -> None:
        """Take it in; takes() said yes, or it is the first."""
        start, end = vma.offset, vma.offset + vma.end - vma.start
        index = bisect.bisect_right(self.taken, (start, start))
        if index and self.taken[index - 1][1] == start:  # goes on where the last one ended
            self.taken[index - 1] = self.taken[index - 1][0], end
        else:
            self.taken.insert(index, (start, end))
        run = vma.start, start, end - start
        if self.runs:
            at, offset, nbytes = self.runs[-1]
            if at + nbytes == vma.start and offset + nbytes == start:
                self.runs.pop()
                run = at, offset, nbytes + end - start
        self.runs.append(run)
        self.end = vma.end
        self.nbytes += end - start
        self.pieces += 1
        if vma.protection != self.bits:
            self.bits = None
        if self.resident is not None:
            self.resident = None if resident is None else self.resident + resident

    def view(self, snapshots: list[Snapshot]) -> MirrorView:
        """As it stands now."""
        which, vma = self.first
        return MirrorView(
            vma.start, self.end, vma.offset, snapshots[which].pid, self.nbytes, self.pieces,
            "mixed" if self.bits is None else PROTECTIONS[self.bits], vma.shared, self.resident,
            tuple(self.runs),
        )  # fmt: skip
