"""Room: bytes at an address that become more, in place as long as addresses are reserved behind them."""

from __future__ import annotations

import errno
from typing import Final

import numpy as np

from mirrormap import kernel
from mirrormap.backing import Backing
from mirrormap.errors import ClosedError, MapError
from mirrormap.kernel import PAGE_NBYTES, Region
from mirrormap.mapping import Mapping
from mirrormap.pages import Pages
from mirrormap.units import LIMIT_NBYTES, Size, round_down, round_up
from mirrormap.views import array_over

__all__ = ["Room"]

_LABEL: Final = "growable"
_FIRST_NBYTES: Final = 16 * PAGE_NBYTES
_MOST_AHEAD_NBYTES: Final = 1 << 30  # address space and page tables, no memory
_FILE_AHEAD_NBYTES: Final = 1 << 20  # blocks of a disk


class Room:
    """Pages of memory or of a file, shown from their first byte on, and how they grow.

    Not thread-safe: its owner holds a lock.
    """

    __slots__ = ("_mapping", "_writes", "pages", "page_nbytes")

    def __init__(self, pages: Pages, reserve_nbytes: int, *, writes: bool) -> None:
        self.pages = pages
        self.page_nbytes = pages.page_size
        self._writes = writes
        self._mapping: Mapping | None = pages.map(
            protection="rw" if writes else "r", reserve=max(reserve_nbytes, pages.nbytes)
        )

    @classmethod
    def in_memory(cls, reserve_nbytes: int, page_size: Size | None) -> Room:
        """New pages, few of them."""
        return cls(Pages(_FIRST_NBYTES, page_size=page_size, name=_LABEL), reserve_nbytes, writes=True)

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
        """Bytes [first, last) give their memory back and read zero."""
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
