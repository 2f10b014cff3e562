"""Ring: a stream buffer whose windows are always contiguous arrays, with no copying.

A window of an overwriting ring is live: when the writer comes round again, it changes under whoever
holds it. Compute on it, then ask `valid(start)`: true means that nothing was overwritten meanwhile.

            item 0 lies at byte 0, item i at byte i * itemsize modulo the bytes of data
    data    |0123456789|0123456789|     the same pages twice: what crosses the seam goes straight on
"""

from __future__ import annotations

import contextlib
import operator
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, SupportsIndex, cast

import numpy as np

from mirrormap import handover, kernel, portraits
from mirrormap.backing import Backing, page_kind
from mirrormap.cursors import (
    CONTROL_NBYTES,
    Attached,
    Deadline,
    Geometry,
    evict_dead,
    inscribe,
    own_token,
    read_header,
    take_writer,
)
from mirrormap.errors import BusyError, CorruptError, Overrun
from mirrormap.lifetime import SelfClosing
from mirrormap.mapping import Mapping
from mirrormap.pages import Pages
from mirrormap.reader import Reader
from mirrormap.units import LIMIT_NBYTES, Size, format_nbytes, round_up
from mirrormap.views import check_dtype

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

__all__ = ["Ring"]

_LABEL = "ring"


class Ring(Attached, SelfClosing):
    """The newest items of an endless stream, any stretch of them as one array.

    Args:
        capacity: items to hold; rounded up to what fits in whole pages.
        dtype, shape: of one item. Rows need not divide a page.
        overwrite: True: the writer never waits and the oldest items give way. False: it waits for
            the slowest reader, and nothing is lost.
        page_size: as in Pages. populate: make all page-table entries now.
        path: a file to keep it in, created with mode 0600; it outlives the process.

    One writer, any number of readers, in threads or processes. The first append, extend or reserve
    takes the writer's place; close() or the end of the process frees it. Indices are absolute: item
    0 is the first ever written. Windows are read-only and keep the pages, also after close().

    Picklable between processes of one machine (the descriptor travels); a context manager.
    Thread-safe: appends of several threads through one object take turns.

    Raises: ValueError, TypeError for a capacity, dtype or shape that cannot be; FileExistsError for
        a path that is there (use Ring.open); MapError when memory is short.
    """

    __slots__ = ("__weakref__", "_geometry", "_pages")
    _geometry: Geometry
    _pages: Pages

    def __init__(
        self,
        capacity: int,
        dtype: DTypeLike = "float32",
        shape: SupportsIndex | Sequence[int] = (),
        *,
        overwrite: bool = True,
        page_size: Size | None = None,
        populate: bool = True,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        kind = check_dtype(dtype)
        items = operator.index(capacity)
        dims = tuple(map(int, shape)) if isinstance(shape, Sequence) else (operator.index(shape),)
        if kind.subdtype is not None:
            kind, inner = kind.subdtype
            dims += inner
        geometry = Geometry(0, 0, kind, dims, bool(overwrite))
        if items < 1 or any(count < 1 for count in dims) or not geometry.item_nbytes:
            raise ValueError(
                f"a ring needs at least one item of at least one byte, not {capacity} of {kind}, shape {dims}"
            )
        pages_of = page_kind(page_size)
        if items * geometry.item_nbytes > LIMIT_NBYTES >> 1:
            raise ValueError(f"{items:,} items of {geometry.item_nbytes:,} bytes are more than can be mapped")
        geometry = geometry._replace(
            offset=round_up(CONTROL_NBYTES, pages_of.nbytes),
            nbytes=round_up(items * geometry.item_nbytes, pages_of.nbytes),
        )
        head = geometry.packed()
        total = geometry.offset + geometry.nbytes
        if path is None:
            backing = Backing.create(total, pages_of, _LABEL)
        else:
            if page_size is not None:
                raise ValueError("page_size= is for rings in memory: the file system decides for path=")
            backing = Backing.create_file(path, total)
        try:
            control = self._map(backing, geometry, populate=populate).array()
            inscribe(control, head)
        except BaseException:
            if path is not None:
                os.unlink(path)
            raise

    def _map(self, backing: Backing, geometry: Geometry, *, populate: bool) -> Mapping:
        """Attach to an object. Returns: its control pages."""
        pages = Pages._of(backing)
        ring = [(geometry.offset, geometry.nbytes)] * 2
        control = pages.map(0, geometry.offset, populate=True)
        data = pages.arrange(ring, populate=populate)
        self._pages, self._geometry = pages, geometry
        window = data._live
        shown = kernel.span(window, 0, data.nbytes, readonly=True)
        geometry.attach(self, control._live, window, shown)
        return control

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """The ring in a file, with what was committed to it.

        Raises: FileNotFoundError, PermissionError; CorruptError, saying what is wrong.
        """
        return cls._opened(Backing.adopt(kernel.open_file(path, os.O_RDWR)))

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """The ring behind a descriptor, another ring's fileno() say. It is duplicated."""
        with Pages.from_fd(fd) as pages:
            return cls._opened(pages._live)

    @classmethod
    def _opened(cls, backing: Backing) -> Self:
        geometry = Geometry.parsed(read_header(backing, "ring"), backing.nbytes, backing.kind.nbytes)
        ring = cls.__new__(cls)
        ring._map(backing, geometry, populate=False)
        if not ring._cursors_fit:
            ring.close()
            raise CorruptError("the ring's cursors are damaged: they do not fit together")
        return ring

    # --- what it is ----------------------------------------------------------------------

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of an item."""
        return self._geometry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an item; () for scalars."""
        return self._geometry.shape

    @property
    def overwrite(self) -> bool:
        """Whether the oldest items give way; otherwise the writer waits for its readers."""
        return self._geometry.overwrite

    @property
    def nbytes(self) -> int:
        """Bytes of data, counted once."""
        return self._geometry.nbytes

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return not self._attached

    def __len__(self) -> int:
        """Items that are intact."""
        return self.written - self.oldest

    def __repr__(self) -> str:
        if self.closed:
            return "<Ring closed>"
        item = f"{self.dtype}{list(self.shape) if self.shape else ''}"
        way = "overwriting" if self.overwrite else "lossless"
        return (
            f"<Ring {way}, {self.capacity:,} items of {item}, {format_nbytes(self.nbytes)}, "
            f"{self.written:,} written>"
        )

    def _repr_html_(self) -> str:
        if self.closed:
            return portraits.of_region(None, repr(self))
        marks = self._geometry.marks(written=self.written, oldest=self.oldest)
        return portraits.of_region(self._regions[1], repr(self), marks=marks)

    def fileno(self) -> int:
        """The descriptor, close-on-exec and still ours."""
        return self._pages.fileno()

    # --- reading -------------------------------------------------------------------------

    def windows(self, nitems: int, step: int = 1) -> NDArray[Any]:
        """All windows of `nitems` that are intact now, `step` items apart, without copying.

        Returns: read-only, shape ``(k, nitems, *shape)``; the first begins at the oldest intact item.
        """
        count, stride = operator.index(nitems), operator.index(step)
        if count < 1 or stride < 1:
            raise ValueError(f"windows of {count} items {stride} apart cannot be")
        with contextlib.suppress(Overrun):
            return self._strided(self.window(self.oldest, self.written), count, stride)
        return self.windows(nitems, step)  # overtaken between the two cursors

    def _strided(self, whole: NDArray[Any], count: int, step: int) -> NDArray[Any]:
        number = max(0, (len(whole) - count) // step + 1)
        shape = (number, count, *self.shape)
        strides = (step * whole.strides[0], *whole.strides)
        return np.lib.stride_tricks.as_strided(whole, shape, strides, writeable=False)

    def reader(self, start: Literal["now", "oldest"] | int = "now") -> Reader:
        """A reader with a place of its own in the stream.

        Args: start: "now": after what is written; "oldest": at the oldest item left; or an index.
        Raises: IndexError for an index not written yet, Overrun for one that is overwritten;
            BusyError when a lossless ring has 184 readers.
        """
        return Reader._of(self, self._geometry, start)

    # --- called from C -------------------------------------------------------------------

    def _take(self) -> None:
        """Take the writer's place, which a dead writer has left or nobody holds."""
        try:
            take_writer(self, "ring", "writes", "writer")
        except BusyError:
            if not self._holds:  # else another thread has taken it for this object just now
                raise

    def _refuse_busy(self, waiting: bool) -> None:
        if waiting:
            raise BusyError("another thread waits for room in this ring")
        raise BusyError("a reservation is open: commit() it first")

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline(timeout)

    def _wait_for_room(self, count: int, partly: int, deadline: Deadline) -> None:
        while not self._wait_room(count, milliseconds := deadline.slice_ms(), partly):
            if not evict_dead(self) and not milliseconds:
                raise TimeoutError(f"no room for {count:,} items: the slowest reader needs them")

    def _converted(self, block: Any, one: bool) -> NDArray[Any]:
        """A block (or with `one` an item) as a C-contiguous array of the ring's dtype, elsewhere."""
        if isinstance(block, bytes | bytearray | memoryview):
            block = np.asarray(memoryview(cast("bytes", block)))
        array: NDArray[Any]
        if isinstance(block, np.ndarray):
            array = cast("NDArray[Any]", block).astype(self.dtype, order="C", casting="same_kind")
        else:
            array = np.array(block, dtype=self.dtype, order="C")
        if array.shape == (0,) and not one:  # []
            array = array.reshape(0, *self.shape)
        expected = self.shape if one else (len(array) if array.ndim else 0, *self.shape)
        if array.shape != expected:
            wanted = self.shape if one else ("n", *self.shape)
            raise ValueError(f"shape {array.shape} does not fit: this ring takes {wanted}".replace("'", ""))
        return array

    # --- the end, and other processes ----------------------------------------------------

    def close(self) -> None:
        """Free the writer's place if we hold it, and let go of the pages; windows keep theirs.

        Raises: BusyError while another thread waits for room in this ring.
        """
        if self._waiting:
            self._refuse_busy(True)
        if self._holds:
            self._seize_writer(own_token(), 0)
        self._detach()
        if hasattr(self, "_pages"):
            self._pages.close()

    @property
    def _live(self) -> int:
        return self.capacity  # which says so when there is none

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (handover.send(self.fileno()),)


def _rebuild(sent: Any) -> Ring:
    return Ring._opened(Backing.adopt(handover.receive(sent)))
