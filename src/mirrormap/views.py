"""NumPy arrays over regions: exported in full, or only the bytes that are shown."""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from mirrormap import kernel
from mirrormap.kernel import Region
from mirrormap.placement import Arrangement
from mirrormap.units import Size, as_range, check_range

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

__all__ = ["array_over", "as_shape", "buffer_of", "check_dtype"]


def check_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """The dtype, unless it holds references: those mean something in one interpreter only."""
    checked = np.dtype(dtype)
    if checked.hasobject:
        raise TypeError(
            f"dtype {checked} holds Python objects: their addresses and counts cannot be shown twice"
        )
    return checked


def as_shape(shape: SupportsIndex | Sequence[SupportsIndex]) -> tuple[int, ...]:
    """A shape as NumPy's functions take it. Raises: TypeError, ValueError."""
    counts = shape if isinstance(shape, Sequence) else (shape,)
    dims = tuple(operator.index(count) for count in counts)
    if any(count < 0 for count in dims):
        raise ValueError(f"negative dimension in shape {dims}")
    return dims


def array_over(
    region: Region,
    dtype: DTypeLike,
    shape: SupportsIndex | Sequence[int] | None = None,
    offset: Size = 0,
    *,
    strides: tuple[int, ...] | None = None,
    start: int = 0,
    readonly: bool = False,
) -> NDArray[Any]:
    """An ndarray over a region; see Mapping.array.

    Args: strides, start: for arrays that are not C-contiguous: `start` is where the item of index
        zero lies behind `offset`.
    """
    kind = check_dtype(dtype)
    at, _ = as_range(offset, None, region.nbytes, 1, "array")
    if shape is None:
        shape = ((region.nbytes - at) // kind.itemsize if kind.itemsize else 0,)
    shape = as_shape(shape)
    count = kind.itemsize
    for items in shape:
        count *= items
    if strides is None:
        check_range(at, count, region.nbytes, f"array of shape {shape} and dtype {kind}")
    else:
        count = region.nbytes - at
    arrangement: Arrangement = region.keep
    if not arrangement.allows(kernel.PROT_READ, at, count):
        raise BufferError("protection 'none' shows no bytes; protect('r') first")
    readonly = readonly or not arrangement.allows(kernel.PROT_WRITE, at, count)
    flat = np.frombuffer(memoryview(kernel.span(region, at, count, readonly=readonly)), dtype="u1")
    return np.ndarray(shape, kind, buffer=flat, offset=start, strides=strides)


def buffer_of(source: Any) -> memoryview:
    """The source's bytes as a contiguous memoryview, exported until it is released.

    Args: source: anything with a buffer, or a multiprocessing SharedMemory.
    Raises: TypeError, ValueError.
    """
    shared_memory = sys.modules.get("multiprocessing.shared_memory")
    if shared_memory is not None and isinstance(source, shared_memory.SharedMemory):
        source = source.buf
        if source is None:
            raise ValueError("this SharedMemory is closed")
    try:
        view = memoryview(source)
    except TypeError:
        raise TypeError(
            f"{type(source).__name__!r} object has no buffer: pass a Mapping, an ndarray, mmap.mmap, "
            "SharedMemory or another buffer"
        ) from None
    if not view.c_contiguous:
        view.release()
        raise ValueError("the buffer is not contiguous: pass it as an ndarray, np.asarray(buffer)")
    return view
