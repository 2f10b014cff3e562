"""Room: bytes at an address that become more, in place as long as addresses are reserved behind them."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mirrormap import kernel, procmaps
from mirrormap.backing import Backing
from mirrormap.errors import ClosedError, MapError
from mirrormap.kernel import PAGE_NBYTES, Region
from mirrormap.mapping import Mapping
from mirrormap.pages import Pages
from mirrormap.population import check_memory_left, take_huge_pages
from mirrormap.units import LIMIT_NBYTES, Size, round_down, round_up
from mirrormap.views import array_over

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["WRITTEN_FROM_NBYTES", "Room"]

_LABEL: Final = "growable"
_FIRST_NBYTES: Final = 16 * PAGE_NBYTES
_MOST_AHEAD_NBYTES: Final = 1 << 30  # address space and page tables, no memory
_FILE_AHEAD_NBYTES: Final = 1 << 20  # blocks of a disk
WRITTEN_FROM_NBYTES: Final = 64 << 10  # below, a call costs more than the faults
_HUGE_FROM_NBYTES: Final = 16 << 20  # below, a huge page is too large a part of the whole
_MOST_HUGE_AHEAD_NBYTES: Final = 32 << 20
_DEAR_S: Final = 0.4e-9  # a byte, of processor time: what a fault for every 4 KiB takes


class Room:
    """Pages of memory or of a file, shown from their first byte on, and how they grow.

    Not thread-safe: its owner holds a lock.
    """

    __slots__ = ("_huge_from", "_mapping", "_ready", "_taken", "_writes", "pages", "page_nbytes")

    def __init__(self, pages: Pages, reserve_nbytes: int, *, writes: bool, huge: bool = False) -> None:
        self.pages = pages
        self.page_nbytes = pages.page_size
        self._writes = writes
        self._huge_from = _HUGE_FROM_NBYTES if huge else LIMIT_NBYTES
        self._ready = self._huge_from  # behind it, memory is to be taken before it is stored into
        self._taken = 0  # up to here, in huge pages from where the last rows lay then
        self._mapping: Mapping | None = pages.map(
            protection="rw" if writes else "r", reserve=max(reserve_nbytes, pages.nbytes)
        )

    @classmethod
    def in_memory(cls, reserve_nbytes: int, page_size: Size | None) -> Room:
        """New pages, few of them.

        Args: page_size: None or "thp": transparent huge pages once there is much of it.
        """
        huge = page_size in (None, "thp") and PAGE_NBYTES < procmaps.pmd_nbytes() <= _HUGE_FROM_NBYTES
        if huge and page_size is None:
            pages = Pages._of(Backing.create_private(_FIRST_NBYTES, _LABEL))
        else:
            pages = Pages(_FIRST_NBYTES, page_size=page_size, name=_LABEL)
        return cls(pages, reserve_nbytes, writes=True, huge=huge)

    @property
    def mapping(self) -> Mapping:
        """What shows the bytes now. Raises: ClosedError."""
        if self._mapping is None or self._mapping.closed:
            raise ClosedError("this array is closed")
        return self._mapping

    @property
    def region(self) -> Region:
        """The range of addresses they are shown in now."""
        return self.mapping._live

    @property
    def closed(self) -> bool:
        """Whether nothing is shown any more."""
        return self._mapping is None or self._mapping.closed

    @property
    def nbytes(self) -> int:
        """Bytes that can be used without growing."""
        return self.mapping.nbytes

    @property
    def ready(self) -> int:
        """Bytes that are best stored into without asking for anything first."""
        return min(self.nbytes, self._ready)

    @property
    def backing(self) -> Backing:
        """The object behind them."""
        return self.pages._live

    def make(self, need: int) -> None:
        """Have room for `need` bytes, and some more where that costs nothing or little.

        Raises: ValueError, MapError; there is as much room as before then.
        """
        have = self.nbytes
        if need <= have:
            return
        if need > LIMIT_NBYTES - _MOST_AHEAD_NBYTES:
            raise ValueError(f"{need:,} bytes are more than any object can hold")
        if not self.backing.in_memory:
            ahead = max(_FILE_AHEAD_NBYTES, need // 8)
        elif self.backing.kind.huge_nbytes:
            ahead = 0
        else:
            ahead = min(max(have, need // 8), _MOST_AHEAD_NBYTES)
        try:
            self.grow(round_up(need + ahead, self.page_nbytes))
        except MapError:
            if not ahead:
                raise
            self.grow(round_up(need, self.page_nbytes))

    def take(self, used: int, need: int) -> None:
        """Have memory for bytes [used, need), and up to an eighth more, in huge pages if there are any.

        A fault for every 4 KiB would take nine times as long. Where a touch brings a huge page, it is only
        asked to. Where the kernel gives none, memory comes with those faults, as it is touched. Where one
        takes longer than its faults would, because pages have to be moved for it or a hypervisor has to find
        it, they are asked for again at twice the size.
        Raises: MapError ENOMEM when a memory cgroup forbids as much.
        """
        if need <= self._ready:
            return
        check_memory_left(need - used, "mmap", self.backing.label)
        pmd = procmaps.pmd_nbytes()
        first = used if self._ready == self._huge_from else max(used, self._ready)
        last = max(need, first + min(need // 8, _MOST_HUGE_AHEAD_NBYTES))
        last = min(round_up(last, pmd), self.nbytes)
        if self.backing.faults_huge:
            kernel.advise_quietly(self.region, first, last - first, kernel.MADV_HUGEPAGE)
            self._taken = self._ready = last
            return
        start = time.thread_time()
        if not take_huge_pages(self.region, first, last):
            self._ready = LIMIT_NBYTES
            return
        self._taken = last
        if time.thread_time() - start > (last - first) * _DEAR_S:
            self._ready = 2 * last
        else:
            self._ready = last

    def put(self, at: int, block: NDArray[Any]) -> bool:
        """Store a large block behind all that is used, by write(2) from the next whole page on.

        A store to a mapped page that is not there takes a fault, and the page is zeroed first; in a file
        the file system does much more. Pages that hold rows already are stored to where they are shown,
        because a snapshot may have a private copy of them; so is memory that was taken already.
        Args: block: of at least WRITTEN_FROM_NBYTES, which the caller asks without a call.
        Returns: whether it did; False for huge pages and for scattered blocks.
        Raises: MapError ENOMEM, EIO and their like; the bytes are zero as before then.
        """
        if not block.flags.c_contiguous:
            return False
        head = max(round_up(at, self.page_nbytes), self._taken) - at
        if head >= block.nbytes or self.backing.kind.huge_nbytes:
            return False
        raw = block.reshape(-1).view(np.uint8)
        array_over(self.region, np.uint8, (head,), at)[:] = raw[:head]
        try:
            kernel.pwrite(self.backing.fd, raw[head:].data, at + head, self.backing.label)
        except MapError:
            self.clear(at, at + raw.size)
            raise
        return True

    def grow(self, nbytes: int) -> None:
        """Show so many bytes: in place inside the window, else at a new address as well."""
        mapping = self.mapping
        if self._writes:
            self.backing.hold_space(mapping.nbytes, nbytes)
        if nbytes <= mapping._live.window:
            mapping.resize(nbytes)
            return
        self.backing.grow(nbytes)
        # the old region goes with its last array
        self._mapping = self.pages.map(0, nbytes, protection=mapping.protection, reserve=2 * nbytes)

    def clear(self, first: int, last: int) -> None:
        """Bytes [first, last) give their memory back and read zero; so does what was taken behind them."""
        if self._huge_from < self._ready < LIMIT_NBYTES:
            last = max(last, min(self._ready, self.nbytes))
        self._ready = self._huge_from
        self._taken = 0
        edge = min(last, round_up(first, self.page_nbytes))
        with memoryview(kernel.span(self.region, first, edge - first)) as view:
            view[:] = bytes(len(view))
        behind = min(round_up(last, self.page_nbytes), round_down(self.backing.nbytes, self.page_nbytes))
        if edge < behind:
            try:
                self.backing.discard(edge, behind - edge)
                edge = behind
            except MapError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
        if edge < last:
            array_over(self.region, np.uint8, (last - edge,), edge)[:] = 0

    def trim(self, end: int) -> None:
        """Show and have no more than `end` bytes. Raises: BufferError while a buffer shows more."""
        end = max(1, end)
        self._ready = self._huge_from
        self._taken = 0
        self.mapping.resize(end)
        self.pages.resize(end)

    def close(self, end: int | None) -> None:
        """Unmap, and cut a file to `end` bytes. Raises: BufferError while a buffer shows any."""
        self.mapping.close()
        self._mapping = None
        if end is not None:
            self.pages.resize(max(1, end))
            self.backing.unlock()
        self.pages.close()
