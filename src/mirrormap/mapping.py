"""Mapping: a placed arrangement. The virtual side of memory.

    reserved ──fill──▶ mapped ──close / last view──▶ closed
                        │  ▲
                        └──┘ resize, protect, populate

A mapping shows one region at a time. When it has to move, the old region lives on for as long as
arrays show it, and both show the same pages.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, SupportsIndex

from mirrormap import kernel, placement, population, portraits, residency
from mirrormap.errors import ClosedError, MapError
from mirrormap.kernel import Exporter, Region
from mirrormap.lifetime import Closing
from mirrormap.placement import Arrangement, Run
from mirrormap.protections import protection_bits, protection_name
from mirrormap.units import Size, as_nbytes, as_range, check_address, format_nbytes, round_up
from mirrormap.views import array_over

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

__all__ = ["Mapping"]

_CLOSED: Final = "this mapping is closed"


class Mapping(Exporter, Closing):
    """A range of addresses that shows an arrangement of page runs.

    Made by `Pages.map`, `arrange` and `views`, by `mirror()` and by `Mapping.mirror`. Exports a
    writable or read-only buffer (1-D, format "B"), so `memoryview(m)`, `np.frombuffer(m)` and
    `bytes(m)` work. Closing one view never disturbs another: the pages live until the last goes.

    A context manager. Thread-safe: `resize`, `protect`, `populate`, `mirror` and `close` of one
    mapping take turns; reading and writing the bytes is the caller's to order.

    Attributes:
        address: of the first byte; changes when `resize` has to move.
        nbytes: bytes shown; `len(m)` too.
    """

    __slots__ = ("__weakref__", "_inherit", "_label", "_lock", "_reserved")
    _inherit: Literal["share", "none"]
    _label: str
    _lock: threading.RLock
    _reserved: bool  # the window is larger than what is shown, and stays so when that shrinks

    def __init__(self) -> None:
        raise TypeError("make a Mapping with Pages.map(), Pages.arrange(), Pages.views() or mirror()")

    @classmethod
    def _of(cls, region: Region, label: str) -> Self:
        mapping = cls.__new__(cls)
        mapping._region = region
        mapping._label = label
        mapping._lock = threading.RLock()
        mapping._inherit = "share"
        arrangement: Arrangement = region.keep
        mapping._reserved = region.window >= arrangement.nbytes + arrangement.page_nbytes
        return mapping

    @classmethod
    def _placed(
        cls,
        runs: list[Run],
        *,
        label: str,
        window_nbytes: int = 0,
        address: int | None = None,
        populate: bool = False,
    ) -> Self:
        """The one way from runs to a Mapping, populated or not made at all."""
        region = placement.place(runs, label=label, window_nbytes=window_nbytes, address=address)
        return cls._settled(region, label, populate=populate)

    @classmethod
    def _settled(cls, region: Region, label: str, *, populate: bool) -> Self:
        mapping = cls._of(region, label)
        if populate:
            try:
                mapping._populate(write=True)
            except BaseException:
                mapping.close()
                raise
        return mapping

    @property
    def _live(self) -> Region:
        region = self._region
        if region is None or region.closed:
            raise ClosedError(_CLOSED)
        return region

    @property
    def _arrangement(self) -> Arrangement:
        arrangement: Arrangement | None = self._live.keep
        if arrangement is None:  # another thread has closed it just now
            raise ClosedError(_CLOSED)
        return arrangement

    # --- what it is ----------------------------------------------------------------------

    @property
    def address(self) -> int:
        """Address of the first byte."""
        return self._live.address

    @property
    def nbytes(self) -> int:
        """Bytes shown."""
        return self._live.nbytes

    def __len__(self) -> int:
        return self._live.nbytes

    @property
    def protection(self) -> str:
        """ "none", "r", "rw" or "rx"; "mixed" where parts differ."""
        bits = self._arrangement.protection
        return "mixed" if bits is None else protection_name(bits)

    @property
    def page_size(self) -> int:
        """Granularity of offsets, in bytes: the largest page size among the runs."""
        return self._arrangement.page_nbytes

    @property
    def closed(self) -> bool:
        """Whether it shows nothing any more; in a forked child also when it was not inherited."""
        region = self._region
        return region is None or region.closed

    @property
    def resident(self) -> int:
        """Bytes that have page-table entries in this view: touching them costs no fault."""
        return residency.nbytes_present(self.address, self.nbytes)

    @property
    def resident_huge(self) -> int:
        """Bytes of `resident` under huge page-table entries, hugetlb or transparent."""
        return residency.nbytes_huge(self.address, self.nbytes)

    def __repr__(self) -> str:
        if self.closed:
            return "<Mapping closed>"
        runs = len(self._arrangement.runs)
        return (
            f"<Mapping {self._label!r} {format_nbytes(self.nbytes)} at {self.address:#x}, "
            f"{self.protection!r}, {format_nbytes(self.page_size)} pages"
            f"{f', {runs} runs' if runs > 1 else ''}>"
        )

    def _repr_html_(self) -> str:
        return portraits.of_region(self._region, repr(self))

    # --- views ---------------------------------------------------------------------------

    def array(
        self, dtype: DTypeLike = "u1", shape: SupportsIndex | Sequence[int] | None = None, offset: int = 0
    ) -> NDArray[Any]:
        """An ndarray over the bytes from `offset` on, C-contiguous, no copy.

        Args: shape: items by dimension; None: as many whole items as fit, 1-D.
        Returns: writable if the mapping is; it keeps its range of addresses alive, and its part
            cannot be closed or shrunk away under it.
        Raises: TypeError for object dtypes; ValueError if it does not fit; BufferError if the
            protection is "none".
        """
        with self._lock:  # what it shows may not go while it is looked up
            return array_over(self._live, dtype, shape, offset)

    def mirror(
        self,
        offset: Size = 0,
        nbytes: Size | None = None,
        *,
        protection: str | None = None,
        populate: bool = False,
        address: int | None = None,
    ) -> Mapping:
        """Show some or all of the same pages at one more address.

        Args: offset: a multiple of `page_size`. nbytes: the rest by default.
            protection: that of each part by default. populate: make the page-table entries now,
            ready for writing if that is allowed. address: a multiple of `page_size` where nothing
            is mapped.
        Returns: a Mapping of its own, which may outlive this one. A ring stays a ring.
        Raises: ValueError for a range that does not fit; MapError EEXIST for an occupied address,
            EACCES for more rights than the file was opened with.
        """
        with self._lock:
            arrangement = self._arrangement
            start, count = as_range(offset, nbytes, self.nbytes, arrangement.page_nbytes, "mirror")
            check_address(address, arrangement.page_nbytes)
            if not count:
                raise ValueError("a mirror needs at least one byte")
            bits = None if protection is None else protection_bits(protection)
            runs = arrangement.part(start, count, self.address, bits)
            return Mapping._placed(runs, label=self._label, address=address, populate=populate)

    # --- changes -------------------------------------------------------------------------

    def resize(self, nbytes: Size) -> None:
        """Grow or shrink this view; past the object's end the object grows too.

        In place inside the window `reserve=` made. Otherwise the view moves, and arrays taken
        before keep showing the same pages at the old address. Shrinking unmaps the tail of this
        view and leaves the pages.
        Raises: BufferError if an array shows what would go; ValueError on an arrangement of
            several runs; MapError if memory, the pool of huge pages or address space is short.
        """
        with self._lock:
            arrangement = self._arrangement
            arrangement.check_thawed()
            count = as_nbytes(nbytes, "nbytes")
            if count > self.nbytes and arrangement.runs[0].backing is None:
                placement.find_backings(self._live, arrangement)
            if not arrangement.is_plain:
                raise ValueError("an arrangement of several runs keeps its size; arrange a new one")
            if count < self.nbytes:
                self._shrink(count)
            elif count > self.nbytes:
                self._grow(count)

    def _shrink(self, nbytes: int) -> None:
        region, arrangement = self._live, self._arrangement
        room = round_up(nbytes, arrangement.page_nbytes)
        taken = round_up(arrangement.nbytes, arrangement.page_nbytes)
        if region.shown(nbytes, region.nbytes):
            raise BufferError(f"arrays or memoryviews still show bytes beyond {nbytes:,}; delete them first")
        if room < taken:
            if self._reserved:
                kernel.vacate(region, room, taken - room, self._label)
            else:
                kernel.trim(region, room, self._label)
        arrangement.runs = arrangement.part(0, nbytes, 0)
        placement.show(region, arrangement)

    def _grow(self, nbytes: int) -> None:
        region, arrangement = self._live, self._arrangement
        last = arrangement.runs[-1]
        backing = last.backing
        assert backing is not None
        start = arrangement.runs[0].offset
        backing.grow(start + nbytes)
        page = last.page_nbytes
        room, taken = round_up(nbytes, page), round_up(arrangement.nbytes, page)
        # a truncated file shows less than was arranged, so the arrangement is what counts
        grown = arrangement.part(0, nbytes, 0)
        if nbytes > arrangement.nbytes:
            grown[-1] = last._replace(nbytes=last.nbytes + nbytes - arrangement.nbytes)
        if room <= region.window:
            if room > taken:
                tail = last._replace(offset=start + taken, nbytes=room - taken)
                try:
                    placement.fill(region, taken, [tail], self._label)
                except MapError as error:
                    raise placement.explained(error, Arrangement([tail])) from None
            arrangement.runs = grown
            placement.show(region, arrangement)
        else:
            # the old region goes with its last view
            self._region = placement.place(grown, label=self._label, window_nbytes=room)
            self._reserved = False
        if self._inherit == "none":
            self.inherit = "none"

    def protect(self, protection: str, offset: Size = 0, nbytes: Size | None = None) -> None:
        """Change what this view allows; other views of the pages keep theirs (mprotect(2)).

        Arrays taken before are not told: a store through one of them into a range that has become
        read-only is a SIGSEGV, as after mprotect. New arrays are read-only by themselves.

        Args: protection: "none", "r", "rw", "rx". offset: a multiple of `page_size`; `nbytes` too,
            unless it reaches the end.
        Raises: MapError EACCES: the file or the mirrored memory was opened with fewer rights.
        """
        with self._lock:
            region, arrangement = self._live, self._arrangement
            bits = protection_bits(protection)
            page = arrangement.page_nbytes
            start, count = as_range(offset, nbytes, self.nbytes, page, "protect", whole=True)
            arrangement.check_thawed(start, count)
            if count:
                kernel.mprotect(region, start, round_up(count, page), bits, self._label)
                arrangement.protect(start, count, bits)
                placement.show(region, arrangement)

    def populate(self, write: bool = False) -> None:
        """Make the page-table entries of the whole view now (MADV_POPULATE_READ, _WRITE).

        Afterwards touching costs no fault. `write` makes sure of that for stores too: on memory it
        comes for free on x86; on files it dirties every page.
        Raises: MapError naming the range, where a page cannot be had: past a file's end, or with
            memory, pool or file system full. ValueError if the protection does not allow it.
        """
        with self._lock:
            if write and not self._arrangement.allows(kernel.PROT_WRITE):
                raise ValueError("a view that is not writable cannot be populated for writing")
            self._populate(write=write)

    def _populate(self, *, write: bool) -> None:
        """With `write`, the parts that may be written are made ready for it."""
        if not self._arrangement.allows(kernel.PROT_READ):
            raise ValueError("protection 'none' cannot be populated; protect('r') first")
        population.populate(self._live, self._arrangement, write=write)

    def discard(self, offset: Size = 0, nbytes: Size | None = None) -> None:
        """Give the pages of a range back to the system (MADV_REMOVE): zeros in every view.

        For memory somebody else made, which has no Pages; huge pages of others too.
        Args: offset and nbytes: multiples of `page_size`.
        Raises: MapError EACCES if this view may not write, EOPNOTSUPP for a file system without holes.
        """
        with self._lock:
            region, arrangement = self._live, self._arrangement
            page = arrangement.page_nbytes
            start, count = as_range(offset, nbytes, self.nbytes, page, "discard", whole=True)
            arrangement.check_thawed(start, count)
            if count:
                kernel.madvise(region, start, round_up(count, page), kernel.MADV_REMOVE, self._label)

    def flush(self) -> None:
        """msync(2): what was written through this view is on the disk. Nothing to do for memory."""
        with self._lock:
            self._arrangement.check_thawed()
            kernel.msync(self._live, 0, round_up(self.nbytes, self.page_size), self._label)

    @property
    def inherit(self) -> Literal["share", "none"]:
        """What a forked child gets: the same pages ("share"), or nothing at this address ("none").

        With "none" the mapping counts as closed in the child, which never unmaps the range: by
        then it may belong to something else there (MADV_DONTFORK).
        """
        return self._inherit

    @inherit.setter
    def inherit(self, value: Literal["share", "none"]) -> None:
        if value not in ("share", "none"):
            raise ValueError(f"inherit {value!r} must be 'share' or 'none'")
        with self._lock:
            region = self._live
            kept = value == "share"
            advice = kernel.MADV_DOFORK if kept else kernel.MADV_DONTFORK
            kernel.madvise(region, 0, region.window, advice, self._label)
            region.confine(not kept)
            self._inherit = value

    # --- the end -------------------------------------------------------------------------

    def close(self) -> None:
        """Unmap this view; others of the same pages are not touched. Again: no effect.

        Raises: BufferError while arrays or memoryviews of it live.
        """
        with self._lock:
            region = self._region
            if region is not None:
                kernel.unmap(region, self._label)
                self._region = None

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, value, trace)
        self._region = None  # after an exception, under a live view: the range goes with that

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Mapping has an address of this process; pickle its Pages and map them there")
