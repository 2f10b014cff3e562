"""Which pages lie under a range of addresses, whoever made them, and how to show them once more.

The route is the kernel's own mremap(address, 0, …), one piece at a time: one call over two
entries would show the first one's pages and protection for both. Where the kernel refuses it
(hugetlb), the piece's object is found by a descriptor that is open anyway, or through
/proc/self/map_files, and mapped again.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from mirrormap import kernel, placement, procmaps
from mirrormap.backing import Backing
from mirrormap.errors import ClosedError, MapError, NotMirrorableError
from mirrormap.kernel import PAGE_NBYTES, Region, Span, VmaInfo
from mirrormap.pages import Pages
from mirrormap.placement import Run
from mirrormap.procmaps import AddressSpace
from mirrormap.units import round_down, round_up

__all__ = [
    "can_mremap",
    "foreign_runs",
    "own_region",
    "place_any",
    "place_foreign",
    "runs_by_descriptor",
    "runs_under",
]

_LABEL = "mirror"

# What the kernel, or an emulator standing in for it, says when it will not mirror by address.
_TRY_DESCRIPTOR = (errno.EINVAL, errno.ENOSYS, errno.ENOMEM)


def own_region(owner: Any) -> Region | None:
    """The region of ours behind an array or buffer, if it is one of ours."""
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    if isinstance(owner, Span):
        owner = owner.region
    return owner if isinstance(owner, Region) else None


def runs_under(owner: Any, start: int, nbytes: int, wanted: int | None) -> tuple[int, list[Run], int]:
    """The runs of pages under a range of addresses that `owner`, an array or buffer, shows.

    Args: wanted: PROT_* bits of the runs; by default those of each part.
    Returns: the address of their first byte, which is `start` rounded down to a page; the runs, of
        which the last ends with the range; the page size.
    Raises: NotMirrorableError, MapError for memory that cannot be shown twice.
    """
    region = own_region(owner)
    if region is None:
        first, runs = foreign_runs(start, nbytes, wanted)
        return first, runs, max(run.page_nbytes for run in runs)
    arrangement: placement.Arrangement | None = region.keep
    if arrangement is None:
        raise ClosedError("this memory was unmapped meanwhile, by another thread")
    page = arrangement.page_nbytes
    inside = round_down(start - region.address, page)
    first = region.address + inside
    arrangement.check_thawed(inside, start + nbytes - first)
    return first, arrangement.part(inside, start + nbytes - first, region.address, wanted), page


def place_any(runs: Sequence[Run], *, address: int | None = None, label: str) -> Region:
    """Show runs side by side, wherever they were found."""
    if any(run.backing is None for run in runs):
        return place_foreign(runs, address=address)
    return placement.place(runs, label=label, address=address)


def foreign_runs(
    start: int, nbytes: int, wanted: int | None, *, beyond_entry: bool = False
) -> tuple[int, list[Run]]:
    """One run for every entry of the address space under the range, checked.

    Args: beyond_entry: let the last run go on into its object where nothing is mapped behind it,
        as mremap with old_size 0 does.
    Returns: the address of the first byte they show, which is `start` rounded down to a page of
        whatever size lies there, and the runs. The last ends with the range.
    """
    kernel.allocator_share(start, nbytes)  # an array of numpy_allocator's is not used for another again
    with AddressSpace() as space:
        vma = _entry(space, start, start, nbytes)
        first = at = round_down(start, vma.page_nbytes)
        end = start + nbytes
        runs: list[Run] = []
        while at < end:
            vma = _entry(space, at, start, nbytes)
            behind = vma.end
            if beyond_entry and behind < end and space.at(behind) is None:
                behind = end
            runs.append(_foreign_run(vma, at, min(end, behind), wanted))
            at = behind
    return first, runs


def _entry(space: AddressSpace, at: int, start: int, nbytes: int) -> VmaInfo:
    vma = space.at(at)
    if vma is None:
        raise MapError(
            errno.EFAULT,
            call="mremap",
            nbytes=nbytes,
            label=_LABEL,
            advice=f"Nothing is mapped at {at:#x}, {at - start:,} bytes into the range",
        )
    if not vma.shared:
        _refuse_private(vma, nbytes)
    return vma


def _refuse_private(vma: VmaInfo, nbytes: int) -> NoReturn:
    if vma.name.startswith(("[stack", "[v")):
        what = f"This is {vma.name} of the process"
        advice = "copy what you need into pages of its own"
    elif vma.inode:
        what = f"{vma.name} is mapped MAP_PRIVATE (np.memmap mode 'c', mmap.ACCESS_COPY)"
        advice = "map it MAP_SHARED (np.memmap mode 'r' or 'r+'), or copy it with mirrormap.share(array)"
    else:
        what = "This is ordinary private memory (malloc, np.empty, bytes)"
        advice = "copy it once with mirrormap.share(array), or make it with mirrormap.zeros() or empty()"
    raise NotMirrorableError(
        errno.EINVAL,
        call="mremap",
        nbytes=nbytes,
        label=vma.name,
        advice=f"{what}; Linux mirrors only MAP_SHARED memory: {advice}",
    )


def _foreign_run(vma: VmaInfo, at: int, end: int, wanted: int | None) -> Run:
    """The run of one entry from `at` to `end`, which must lie within its object."""
    bits = vma.protection if wanted is None else wanted
    offset = vma.offset + at - vma.start
    if vma.page_nbytes > PAGE_NBYTES:
        backing = Backing.behind(vma, write=bool(bits & kernel.PROT_WRITE))
        _check_reach(vma, offset + end - at, backing.nbytes)
        return Run(backing, offset, end - at, bits, page_nbytes=vma.page_nbytes)
    limit = procmaps.map_file_nbytes(vma)
    if limit is not None:
        _check_reach(vma, offset + end - at, limit)
    elif (
        end <= round_up(vma.end, PAGE_NBYTES)
        and vma.protection & kernel.PROT_READ
        and not kernel.is_readable(round_down(end - 1, PAGE_NBYTES))
    ):
        _refuse_reach(end - at, vma.name)
    return Run(
        None,
        offset,
        end - at,
        bits,
        source=at,
        source_protection=vma.protection,
        notes_writes=_is_on_disk(vma),
    )


def _check_reach(vma: VmaInfo, needed: int, limit: int) -> None:
    if needed > round_up(limit, vma.page_nbytes):
        _refuse_reach(needed, vma.name)


def _refuse_reach(nbytes: int, label: str) -> NoReturn:
    raise MapError(
        errno.EFAULT,
        call="mremap",
        nbytes=nbytes,
        label=label,
        advice="The range reaches past the end of its object, which was truncated or mapped too long: "
        "touching it would be a SIGBUS. Grow the object, or mirror less",
    )


def _is_on_disk(vma: VmaInfo) -> bool:
    """Does a first store to each page fault even when it is populated for reading?"""
    return not vma.name.startswith(
        ("/memfd:", "/mirrormap:", "/dev/zero", "/dev/shm/", "/SYSV", "/secretmem")
    )


def place_foreign(runs: Sequence[Run], *, address: int | None = None) -> Region:
    """Place runs found by address, by mremap or else by descriptor, and look what came of it."""
    try:
        region = placement.place(runs, label=_LABEL, address=address)
    except MapError as error:
        if error.call == "mremap" and (error.errno in _TRY_DESCRIPTOR or not can_mremap()):
            by_descriptor = runs_by_descriptor(runs, error)
            return placement.place(by_descriptor, label=_LABEL, address=address)
        if error.call == "mremap" and error.errno in (errno.EPERM, errno.EFAULT):
            raise _refused(error) from None
        raise
    at = 0
    for run in runs:
        if run.backing is None and not run.source_protection & kernel.PROT_READ:
            _check_hidden(region, at, run)
        at += run.room
    if not _matches(region, runs):
        kernel.unmap(region)
        raise MapError(
            errno.EFAULT,
            call="mremap",
            nbytes=sum(run.nbytes for run in runs),
            label=_LABEL,
            advice="The source was unmapped or replaced by another thread during the call",
        )
    return region


def can_mremap() -> bool:
    """Does mremap with old_size 0 work at all here? A sandbox or an emulator may refuse it."""
    try:
        with Pages(PAGE_NBYTES, name="probe") as pages, pages.map() as view:
            kernel.munmap(kernel.mremap(view.address, 0, PAGE_NBYTES, kernel.MREMAP_MAYMOVE), PAGE_NBYTES)
    except MapError:
        return False
    return True


def _check_hidden(region: Region, at: int, run: Run) -> None:
    """Does a mirror of PROT_NONE memory lie within its object? Only a readable page can tell."""
    kernel.mprotect(region, at, run.room, kernel.PROT_READ)
    if not kernel.is_readable(region.address + at + run.room - PAGE_NBYTES):
        kernel.unmap(region)
        _refuse_reach(run.nbytes, _LABEL)
    kernel.mprotect(region, at, run.room, run.protection)


def runs_by_descriptor(runs: Sequence[Run], refusal: MapError | None = None) -> list[Run]:
    """The same runs through descriptors: for a kernel that does not mirror by address, or to pass on."""
    found: list[Run] = []
    with AddressSpace() as space:
        for run in runs:
            vma = space.at(run.source) if run.backing is None else None
            if vma is not None:
                try:
                    backing = Backing.behind(vma, write=bool(run.protection & kernel.PROT_WRITE))
                except MapError:
                    if refusal is None:
                        raise
                    raise (refusal if refusal.errno == errno.ENOMEM else _refused(refusal)) from None
                run = run._replace(backing=backing, source=0)
            found.append(run)
    return found


def _refused(error: MapError) -> MapError:
    """Which kind of memory this errno of mremap stands for."""
    advice = {
        errno.EPERM: "The source is sealed against changes (mseal): map its file once more instead",
        errno.EFAULT: "The kernel does not mirror rings of perf, io_uring or AIO, nor device memory: "
        "copy what you need",
        errno.EINVAL: "The kernel does not mirror this kind of memory, and no descriptor of it is open",
    }.get(error.errno or 0, "No descriptor of the memory is open to map it again")
    return NotMirrorableError(
        error.errno or errno.EINVAL, call=error.call, nbytes=error.nbytes, label=error.label, advice=advice
    )


def _matches(region: Region, runs: Sequence[Run]) -> bool:
    """Does the region show the objects that its sources show at this moment?"""
    with AddressSpace() as space:
        at = region.address
        for run in runs:
            if run.backing is None:
                there, here = space.at(run.source), space.at(at)
                if there is None or here is None or _place_of(there, run.source) != _place_of(here, at):
                    return False
            at += run.room
    return True


def _place_of(vma: VmaInfo, address: int) -> tuple[int, int, int]:
    return vma.dev, vma.inode, vma.offset + address - vma.start
