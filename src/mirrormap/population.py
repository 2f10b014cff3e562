"""Population: the page-table entries exist when the call returns."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Final

from mirrormap import cgroups, kernel, procmaps, residency
from mirrormap.backing import Backing
from mirrormap.errors import MapError
from mirrormap.kernel import PAGE_NBYTES, Region
from mirrormap.placement import Arrangement, Run
from mirrormap.units import format_nbytes, round_down, round_up

__all__ = ["check_memory_left", "populate", "populates_by_madvise", "take_huge_pages"]

_STEP_NBYTES: Final = 64 << 20  # signals are served between steps
_TRIAL_NBYTES: Final = 1 << 20
_AROUND_NBYTES: Final = 16 * PAGE_NBYTES  # the kernel's fault_around_bytes, unless it was changed
# x86 notes a store in an entry by itself; elsewhere a processor may need a fault for it
_STORES_ARE_FREE: Final = os.uname().machine in ("x86_64", "i686")
_WORTH_NBYTES: Final = 16 << 20
_POPULATE: Final = "madvise(MADV_POPULATE_READ)"

_believed: bool | None = None  # whether MADV_POPULATE_* was seen to do what it answers


def populates_by_madvise() -> bool:
    """Whether a population of this process went by MADV_POPULATE_*; otherwise pages are touched."""
    return bool(_believed)


def populate(region: Region, arrangement: Arrangement, *, write: bool) -> None:
    """Make every page-table entry of a region that shows the arrangement.

    On x86 a read fault on tmpfs and hugetlb leaves an entry that stores may use, at half the price
    of a write fault. On files it does not, and on processors that leave it to the kernel to note the
    first store neither, so there `write` writes (and dirties the pages).
    Raises: MapError naming the step that failed: EFAULT for a hole past the object's end or a full
        file system or pool; ENOMEM; EHWPOISON.
    """
    first = last = 0
    pending: Run | None = None
    for run in arrangement.runs:
        if run.backing is not None and run.backing.kind.transparent:
            _collapse(region, last, run)
        if pending is not None and not _goes_with(run, pending):
            _fault_in(region, first, last, pending, write=write)
            first, pending = last, None
        pending = pending or run
        last += run.room
    if pending is not None:
        _fault_in(region, first, last, pending, write=write)


def _goes_with(run: Run, other: Run) -> bool:
    """Can one call populate both?"""
    return (
        run.page_nbytes == other.page_nbytes
        and run.notes_writes == other.notes_writes
        and run.protection == other.protection
    )


def _fault_in(region: Region, first: int, last: int, run: Run, *, write: bool) -> None:
    """Populate [first, last), which is like `run`."""
    write = write and bool(run.protection & kernel.PROT_WRITE) and (run.notes_writes or not _STORES_ARE_FREE)
    label = run.backing.label if run.backing is not None else ""
    if last - first >= _WORTH_NBYTES and run.page_nbytes == PAGE_NBYTES and not write:
        first = _fault_around(region, first, last, run, label)
    step = max(_STEP_NBYTES, run.page_nbytes)
    charged = run.page_nbytes == PAGE_NBYTES and last - first >= _WORTH_NBYTES
    # the kernel leaves an entry made by a load as it is, which it may write to: such a processor not yet
    seen = write and not _STORES_ARE_FREE and _has_entries(region.address + first, last - first)
    begin = first
    while first < last:
        nbytes = min(step, last - first)
        if charged:
            nbytes = min(nbytes, _step_allowed(last - first, run, label))
        _advise(region, first, nbytes, run.page_nbytes, label, write=write)
        first += nbytes
    if seen:
        kernel.touch(region, begin, last - begin, run.page_nbytes, write=True, label=label)


def _has_entries(address: int, nbytes: int) -> bool:
    """Whether there may be page-table entries: a process that gave up its rights may not look at its own."""
    try:
        return residency.nbytes_present(address, nbytes) > 0
    except PermissionError:
        return True


def _step_allowed(nbytes: int, run: Run, label: str) -> int:
    """How much to populate before looking again at what the memory cgroup allows.

    Of an object known by an address alone nobody says which pages there are already: half of what is
    left at a time, which shrinks if there are none and stays if there are.
    Raises: MapError ENOMEM.
    """
    if run.backing is not None:
        _check_missing(nbytes, run.backing)
        return nbytes
    left = cgroups.memory_left()
    if left is None:
        return nbytes
    if left < cgroups.SPARE_NBYTES:
        check_memory_left(max(nbytes, _WORTH_NBYTES), _POPULATE, label)
    return max(round_down(left // 2, PAGE_NBYTES), PAGE_NBYTES)


def _check_missing(nbytes: int, backing: Backing) -> None:
    """The memory cgroup allows for as many of an object's pages as are not there yet."""
    check_memory_left(min(nbytes, backing.nbytes - backing.allocated), _POPULATE, backing.label)


def check_memory_left(nbytes: int, call: str, label: str = "") -> None:
    """Refuse what would take a memory cgroup or strict overcommit over its limit: a kill, a SIGBUS.

    Raises: MapError ENOMEM with the figures.
    """
    if nbytes < _WORTH_NBYTES:
        return
    left = cgroups.memory_left()
    if left is not None and nbytes > left:
        advice = (
            f"The memory cgroup of this process allows {format_nbytes(left)} more, and kills whoever "
            "takes them beyond: raise its memory.max (a container's memory limit), or ask for less"
        )
    else:
        left = cgroups.commit_left()
        if left is None or nbytes <= left:
            return
        advice = (
            f"vm.overcommit_memory is 2, and {format_nbytes(left)} more may be committed: raise "
            "vm.overcommit_ratio or vm.overcommit_kbytes, or ask for less"
        )
    raise MapError(errno.ENOMEM, call=call, nbytes=nbytes, label=label, advice=advice)


def _advise(region: Region, at: int, nbytes: int, page_nbytes: int, label: str, *, write: bool) -> None:
    """madvise(MADV_POPULATE_READ or _WRITE), or a touch of every page."""
    name, advice = ("WRITE", kernel.MADV_POPULATE_WRITE) if write else ("READ", kernel.MADV_POPULATE_READ)
    try:
        if not _has_populated(region, at, nbytes, advice, label):
            kernel.touch(region, at, nbytes, page_nbytes, write=write, label=label)
    except MapError as error:
        raise MapError(
            error.errno or errno.EFAULT,
            call=f"madvise(MADV_POPULATE_{name})",
            nbytes=nbytes,
            label=label,
            advice=f"No page could be had somewhere in bytes {at:,} to {at + nbytes:,} of the mapping: it "
            "reaches past the end of its file, or memory, the huge page pool or the file system is full",
        ) from None


def _has_populated(region: Region, at: int, nbytes: int, advice: int, label: str) -> bool:
    """Did the kernel do it? It cannot before Linux 5.14, and qemu-user 7 answers 0 and does nothing.

    The first answer of a process is looked at, later ones are believed or not asked for.
    """
    global _believed
    if _believed is False:
        return False
    try:
        kernel.madvise(region, at, nbytes, advice, label)
    except MapError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    if _believed is None:
        with contextlib.suppress(OSError):
            _believed = residency.nbytes_present(region.address + at, PAGE_NBYTES) > 0
    return _believed is not False


def _fault_around(region: Region, first: int, last: int, run: Run, label: str) -> int:
    """Populate by one fault for every 16 pages, as long as that works.

    A read fault maps its neighbours too if they are in the page cache, which memory that is being
    mirrored is. MADV_POPULATE_READ profits from that, and then looks at each page by itself and
    notes that it was used. Counting the entries costs a fiftieth of it; the noting is put off until
    the range is unmapped.

    Returns: the byte from which on it did not, so that MADV_POPULATE_READ has to.
    """
    if run.backing is not None and 2 * run.backing.allocated < run.backing.nbytes:
        return first
    at, step = first, _TRIAL_NBYTES
    while at < last:
        nbytes = min(step, last - at)
        lead = -(region.address + at) % _AROUND_NBYTES
        with contextlib.suppress(MapError):
            if lead:
                kernel.touch(region, at, PAGE_NBYTES, PAGE_NBYTES, write=False, label=label)
            kernel.touch(region, at + lead, nbytes - lead, _AROUND_NBYTES, write=False, label=label)
        if residency.nbytes_present_if_cheap(region.address + at, nbytes) != nbytes:
            break
        at += nbytes
        step = _STEP_NBYTES
    return at


def _collapse(region: Region, at: int, run: Run) -> None:
    """As far as a run wants transparent huge pages, and the kernel has them to give."""
    assert run.backing is not None
    _check_missing(run.nbytes, run.backing)
    take_huge_pages(region, at, at + run.nbytes)


def take_huge_pages(region: Region, first: int, last: int) -> bool:
    """Ask for transparent huge pages now (Linux 6.1), wherever a whole one fits in [first, last).

    The kernel collapses only where a page is there already. One page for each huge one is enough,
    and 28 times quicker than collapsing memory that was filled first. One call for much is quicker
    than many: each waits for every processor once.

    Returns: whether there is nothing in the way of them: some may be had even where it is False.
    """
    pmd = procmaps.pmd_nbytes()
    if pmd == PAGE_NBYTES:  # a kernel without huge pages of any kind
        return False
    first = round_up(region.address + first, pmd) - region.address
    last = round_down(region.address + last, pmd) - region.address
    if first >= last:
        return True
    try:
        kernel.touch(region, first, last - first, pmd, write=False)
        kernel.madvise(region, first, last - first, kernel.MADV_COLLAPSE)
    except MapError:
        return False
    return True
