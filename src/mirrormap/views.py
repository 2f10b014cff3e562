"""NumPy arrays over regions: exported in full, or only the bytes that are shown."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mirrormap import kernel
from mirrormap.kernel import Region
from mirrormap.units import check_range

__all__ = ["array_over", "check_dtype"]


def check_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """The dtype, unless it holds references: those mean something in one interpreter only."""
    checked = np.dtype(dtype)
    if checked.hasobject:
        raise TypeError(
            f"dtype {checked} holds Python objects: their addresses and counts cannot be shown twice"
        )
    return checked


def array_over(
    region: Region,
    dtype: DTypeLike,
    shape: int | tuple[int, ...] | None = None,
    offset: int = 0,
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
    check_range(offset, 0, region.nbytes, "array offset")
    if shape is None:
        shape = ((region.nbytes - offset) // kind.itemsize if kind.itemsize else 0,)
    elif isinstance(shape, int):
        shape = (shape,)
    if any(count < 0 for count in shape):
        raise ValueError(f"negative dimension in shape {shape}")
    count = kind.itemsize
    for items in shape:
        count *= items
    if strides is None:
        check_range(offset, count, region.nbytes, f"array of shape {shape} and dtype {kind}")
    else:
        count = region.nbytes - offset
    flat = np.frombuffer(memoryview(kernel.span(region, offset, count, readonly=readonly)), dtype="u1")
    return np.ndarray(shape, kind, buffer=flat, offset=start, strides=strides)
