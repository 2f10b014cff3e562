"""snapshot(): an array frozen at one moment, while the original goes on being written.

    before      live ──shared──▶ pages
    inside      live ──private─▶ pages ◀──shared── frozen      a store to live copies its page first
    afterwards  live ──shared──▶ pages ◀──shared── frozen      the copies were written back

The page tables of the live range are moved to the frozen one, which takes no time for each page,
and then the live addresses show the same object privately: that one mmap is the cut. The other way
round, zapping the old view's entries would take 35 ms a GiB with every writer waiting.
"""

from __future__ import annotations

import errno
import functools
import os
import threading
import warnings
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
from numpy.lib.array_utils import byte_bounds

from mirrormap import kernel, placement, residency
from mirrormap.arrays import share
from mirrormap.backing import Backing
from mirrormap.errors import MapError, MirrorError
from mirrormap.foreign import own_region
from mirrormap.kernel import PAGE_NBYTES, Region
from mirrormap.placement import Arrangement, Run
from mirrormap.procmaps import AddressSpace
from mirrormap.remap import page_moved
from mirrormap.units import format_nbytes, round_down
from mirrormap.views import array_over, check_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Snapshot", "snapshot"]

_LABEL: Final = "snapshot"
_cutting: Final = threading.RLock()  # one for all: a cut is short


class _Frozen(Arrangement):
    """What a snapshot's region keeps, so that no later snapshot takes it for a mirror."""

    __slots__ = ()


class _Range(NamedTuple):
    """Bytes [start, start + room) of a region, which show one run."""

    region: Region
    start: int
    run: Run
    backing: Backing

    @property
    def address(self) -> int:
        return self.region.address + self.start


class Snapshot:
    """A context manager that yields the frozen array; made by `snapshot(array)`.

    Attributes, inside and after the block:
        route: "moved"; "overlaid", where the kernel would not move page tables; or "copied".
        reason: why it was not "moved", or "".
    """

    __slots__ = (
        "__weakref__", "_array", "_copy", "_held", "_pid", "_pieces", "_range", "_region", "reason", "route",
    )  # fmt: skip

    def __init__(self, array: NDArray[Any], copy: bool | None) -> None:
        self._array = array
        self._copy = copy
        self._range: _Range | None = None
        self._region: Region | None = None
        self._held: NDArray[np.uint8] | None = None
        self._pieces: list[tuple[int, int]] = []
        self._pid = 0
        self.route: Literal["", "moved", "overlaid", "copied"] = ""
        self.reason = ""

    def __repr__(self) -> str:
        return f"<Snapshot of {self._array.dtype} {self._array.shape}, {self.route or 'not taken'}>"

    def __enter__(self) -> NDArray[Any]:
        if self._range is not None:
            raise MirrorError("this snapshot is open already; make another one")
        with _cutting:
            found = "copy=True was asked for" if self._copy else _range_of(self._array)
            if isinstance(found, _Range):
                return self._cut(found)
        self.route, self.reason = "copied", found
        nbytes = self._array.nbytes
        if self._copy is False:
            raise MirrorError(f"a snapshot of this array needs a copy of {format_nbytes(nbytes)}: {found}")
        if self._copy is None:
            text = (
                f"the snapshot is a copy of {format_nbytes(nbytes)}: {found}; copy=True says that it may be"
            )
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        frozen = share(self._array, populate=True)
        frozen.flags.writeable = False
        return frozen

    def _cut(self, found: _Range) -> NDArray[Any]:
        region, start, run, backing = found
        room = run.room
        frozen_range = run.offset, run.offset + room
        copy = placement.reserve(room, run.page_nbytes, offset=found.address, label=_LABEL)
        held = np.frombuffer(memoryview(kernel.span(region, start, run.nbytes)), "u1")
        backing.frozen.append(frozen_range)
        try:
            self._pieces = _pieces(found)
            self.route, self.reason = "moved", ""
            for at, nbytes in self._pieces:
                self._carry(found, copy, at, nbytes)
            _replace(found, private=True)
        except BaseException:
            backing.frozen.remove(frozen_range)
            copy.close()
            raise
        copy.keep = _Frozen([run._replace(protection=kernel.PROT_READ)])
        copy.expose(run.nbytes, True, False)
        backing.note(copy)
        self._range, self._region, self._held, self._pid = found, copy, held, os.getpid()
        array = self._array
        low = byte_bounds(array)[0]
        first = array.__array_interface__["data"][0] - low
        return array_over(
            copy,
            array.dtype,
            array.shape,
            low - found.address,
            strides=array.strides,
            start=first,
            readonly=True,
        )

    def _carry(self, found: _Range, copy: Region, at: int, nbytes: int) -> None:
        """Move one piece's page tables to `copy`, or show its pages there without them."""
        refused = _refusal()
        if not refused:
            try:
                _carry(copy, at, nbytes, found.region, found.start + at)
                return
            except MapError as error:
                refused = str(error)
        self.route, self.reason = "overlaid", refused
        run = found.run
        kernel.map_over(copy, at, nbytes, run.protection, found.backing.fd, run.offset + at, _LABEL)
        kernel.advise_quietly(copy, at, nbytes, kernel.MADV_DONTDUMP)

    def close(self) -> None:
        """Write back what was stored since the cut, and share the live view again. Again: no effect.

        No thread may write to the array meanwhile, else a store may be lost. The frozen array stays
        readable and shows what the original shows from now on.
        Raises: MapError when the kernel refuses; nothing is lost then, and it may be called again.
        """
        with _cutting:
            found, copy, held = self._range, self._region, self._held
            if found is None or copy is None or held is None:
                return
            if self._pid == os.getpid():  # a forked child keeps a private array of its own
                run = found.run
                pages = np.frombuffer(memoryview(kernel.span(copy, 0, run.nbytes)), "u1")
                for first, last in residency.private_ranges(found.address, run.room):
                    pages[first:last] = held[first:last]
                del pages
                self._share(found, copy)
            found.backing.frozen.remove((found.run.offset, found.run.offset + found.run.room))
            self._range = self._region = self._held = None

    def _share(self, found: _Range, copy: Region) -> None:
        """The live addresses show the object again; with the page-table entries it had, if it can be."""
        if self.route == "moved":
            try:
                for at, nbytes in self._pieces:
                    _carry(found.region, found.start + at, nbytes, copy, at)
                return
            except MapError:
                pass
        _replace(found, private=False)
        placement.settle(found.region, found.start, found.run)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def snapshot(array: NDArray[Any], *, copy: bool | None = None) -> Snapshot:
    """Freeze an array: `with snapshot(live) as frozen:` gives a read-only array of this moment.

    The original goes on being written, by any thread, through every array that shows it. The cut is
    one mmap(2), atomic for writers; it takes about 0.25 ms a GiB. A page that is written for the
    first time after it is copied first, as after fork(). At the end of the block what was written is
    put back into the pages and shared with mirrors and other processes again: no thread may write
    during that, else a store may be lost. `frozen` stays readable, and is no longer frozen.

    Args:
        array: writable, on a mapping of ours: `zeros` and friends, Pages.map, Growable. Its pages are
            frozen whole, with whatever else lies on them.
        copy: None: anything else is copied, with a RuntimeWarning that says why; no thread may write
            during that. True: copy, without a warning. False: never copy.
    Copied are: memory outside our mappings; memory with another live mirror in this process; an
    arrangement of several runs; huge pages of a pool; a read-only array; an array of which a snapshot
    is open.
    Raises: TypeError for what is no array, or has an object dtype; MirrorError with copy=False;
        MapError when memory for a copy, or address space, is short. Nothing has changed then.

    Inside the block mirror(), stitch(), handle(), Pages.map, resize, protect, discard and flush of these
    pages raise MirrorError. Other processes do not take part: what they store shows in `frozen`, and they
    see the stores made here after the block. In a child forked inside it the array stays private: the
    pages it writes are its own for good, the others show what the parent puts back. Each page written
    takes one more page of memory; where there is none, the kernel does what it does after
    fork(): it looks for a process to kill.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"a snapshot is taken of an ndarray, not {type(array).__name__}")
    check_dtype(array.dtype)
    return Snapshot(array, copy)


def _range_of(array: NDArray[Any]) -> _Range | str:
    """The whole pages under the array, or why they cannot be frozen."""
    region = own_region(array)
    if region is None or not array.nbytes:
        return "the array does not lie in a mapping of ours"
    arrangement: Arrangement = region.keep
    low, high = byte_bounds(array)
    start = round_down(low - region.address, arrangement.page_nbytes)
    end = min(arrangement.nbytes, -(-(high - region.address) // PAGE_NBYTES) * PAGE_NBYTES)
    runs = arrangement.part(start, end - start, region.address)
    run, backing = runs[0], runs[0].backing
    if len(runs) > 1:
        return "it lies in an arrangement of several runs"
    if backing is None:
        return "it is a mirror of memory that somebody else made"
    if run.page_nbytes > PAGE_NBYTES:
        return "huge pages of a pool cannot be moved and kept"
    if run.protection != kernel.PROT_READ | kernel.PROT_WRITE:
        return "its mapping may not be written"
    found = _Range(region, start, run, backing)
    if backing.is_frozen(run.offset, run.room):
        return "a snapshot of it is open"
    if _is_shown_elsewhere(found):
        return "another live mirror in this process shows its pages"
    return found


def _is_shown_elsewhere(found: _Range) -> bool:
    run = found.run
    for region, at, offset, nbytes in found.backing.shown():
        if offset >= run.offset + run.room or run.offset >= offset + nbytes:
            continue
        itself = region is found.region and at + run.offset - offset == found.start
        if not itself and not isinstance(region.keep, _Frozen):
            return True
    return False


def _pieces(found: _Range) -> list[tuple[int, int]]:
    """Where the entries of the address space under the range begin, and how long they are."""
    pieces: list[tuple[int, int]] = []
    address, room = found.address, found.run.room
    at = 0
    with AddressSpace() as space:
        while at < room:
            vma = space.at(address + at)
            end = room if vma is None else min(room, vma.end - address)
            pieces.append((at, end - at))
            at = end
    return pieces


@functools.cache
def _refusal() -> str:
    """Why this kernel (before Linux 5.13) moves no page tables of shared memory; "" if it does."""
    try:
        with page_moved():
            return ""
    except MapError as error:
        return str(error) if error.errno == errno.EINVAL else ""


def _carry(target: Region, at: int, nbytes: int, source: Region, source_at: int) -> None:
    """mremap(source, nbytes, nbytes, MAYMOVE|FIXED|DONTUNMAP, target): the page tables go along.

    Raises: MapError.
    """
    try:
        target.carry(at, nbytes, source, source_at)
    except OSError as error:
        kernel.fail("mremap", error, nbytes, _LABEL)


def _replace(found: _Range, *, private: bool) -> None:
    """mmap(live, MAP_FIXED|MAP_PRIVATE, or MAP_SHARED): one call, atomic for whoever writes there."""
    run = found.run
    try:
        found.region.replace(found.start, run.room, run.protection, private, found.backing.fd, run.offset)
    except OSError as error:
        kernel.fail("mmap", error, run.room, _LABEL)
