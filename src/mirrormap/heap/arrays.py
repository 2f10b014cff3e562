"""HeapArray: numbers that become more while others look at them, where they lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mirrormap import kernel
from mirrormap.errors import ClosedError, MapError
from mirrormap.growable import Growable
from mirrormap.kernel.heaps import HeapBase
from mirrormap.units import format_nbytes, round_up

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = ["HeapArray"]

_AHEAD: Final = 3  # addresses per byte: what is shown may be twice what was asked for
_STEP_NBYTES: Final = 64 << 10
_SMALL_NBYTES: Final = 16 << 20


class HeapArray:
    """`heap.array("f8")`: an array that grows under the arrays that show it. Made by Heap.

    Pages for as many bytes as the heap may hold are shown from the beginning, and exist only once they are
    needed: its elements never move, nothing is copied, and growing is no more than committing memory,
    64 KiB or more at a time. `array` is what there is now; arrays and memoryviews taken before stay
    valid and show the same memory.

    `len(a)`, `a[i]` and `np.asarray(a)` mean the elements. Its bytes count against `max_bytes` of the heap
    when it grows; `heap.stats().arrays` says how many. Appends of several threads take turns.

    Raises: MemoryError with the figures, and nothing was added; ClosedError after the heap was closed,
        and in a forked child; ValueError, TypeError for elements that cannot be.
    """

    __slots__ = ("__weakref__", "_committed", "_heap", "_limit", "_make_room", "_rows")

    def __init__(
        self, heap: HeapBase, dtype: DTypeLike, limit: int, make_room: Callable[[int, int], None]
    ) -> None:
        self._heap = heap
        self._limit = limit
        self._make_room = make_room
        self._committed = 0
        self._rows = Growable(dtype, reserve=_AHEAD * limit)
        self._rows._make(limit // self._rows.dtype.itemsize)

    def _commit(self, nbytes: int) -> None:
        """Have memory for so many bytes more, before anything is stored there. Raises: MemoryError."""
        need = self._rows.nbytes + nbytes
        if need <= self._committed:
            return
        # larger ones take theirs in huge pages, or by write(2), which says when there is none
        end = min(round_up(need, _STEP_NBYTES), self._limit, _SMALL_NBYTES)
        ahead = end - self._committed
        self._make_room(nbytes, max(nbytes, ahead))
        if ahead > 0:
            backing = self._rows._room.backing
            try:
                kernel.allocate(backing.fd, self._committed, ahead, backing.label)
            except MapError as error:
                raise MemoryError(f"no memory for {nbytes:,} bytes more of an array: {error}") from None
            self._committed = end

    @property
    def _live(self) -> Growable:
        if self._heap.closed:
            raise ClosedError("the heap of this array is closed, or another process's")
        return self._rows

    @property
    def array(self) -> NDArray[Any]:
        """The elements there are now, writable, no copy. Raises: ClosedError."""
        return self._live.array

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the elements."""
        return self._rows.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all elements. Raises: ClosedError."""
        return self._live.nbytes

    def append(self, value: ArrayLike) -> None:
        """Add one element. Raises: as extend()."""
        rows = self._live
        self._commit(rows.dtype.itemsize)
        rows.append(value)

    def extend(self, values: ArrayLike) -> None:
        """Add elements, cast to the dtype as an assignment would; also those of this very array.

        Args: values: of one dimension.
        Raises: MemoryError; ValueError for another shape; ClosedError. Kernel call: fallocate(2).
        """
        rows = self._live
        block = np.asarray(values, rows.dtype)
        self._commit(block.nbytes)
        rows.extend(block)

    def __len__(self) -> int:
        return len(self._live)

    def __getitem__(self, index: Any) -> Any:
        return self._live[index]

    def __setitem__(self, index: Any, value: ArrayLike) -> None:
        self._live[index] = value

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.array, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        if self._heap.closed:
            return "<HeapArray closed>"
        return f"<HeapArray {len(self):,} of {self.dtype}, {format_nbytes(self.nbytes)}>"

    def _check_unseen(self) -> None:
        """Raises: BufferError while an array of it lives."""
        self._rows._check_unseen(0)

    def _close(self) -> None:
        self._rows.close()
