"""mremap(): the system call, with the flag that the kernel never got."""

from __future__ import annotations

import contextlib
import errno
import mmap
from collections.abc import Generator
from typing import Final, NoReturn, SupportsIndex

from mirrormap import kernel, placement
from mirrormap.backing import Backing
from mirrormap.errors import MapError
from mirrormap.foreign import foreign_runs, place_foreign
from mirrormap.kernel import PAGE_NBYTES, Region
from mirrormap.placement import Run
from mirrormap.procmaps import AddressSpace
from mirrormap.units import round_up

__all__ = ["MREMAP_DONTUNMAP", "MREMAP_FIXED", "MREMAP_MAYMOVE", "MREMAP_MIRROR", "mremap", "page_moved"]

MREMAP_MAYMOVE: Final = kernel.MREMAP_MAYMOVE
MREMAP_FIXED: Final = kernel.MREMAP_FIXED
MREMAP_DONTUNMAP: Final = kernel.MREMAP_DONTUNMAP
MREMAP_MIRROR: Final = 1 << 30
"""Ours alone: far from the bits the kernel uses or is about to, and never passed to it."""

_ADDRESS_LIMIT = 1 << 64


def mremap(
    old_address: SupportsIndex,
    old_size: SupportsIndex,
    new_size: SupportsIndex,
    flags: int,
    new_address: SupportsIndex | None = None,
) -> int:
    """mremap(2), plus MREMAP_MIRROR: the same pages at one more address.

    Args:
        old_address: page-aligned start of the range.
        old_size: bytes; 0 means the same as MREMAP_MIRROR.
        new_size: bytes; with MREMAP_MIRROR how much to mirror, at most old_size unless that is 0.
        flags: MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP as in mremap(2), MREMAP_MIRROR.
        new_address: with MREMAP_FIXED, where to put it; what is mapped there is replaced.
    Returns: the new address. The range is the caller's to unmap; nothing here owns it.

    Without mirroring, the call goes to the kernel as it is and answers with its errno, with one
    addition: shared huge pages grow, which the kernel refuses, and move, as it does since Linux 5.16.

    Raises: MapError with
        EINVAL: an unaligned address, new_size 0, an unknown flag, FIXED without MAYMOVE,
            DONTUNMAP together with a mirror, a target that overlaps the source (the kernel would
            unmap the source and then fail);
        ENOMEM: no MAYMOVE with a mirror; out of mappings or address space;
        EFAULT: not mapped, or beyond the end of the object (later a SIGBUS).
      NotMirrorableError EINVAL for private memory; EPERM for sealed mappings, or for huge pages
        that only a missing capability would reach. Nothing has moved then.
      ValueError for numbers no address or size can be.
    """
    source = _word(old_address, "old_address")
    old_nbytes, new_nbytes = _word(old_size, "old_size"), _word(new_size, "new_size")
    if flags & MREMAP_FIXED and new_address is None:
        raise ValueError("MREMAP_FIXED needs a new_address")
    target = 0 if new_address is None else _word(new_address, "new_address")
    if flags & MREMAP_MIRROR or old_nbytes == 0:
        _check_mirror(source, old_nbytes, new_nbytes, flags & ~MREMAP_MIRROR, target)
        return _mirror(source, round_up(new_nbytes, PAGE_NBYTES), flags, target)
    try:
        return kernel.mremap(source, old_nbytes, new_nbytes, flags, target)
    except MapError as error:
        if error.errno == errno.EINVAL and new_nbytes >= old_nbytes and not flags & MREMAP_DONTUNMAP:
            moved = _move_huge(source, old_nbytes, new_nbytes, flags, target)
            if moved is not None:
                return moved
        raise


def _word(number: SupportsIndex, what: str) -> int:
    value = number.__index__()
    if not 0 <= value < _ADDRESS_LIMIT:
        raise ValueError(f"{what} {value} is no address or size")
    return value


def _refuse(number: int, nbytes: int, advice: str) -> NoReturn:
    raise MapError(number, call="mremap", nbytes=nbytes, advice=advice)


def _check_mirror(source: int, old_nbytes: int, new_nbytes: int, flags: int, target: int) -> None:
    """What the kernel checks for old_size 0, and what it should."""
    if flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED):
        _refuse(errno.EINVAL, new_nbytes, "A mirror takes MREMAP_MAYMOVE and MREMAP_FIXED, nothing else")
    if source % PAGE_NBYTES or not new_nbytes:
        _refuse(errno.EINVAL, new_nbytes, "old_address must be page-aligned, new_size more than 0")
    if new_nbytes > _ADDRESS_LIMIT - source - PAGE_NBYTES or (old_nbytes and new_nbytes > old_nbytes):
        _refuse(errno.EINVAL, new_nbytes, "A mirror is no longer than its source; old_size 0 takes new_size")
    if not flags & MREMAP_MAYMOVE:
        number = errno.EINVAL if flags & MREMAP_FIXED else errno.ENOMEM
        _refuse(number, new_nbytes, "A mirror is at another address: add MREMAP_MAYMOVE")
    if flags & MREMAP_FIXED:
        if target % PAGE_NBYTES or not target or target + new_nbytes > 1 << 63:
            _refuse(errno.EINVAL, new_nbytes, "new_address must be a page-aligned user address")
        room = round_up(new_nbytes, PAGE_NBYTES)
        if source < target + room and target < source + room:
            _refuse(
                errno.EINVAL,
                new_nbytes,
                "new_address overlaps the source, which the kernel would unmap before it fails",
            )


def _mirror(source: int, nbytes: int, flags: int, target: int) -> int:
    first, runs = foreign_runs(source, nbytes, None, beyond_entry=True)
    if first != source:
        _refuse(errno.EINVAL, nbytes, "old_address must be aligned to the huge pages it shows")
    room = sum(run.room for run in runs)
    if flags & MREMAP_FIXED:
        # a huge page may round the length up, so the target is checked again
        if source < target + room and target < source + room:
            _refuse(errno.EINVAL, room, "new_address overlaps the source, rounded to huge pages")
        for run in runs:
            check_alignment(target, run.page_nbytes, room)
    region = place_foreign(runs)
    last = runs[-1]
    behind = room - last.page_nbytes
    if (
        last.protection & kernel.PROT_READ
        and not kernel.is_readable(source + behind)
        and not kernel.is_readable(region.address + behind)
    ):
        kernel.unmap(region)
        _refuse(errno.EFAULT, nbytes, "The range reaches past the end of its object: a later SIGBUS")
    return _hand_over(region, runs, target if flags & MREMAP_FIXED else 0)


def check_alignment(address: int, page_nbytes: int, nbytes: int) -> None:
    """Raises: MapError EINVAL unless the address suits pages of this size."""
    if address % page_nbytes:
        _refuse(errno.EINVAL, nbytes, f"new_address must be a multiple of the page size {page_nbytes:,}")


def _hand_over(region: Region, runs: list[Run], target: int) -> int:
    """The address of a finished region, moved to `target` if that is not 0, for the caller to own.

    Everything that can fail early has been done by then. Each piece is moved in one call, which
    replaces what is at the target at once.
    """
    room = sum(run.room for run in runs)
    region.expose(0, False, False)
    address = region.release()
    if not target:
        return address
    moved = 0
    try:
        for run in runs:
            _move(run, address + moved, target + moved)
            moved += run.room
    except MapError:
        with contextlib.suppress(MapError):
            kernel.munmap(address + moved, room - moved)
        raise
    return target


def _move(run: Run, address: int, target: int) -> None:
    """What is shown at an address to another, in one call that replaces what is there."""
    try:
        kernel.mremap(address, run.room, run.room, MREMAP_MAYMOVE | MREMAP_FIXED, target)
    except MapError as error:
        if error.errno != errno.EINVAL or run.backing is None or run.page_nbytes == PAGE_NBYTES:
            raise
        # huge pages move since Linux 5.16; before, they are shown there by their descriptor
        kernel.replace(target, run.room, run.protection, run.backing.fd, run.offset)
        kernel.munmap(address, run.room)


def _move_huge(source: int, old_nbytes: int, new_nbytes: int, flags: int, target: int) -> int | None:
    """Lengthen or move shared huge pages, in place or to another address; None for other memory."""
    with AddressSpace() as space:
        vma = space.at(source)
    if (
        vma is None
        or not vma.shared
        or vma.page_nbytes == PAGE_NBYTES
        or (source | old_nbytes | new_nbytes) % vma.page_nbytes
        or source + old_nbytes > vma.end
        or (flags & MREMAP_FIXED and not flags & MREMAP_MAYMOVE)
    ):
        return None
    if new_nbytes == old_nbytes and not flags & MREMAP_FIXED:
        return source
    offset = vma.offset + source - vma.start
    backing = Backing.behind(vma, write=True)
    backing.grow(offset + new_nbytes)
    run = Run(backing, offset, new_nbytes, vma.protection, page_nbytes=vma.page_nbytes)
    if not flags & MREMAP_FIXED:
        try:
            tail = run.part(old_nbytes, new_nbytes - old_nbytes)
            region = placement.place([tail], label="mremap", address=source + old_nbytes)
            _hand_over(region, [tail], 0)
            return source
        except MapError as error:
            if error.errno != errno.EEXIST:
                raise
            if not flags & MREMAP_MAYMOVE:
                _refuse(errno.ENOMEM, new_nbytes, "The range behind is occupied: add MREMAP_MAYMOVE")
    elif source < target + new_nbytes and target < source + old_nbytes:
        _refuse(errno.EINVAL, new_nbytes, "new_address overlaps the source")
    region = placement.place([run], label="mremap")
    address = _hand_over(region, [run], target if flags & MREMAP_FIXED else 0)
    kernel.munmap(source, old_nbytes)
    return address


@contextlib.contextmanager
def page_moved() -> Generator[tuple[int, int]]:
    """A shared page of its own whose page table was moved: where it was, and where it is too.

    mremap(MAYMOVE|DONTUNMAP) without MREMAP_FIXED: one that is refused has unmapped its target by then, and
    another thread's mapping may be there before the hole is closed.
    Raises: MapError EINVAL before Linux 5.13.
    """
    with mmap.mmap(-1, PAGE_NBYTES) as page, memoryview(page) as shown:
        start, nbytes, _ = kernel.buffer_address(shown)
        moved = kernel.mremap(start, nbytes, nbytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP)
        try:
            yield start, moved
        finally:
            kernel.munmap(moved, nbytes)
