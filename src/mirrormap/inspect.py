"""Which memory is mirrored, and what it truly costs: of this process, another, or several together.

Two ranges show the same pages when they map the same bytes of the same object: device, inode and offset,
which /proc/PID/maps tells whoever may look. Private memory has no object; its pages are the same when
their physical frames are, which only root is told (KSM, and what a fork left shared).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, overload

from mirrormap import frames as physical
from mirrormap import pagetables, procfs, procmaps, sameness
from mirrormap.errors import MirrorError
from mirrormap.sameness import PROTECTIONS, MirrorGroup, MirrorView, Snapshot
from mirrormap.units import format_nbytes

__all__ = ["Footprint", "MirrorGroup", "MirrorView", "Mirrors", "Vma", "mappings", "mirrors"]

Pid = int | str
Progress = Callable[[int, int], None]

_FRAMES: Final = (
    "physical frames are shown to root only (CAP_SYS_ADMIN): private memory that is shared, by KSM or "
    "since a fork, is not looked for"
)
_RESIDENCY: Final = "what is resident is not shown: this kernel or sandbox hides the page table"


class Vma(NamedTuple):
    """One entry of an address space; sizes in bytes.

    Attributes:
        start, end: addresses, half open.
        protection: "none", "r", "rw", "rx", ...
        shared: MAP_SHARED: writes are seen by everybody who maps the object.
        offset: of `start` inside the object.
        dev, inode: the object; 0 and 0 for private anonymous memory.
        name: as in /proc/PID/maps; "" for none.
        page_size: the kernel's page behind it, which is larger for hugetlb.
        resident: with page-table entries. swapped: in swap. huge: of `resident`, under huge entries.
            None where the kernel does not show it.
    """

    start: int
    end: int
    protection: str
    shared: bool
    offset: int
    dev: int
    inode: int
    name: str
    page_size: int
    resident: int | None
    swapped: int | None
    huge: int | None

    @property
    def nbytes(self) -> int:
        """Bytes of address space."""
        return self.end - self.start


class Footprint(NamedTuple):
    """What one process costs, in bytes, as the kernel counts.

    Attributes:
        pid, name: which process.
        rss: counts a page once for every view, hugetlb not at all.
        pss: counts a page as often as it has views, and divides by all views of all processes.
        uss: pages that nobody else has, and no other view.
        swap: in swap. huge: under transparent huge page-table entries. hugetlb: in hugetlb pages.
        page_tables: the page-table pages themselves, which every view needs anew.
        vmas: entries of the address space, of at most `max_map_count`.
    """

    pid: int
    name: str
    rss: int
    pss: int | None
    uss: int | None
    swap: int
    huge: int
    hugetlb: int
    page_tables: int
    vmas: int
    max_map_count: int


@dataclass(frozen=True, repr=False)
class Mirrors(Sequence[MirrorGroup]):
    """The answer of `mirrors()`: a sequence of groups, biggest first.

    Attributes:
        groups: memory that is shown more than once. processes: what each process costs.
        left_out: what could not be looked at, and why, one sentence each.
    """

    groups: tuple[MirrorGroup, ...]
    processes: tuple[Footprint, ...]
    left_out: tuple[str, ...]

    @property
    def rss(self) -> int:
        """RSS of the processes together, which counts every view."""
        return sum(process.rss for process in self.processes)

    @property
    def pss(self) -> int | None:
        """PSS of the processes together; None where the kernel does not tell."""
        known = [process.pss for process in self.processes if process.pss is not None]
        return sum(known) if len(known) == len(self.processes) else None

    @property
    def nbytes(self) -> int:
        """Object bytes of all groups, each byte once."""
        return sum(group.nbytes for group in self.groups)

    @property
    def overcounted(self) -> int | None:
        """How much of `rss` is second and later views of pages counted before."""
        if any(group.rss is None or group.resident is None for group in self.groups):
            return None
        return sum(max(0, (group.rss or 0) - (group.resident or 0)) for group in self.groups)

    @overload
    def __getitem__(self, index: int) -> MirrorGroup: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[MirrorGroup]: ...
    def __getitem__(self, index: int | slice) -> MirrorGroup | Sequence[MirrorGroup]:
        return self.groups[index]

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[MirrorGroup]:
        return iter(self.groups)

    def __repr__(self) -> str:
        extra = self.overcounted
        whose = ", ".join(f"{process.name} {process.pid}" for process in self.processes[:3])
        more = f" and {len(self.processes) - 3} more" if len(self.processes) > 3 else ""
        return (
            f"<Mirrors of {whose}{more}: {len(self.groups)} groups of {format_nbytes(self.nbytes)}, "
            f"RSS {format_nbytes(self.rss)}"
            f"{f', of which {format_nbytes(extra)} counted more than once' if extra else ''}>"
        )


def mappings(pid: Pid = "self", *, progress: Progress | None = None) -> list[Vma]:
    """Every entry of an address space, with what is resident of it.

    PROCMAP_QUERY and PAGEMAP_SCAN, before Linux 6.11 and 6.7 the texts of /proc/PID/maps and smaps. An
    address space that changes meanwhile is seen partly before and partly after.

    Args: pid: a process, or "self". progress: called with (bytes found, bytes expected), first with 0, then
        between steps.
    Raises: ProcessGone for a process that has ended, also meanwhile; NotPermittedError for one that
        belongs to somebody else; TypeError, ValueError for what is no pid.
    """
    return _records(_snapshot(_as_pid(pid), progress, pages=False))


def mirrors(
    pid: Pid | Iterable[Pid] = "self",
    *,
    frames: bool | None = None,
    progress: Progress | None = None,
) -> Mirrors:
    """Memory that is shown at two or more addresses, in one process or in several together.

    Objects (memfd, shared anonymous memory, SharedMemory, SysV segments, hugetlb, files) are found by
    device, inode and offset; the private mappings of an object that is also mapped shared count for
    the pages they have not copied yet. Code and data of libraries, which are mapped private everywhere,
    are not listed. Nodes of devices are left out: what they show is up to their driver.

    Args: pid: a process, "self", or several, of which those that have ended or may not be looked at are
        left out and named in `left_out`.
        frames: compare private pages by physical frame too, which finds KSM and what a fork left shared;
            None: where that is permitted and can find anything. progress: as in `mappings`.
    Raises: ProcessGone, NotPermittedError for a single process, or when none can be looked at.
    """
    several = not isinstance(pid, int | str)
    wanted = list(dict.fromkeys(map(_as_pid, pid))) if not isinstance(pid, int | str) else [_as_pid(pid)]
    if not wanted:
        raise ValueError("mirrors() needs at least one process")
    seen: list[Snapshot] = []
    costs: list[Footprint] = []
    left_out: list[str] = []
    for each in wanted:
        try:
            snapshot = _snapshot(each, progress, pages=True)
            costs.append(_footprint(snapshot))
            seen.append(snapshot)
        except MirrorError as error:
            if not several or len(wanted) == 1:
                raise
            left_out.append(str(error))
    if not seen:
        raise MirrorError("no process could be looked at: " + "; ".join(left_out))
    if any(snapshot.rows is None for snapshot in seen):
        left_out.append(_RESIDENCY)
    groups = sameness.by_object(seen)
    if frames or (frames is None and (len(seen) > 1 or pagetables.ksm_works())):
        found = physical.by_frame(seen)
        if found is None:
            left_out.append(_FRAMES)
        else:
            groups += found
    groups.sort(key=lambda group: group.nbytes, reverse=True)
    return Mirrors(tuple(groups), tuple(costs), tuple(left_out))


def _as_pid(pid: Pid) -> int:
    if pid == "self":
        return os.getpid()
    if isinstance(pid, str):
        if not (pid.isascii() and pid.isdecimal()):
            raise ValueError(f"pid {pid!r} must be a number or 'self'")
        pid = int(pid)
    if isinstance(pid, bool) or not isinstance(pid, int):
        raise TypeError(f"a pid is an int or 'self', not {type(pid).__name__}")
    if not 0 < pid < 1 << 31:
        raise ValueError(f"pid {pid} must be a positive number")
    return pid


def _snapshot(pid: int, progress: Progress | None, *, pages: bool) -> Snapshot:
    """Entries and page table; without a scan the latter is read page by page, if pages are wanted."""
    expected = procfs.status(pid).get("VmRSS", 0)
    found = procfs.entries(pid)

    def tell(nbytes: int) -> None:
        if progress is not None:
            progress(nbytes, max(nbytes, expected))

    tell(0)
    rows = pagetables.stretches(pid, found, tell)
    scanned = rows is not None
    if pages and not scanned:
        rows = pagetables.stretches_read(pid, found, tell)
    if procmaps.process_start(pid) is None:  # its page tables were gone before its entries
        raise procfs.gone(pid)
    return Snapshot(pid, found, rows, scanned)


def _records(snapshot: Snapshot) -> list[Vma]:
    entries, sums = snapshot.entries, snapshot.residency()
    if sums is None:
        told = procfs.smaps(snapshot.pid)
        entries = [*(entry.vma for entry in told)]
        resident = [max(entry.rss, entry.huge) for entry in told]  # Rss leaves out hugetlb
        sums = resident, [entry.swap for entry in told], [entry.huge for entry in told]
    start, end, bits, shared, page_nbytes, offset, dev, inode, name = zip(*entries, strict=True)
    protection = map(PROTECTIONS.__getitem__, bits)
    columns = start, end, protection, shared, offset, dev, inode, name, page_nbytes, *sums
    return list(map(Vma._make, zip(*columns, strict=True)))


def _footprint(snapshot: Snapshot) -> Footprint:
    pid = snapshot.pid
    sums, simple = procfs.rollup(pid), procfs.status(pid)
    told = bool(sums)
    return Footprint(
        pid=pid,
        name=procfs.command_name(pid),
        rss=sums.get("Rss", simple.get("VmRSS", 0)),
        pss=sums.get("Pss"),
        uss=procfs.private_nbytes(sums) if told else None,
        swap=sums.get("Swap", simple.get("VmSwap", 0)),
        huge=procfs.huge_nbytes(sums) - procfs.hugetlb_nbytes(sums),
        hugetlb=simple.get("HugetlbPages", 0),
        page_tables=simple.get("VmPTE", 0),
        vmas=sum(vma[0] < procfs.USER_END for vma in snapshot.entries),
        max_map_count=procmaps.max_map_count(),
    )
