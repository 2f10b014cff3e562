"""Overlap through mirrors: what NumPy, which compares addresses, cannot see.

Arrays are carried over from addresses to the objects behind them: every entry of the address space
that an array crosses is a window onto (device, inode, offset). Two arrays share a byte when, in
some pair of windows onto one object, they do so at object offsets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.lib.array_utils import byte_bounds

from mirrormap.procmaps import AddressSpace
from mirrormap.units import round_down, round_up
from mirrormap.views import buffer_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["copyto", "is_mirror", "shares_memory"]

# keeps made-up addresses away from zero, so that negative strides stay positive
_BASE = 1 << 40


class _Window(NamedTuple):
    """Addresses [start, end) show an object from `offset` on."""

    start: int
    end: int
    object: tuple[int, int]
    offset: int
    page_nbytes: int


class _Bytes(NamedTuple):
    """An array taken apart into bytes; never dereferenced, so the address may be made up."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def bounds(self) -> tuple[int, int]:
        low = high = self.address
        for count, stride in zip(self.shape, self.strides, strict=True):
            reach = (count - 1) * stride
            low, high = low + min(0, reach), high + max(0, reach)
        return low, high + 1

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "typestr": "|u1",
            "shape": self.shape,
            "strides": self.strides,
            "data": (self.address, True),
        }


def is_mirror(a: Any, b: Any) -> bool:
    """Do these two buffers show any of the same pages, at whatever addresses?

    Args: a, b: anything with a buffer, SharedMemory, and ndarrays of any strides.
    Pages count whole: two halves of one page show the same page. Private memory has no second
    address, so there only the same address counts.
    """
    with AddressSpace() as space:
        left, right = (_windows(space, *_extent(source)) for source in (a, b))
    return any(True for _ in _common(left, right, whole_pages=True))


def shares_memory(a: Any, b: Any) -> bool:
    """Do two arrays have a byte in common? np.shares_memory, but right through mirrors.

    Args: a, b: arrays, buffers such as Mapping, or SharedMemory.
    Exact, for any shape and strides, with NumPy's own solver, whose worst cases take exponential
    time; ordinary slices do not.
    """
    left, right = (_as_array(source) for source in (a, b))
    if left.size == 0 or right.size == 0 or left.itemsize == 0 or right.itemsize == 0:
        return False
    with AddressSpace() as space:
        left_windows = _windows(space, *byte_bounds(left))
        right_windows = _windows(space, *byte_bounds(right))
    for one, other in _common(left_windows, right_windows, whole_pages=False):
        for mine in _inside(_bytes_of(left), one):
            for theirs in _inside(_bytes_of(right), other):
                if np.shares_memory(_at_object(mine, one), _at_object(theirs, other)):
                    return True
    return False


def copyto(dst: NDArray[Any], src: ArrayLike) -> None:
    """np.copyto(dst, src) that is right when both overlap through a mirror.

    NumPy compares addresses, sees no overlap, and copies front to back over bytes it has yet to
    read. Here such a source is copied aside first.

    Args: dst: a writable array; src: anything that broadcasts to it, cast by "same_kind".
    Where `dst` itself shows a byte twice, which of the values it gets is not defined.
    """
    source = np.asarray(src)
    if not isinstance(dst, np.ndarray):
        raise TypeError(f"dst must be an ndarray, not {type(dst).__name__}")
    if not np.may_share_memory(dst, source) and shares_memory(dst, source):
        source = source.copy()
    np.copyto(dst, source)


def _as_array(source: Any) -> NDArray[Any]:
    if isinstance(source, np.ndarray):
        return cast("NDArray[Any]", source)
    return np.frombuffer(buffer_of(source), dtype="u1")


def _extent(source: Any) -> tuple[int, int]:
    array = _as_array(source)
    return byte_bounds(array) if array.size and array.itemsize else (0, 0)


def _windows(space: AddressSpace, low: int, high: int) -> list[_Window]:
    """The entries under [low, high), clipped to it."""
    found: list[_Window] = []
    at = low
    while at < high and (vma := space.at(at, following=True)) is not None and vma.start < high:
        start, end = max(vma.start, low), min(vma.end, high)
        if vma.shared:
            place, offset = (vma.dev, vma.inode), vma.offset + start - vma.start
        else:
            place, offset = (-1, -1), start
        found.append(_Window(start, end, place, offset, vma.page_nbytes))
        at = vma.end
    return found


def _common(
    left: list[_Window], right: list[_Window], *, whole_pages: bool
) -> Iterator[tuple[_Window, _Window]]:
    """Pairs of windows that show some of the same bytes, or pages, of one object."""
    for one in left:
        for other in right:
            if one.object != other.object:
                continue
            page = max(one.page_nbytes, other.page_nbytes) if whole_pages else 1
            first, second = (
                (round_down(w.offset, page), round_up(w.offset + w.end - w.start, page)) for w in (one, other)
            )
            if first[0] < second[1] and second[0] < first[1]:
                yield one, other


def _bytes_of(array: NDArray[Any]) -> _Bytes:
    return _Bytes(
        array.__array_interface__["data"][0],
        (*array.shape, array.itemsize),
        (*array.strides, 1),
    )


def _inside(part: _Bytes, window: _Window) -> Iterator[_Bytes]:
    """The pieces of `part` that lie in the window, split along its longest reach at the edges."""
    low, high = part.bounds
    if window.start <= low and high <= window.end:
        yield part
    elif low < window.end and window.start < high:
        reach = [(count - 1) * abs(stride) for count, stride in zip(part.shape, part.strides, strict=True)]
        axis = reach.index(max(reach))
        half = part.shape[axis] // 2
        for first, count in ((0, half), (half, part.shape[axis] - half)):
            shape = (*part.shape[:axis], count, *part.shape[axis + 1 :])
            yield from _inside(_Bytes(part.address + first * part.strides[axis], shape, part.strides), window)


def _at_object(part: _Bytes, window: _Window) -> NDArray[np.uint8]:
    """The same bytes at addresses that are object offsets."""
    moved = part._replace(address=part.address - window.start + window.offset + _BASE)
    return np.asarray(moved)
