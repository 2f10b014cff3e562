"""Growable: an array that gets longer under the arrays that show it.

    | rows ............ | room, mapped and zero | reserved addresses ........ |
    0                   len                     ^ grows by mapping more        reserve

Rows never move inside the reserve. Beyond it the whole is shown at a new address as well; the old
one lives as long as arrays show it, and both show the same pages.
"""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, SupportsIndex

import numpy as np

from mirrormap import kernel, portraits
from mirrormap.arrayfile import LIVE_AT, ArrayFile, commit, create_array, open_array
from mirrormap.errors import CorruptError, MirrorError
from mirrormap.lifetime import Closing
from mirrormap.room import WRITTEN_FROM_NBYTES, Room
from mirrormap.units import Size, as_nbytes, format_nbytes
from mirrormap.views import array_over, as_shape, check_dtype

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = ["Growable"]


class Growable(Closing):
    """An array of rows that can be appended to while others look at it. Nothing is ever copied.

    Args:
        dtype: of the elements. shape: of one row; () for plain numbers.
        reserve: address space set aside, in bytes; it costs no memory. Growth inside it happens in
            place; beyond it the rows are shown at a new address, and arrays taken before go on
            showing the same pages.
        page_size: as in Pages; not for files. None: ordinary pages, and from 16 MiB on transparent huge
            ones (of no more than 16 MiB) where they can be had, taken up to an eighth (32 MiB at most)
            ahead of the rows.
        path: a file to keep the rows in, created with mode 0600. One that is there must hold rows of
            this dtype and shape, and is appended to. See `Growable.open`.

    `array` is what there is now; take it again after appending. Arrays taken before stay valid and
    show the same memory. `len(g)`, `g[i]` and `np.asarray(g)` mean the rows.

    In a file the rows lie raw from byte `data_offset` on, behind a header of one page with dtype,
    shape and two checked row counts, so that `np.memmap(path, g.dtype, "r", g.data_offset)` reads
    them. `flush()` and `close()` commit: after a crash the file holds the rows committed last.
    One object writes a file at a time; any number read it meanwhile, in this process and others.

    A context manager. Thread-safe; appends of several threads take turns. A forked child reads the
    rows there were, and may not append. To give the rows to another process, send `handle(g.array)`,
    or let it open the file.

    Raises: ValueError, TypeError for a dtype, shape or size that cannot be, or that differs from the
        file's; BusyError for a file that has a writer; CorruptError for a damaged one; MapError when
        address space or memory is short.
    """

    __slots__ = (
        "__weakref__", "_count", "_dtype", "_lock", "_offset", "_path", "_pid", "_room", "_row_nbytes",
        "_rows", "_shape", "_writes",
    )  # fmt: skip

    def __init__(
        self,
        dtype: DTypeLike = float,
        shape: SupportsIndex | Sequence[int] = (),
        *,
        reserve: Size = "64GiB",
        page_size: Size | None = None,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        kind, dims = check_dtype(dtype), as_shape(shape)
        if kind.subdtype is not None:
            kind, inner = kind.subdtype
            dims += inner
        reserve_nbytes = as_nbytes(reserve, "reserve")
        file = ArrayFile(kind, dims, 0)
        self._describe(file, path, writes=True)
        if path is None:
            self._start(Room.in_memory(reserve_nbytes, page_size))
            return
        if page_size is not None:
            raise ValueError("a file's pages are those of its file system: leave page_size out")
        try:
            opened = open_array(path, reserve_nbytes, writes=True, expected=file)
        except FileNotFoundError:
            opened = create_array(path, file, reserve_nbytes)
        self._adopt(opened, path, writes=True)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        mode: Literal["r+", "r"] = "r+",
        *,
        reserve: Size = "64GiB",
    ) -> Self:
        """The rows of a file that Growable made, whatever their dtype and shape.

        Args: mode: "r+": to append, from the last commit on; "r": to read, also while another
            process appends: each `array` and `len` shows the rows there are at that moment.
        Raises: FileNotFoundError, PermissionError and their like; CorruptError; BusyError.
        """
        if mode not in ("r+", "r"):
            raise ValueError(f"mode {mode!r} must be 'r+' or 'r'")
        made = cls.__new__(cls)
        writes = mode == "r+"
        made._adopt(open_array(path, as_nbytes(reserve, "reserve"), writes=writes), path, writes=writes)
        return made

    # --- made, created, opened -----------------------------------------------------------

    def _describe(self, file: ArrayFile, path: str | os.PathLike[str] | None, *, writes: bool) -> None:
        self._dtype, self._shape, self._offset = file
        self._row_nbytes = file.row_nbytes
        if not self._row_nbytes:
            raise ValueError(f"rows of dtype {file.dtype} and shape {file.shape} have no bytes")
        self._path = None if path is None else os.fspath(path)
        self._writes = writes
        self._count = 0
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._rows: NDArray[Any] | None = None

    def _start(self, room: Room) -> None:
        self._room = room
        self._show()

    def _adopt(
        self, opened: tuple[ArrayFile, Room, int], path: str | os.PathLike[str], *, writes: bool
    ) -> None:
        file, room, rows = opened
        self._describe(file, path, writes=writes)
        self._start(room)
        if writes:
            # rows that were appended after the last commit are as good as never written
            self._publish(rows)
            room.clear(self._end(rows), max(room.backing.nbytes, self._end(rows)))

    # --- what it is ----------------------------------------------------------------------

    @property
    def array(self) -> NDArray[Any]:
        """The rows there are now, C-contiguous, no copy; read-only with mode "r"."""
        with self._lock:
            self._catch_up()
            if not self._count:  # holds nothing, so that it hinders nothing
                empty = np.empty((0, *self._shape), self._dtype)
                empty.flags.writeable = self._writes
                return empty
            return array_over(self._room.region, self._dtype, (self._count, *self._shape), self._offset)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.array, dtype=dtype, copy=copy)

    def __getitem__(self, index: Any) -> Any:
        return self.array[index]

    def __setitem__(self, index: Any, value: ArrayLike) -> None:
        self.array[index] = value

    def __len__(self) -> int:
        with self._lock:
            self._catch_up()
            return self._count

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the elements."""
        return self._dtype

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Of one row."""
        return self._shape

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return len(self) * self._row_nbytes

    @property
    def allocated(self) -> int:
        """Bytes the kernel really holds for them, in memory or on the disk."""
        return self._room.pages.allocated

    @property
    def address(self) -> int:
        """Of the first row; changes when growth leaves the reserve."""
        return self._room.region.address + self._offset

    @property
    def path(self) -> str | None:
        """The file, or None."""
        return self._path

    @property
    def data_offset(self) -> int:
        """Where the rows begin in the file, in bytes; 0 in memory."""
        return self._offset

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._room.closed

    def __repr__(self) -> str:
        if self.closed:
            return "<Growable closed>"
        where = f" in {self._path!r}" if self._path is not None else ""
        what = f"{len(self):,} rows of {self._dtype} {self._shape}"
        return f"<Growable {what}, {format_nbytes(self.nbytes)}{where}>"

    def _repr_html_(self) -> str:
        if self.closed:
            return portraits.of_region(None, repr(self))
        end = portraits.Mark(f"row {len(self):,}", self._end(len(self)))
        return portraits.of_region(self._room.region, repr(self), marks=[end])

    # --- growth --------------------------------------------------------------------------

    def append(self, row: ArrayLike) -> None:
        """Add one row. Raises: ValueError for another shape; whatever `extend` raises."""
        rows = np.asarray(row, self._dtype)
        if rows.shape != self._shape:
            raise ValueError(f"a row has shape {self._shape}, not {rows.shape}; extend() takes several")
        self._add(rows, 1)

    def extend(self, rows: ArrayLike) -> None:
        """Add several rows, cast to the dtype as an assignment would.

        Args: rows: of shape (n,) + item_shape; also rows of this very array.
        Raises: ValueError for another shape; MapError ENOMEM or ENOSPC, with nothing added.
        """
        block = np.asarray(rows, self._dtype)
        if block.ndim != len(self._shape) + 1 or block.shape[1:] != self._shape:
            shape = "".join(f", {n}" for n in self._shape)
            raise ValueError(f"rows have shape (n{shape}), not {block.shape}")
        self._add(block, len(block))

    def _add(self, block: NDArray[Any], count: int) -> None:
        with self._lock:
            self._check_writer()
            if not count:
                return
            stop = self._count + count
            if self._rows is None or stop > len(self._rows):
                self._make(stop, take=True)
                assert self._rows is not None
            if block.nbytes < WRITTEN_FROM_NBYTES or not self._room.put(self._end(self._count), block):
                self._rows[self._count : stop] = block
            self._publish(stop)

    def resize(self, count: SupportsIndex) -> None:
        """Have so many rows: new ones are zero; what goes gives its memory back.

        Raises: BufferError while an array shows rows that would go (a slice counts as the array it
            was cut from); MapError when memory or disk is short. Nothing has changed then.
        """
        stop = operator.index(count)
        if stop < 0:
            raise ValueError(f"count {stop} must not be negative")
        with self._lock:
            self._check_writer()
            if stop > self._count:
                self._make(stop)
            elif stop < self._count:
                self._check_unseen(stop)
                before = self._count
                self._publish(stop)
                self._room.clear(self._end(stop), self._end(before))
                self._show()
                return
            self._publish(stop)

    def shrink_to_fit(self) -> None:
        """Give back the room behind the last row: huge pages to their pool, a file's length.

        What is reserved stays reserved. Another process that shows rows of a file beyond its new end
        gets a SIGBUS when it touches them.
        Raises: BufferError while an array of this process shows what would go.
        """
        with self._lock:
            self._check_writer()
            self._check_unseen(self._count)
            self._rows = None
            try:
                self._room.trim(self._end(self._count))
            finally:
                self._show()

    def _end(self, count: int) -> int:
        return self._offset + count * self._row_nbytes

    def _show(self) -> None:
        """Hold an array of the room that is ready, for appending."""
        count = (self._room.ready - self._offset) // self._row_nbytes
        self._rows = None
        if self._writes and count > 0:
            self._rows = array_over(self._room.region, self._dtype, (count, *self._shape), self._offset)

    def _check_writer(self) -> None:
        _ = self._room.region
        if not self._writes:
            raise MirrorError("opened with mode='r': open it with 'r+' to change it")
        if self._pid != os.getpid():
            raise MirrorError("a forked child may not change its parent's array: open the file instead")

    def _check_unseen(self, count: int) -> None:
        """Raises: BufferError while a buffer of this process shows anything behind `count` rows."""
        self._rows = None
        try:
            if self._room.backing.is_shown(self._end(count)):
                raise BufferError(
                    f"arrays or memoryviews still show rows beyond {count:,}; delete them first"
                )
        finally:
            self._show()

    def _publish(self, count: int) -> None:
        self._count = count
        if self._path is not None:
            self._room.region.store_word(LIVE_AT, count)

    def _make(self, count: int, *, take: bool = False) -> None:
        self._rows = None  # what it shows may move
        try:
            self._room.make(self._end(count))
            if take:
                self._room.take(self._end(self._count), self._end(count))
        finally:
            self._show()

    # --- files ---------------------------------------------------------------------------

    def _catch_up(self) -> None:
        """As a reader: have the rows that the writer has stored by now."""
        region = self._room.region
        if self._writes:
            return
        count = region.load_word(LIVE_AT)
        if count != self._count:
            length = kernel.fstat(self._room.pages.fileno()).nbytes
            if count > (length - self._offset) // self._row_nbytes:
                raise CorruptError(f"{self._path!r} says it has {count:,} rows and ends before them")
            if self._end(count) > self._room.nbytes:
                self._room.grow(length)
            self._count = count

    def flush(self) -> None:
        """Commit: the rows there are now survive a crash. First they, then their number reach the disk.

        In memory there is nothing to do. Raises: MapError EIO, ENOSPC from the disk.
        """
        with self._lock:
            self._check_writer()
            if self._path is not None:
                self._room.pages.flush()
                commit(self._room.region, self._count)
                self._room.pages.flush()

    def close(self) -> None:
        """Let go of the rows; a file is committed first and cut to their end. Again: no effect.

        Raises: BufferError while arrays of it live; the file is committed by then.
        """
        with self._lock:
            if self._room.closed:
                return
            mine = self._path is not None and self._writes and self._pid == os.getpid()
            if mine:
                self.flush()
            self._rows = None
            try:
                self._room.close(self._end(self._count) if mine else None)
            finally:
                if not self._room.closed:
                    self._show()

    @property
    def _live(self) -> object:
        return self._room.region

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Growable stays in its process: send handle(g.array), or the path of its file")
