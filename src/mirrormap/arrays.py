"""NumPy arrays on shareable pages, made the way NumPy makes arrays."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import numpy as np

from mirrormap.pages import Pages
from mirrormap.population import check_memory_left
from mirrormap.units import Size
from mirrormap.views import array_over, as_shape, check_dtype

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = ["empty", "full", "share", "zeros"]

Shape = SupportsIndex | tuple[SupportsIndex, ...] | list[SupportsIndex]
Order = Literal["C", "F"]


def empty(
    shape: Shape,
    dtype: DTypeLike = float,
    order: Order = "C",
    *,
    page_size: Size | None = None,
    populate: bool = False,
) -> NDArray[Any]:
    """np.empty on pages of its own, so that `mirror(array)` works. The bytes are zero.

    Args: shape, dtype, order: as in np.empty. page_size, populate: as in Pages and Pages.map.
    Returns: a page-aligned, writable array that keeps its memory alive.
    Raises: TypeError for object dtypes; MapError when there is no memory.
    """
    kind = check_dtype(dtype)
    dimensions = as_shape(shape)
    if order not in ("C", "F"):
        raise ValueError(f"order {order!r} must be 'C' or 'F'")
    nbytes = math.prod(dimensions) * kind.itemsize
    with Pages(max(1, nbytes), page_size=page_size, name="array") as pages:
        region = pages.map(populate=populate)._live
    strides = _fortran_strides(dimensions, kind.itemsize) if order == "F" else None
    return array_over(region, kind, dimensions, strides=strides)


def zeros(
    shape: Shape,
    dtype: DTypeLike = float,
    order: Order = "C",
    *,
    page_size: Size | None = None,
    populate: bool = False,
) -> NDArray[Any]:
    """np.zeros on pages of its own; see `empty`."""
    return empty(shape, dtype, order, page_size=page_size, populate=populate)


def full(
    shape: Shape,
    fill_value: ArrayLike,
    dtype: DTypeLike | None = None,
    order: Order = "C",
    *,
    page_size: Size | None = None,
    populate: bool = False,
) -> NDArray[Any]:
    """np.full on pages of its own; see `empty`. Without dtype, that of fill_value."""
    kind = np.asarray(fill_value).dtype if dtype is None else dtype
    array = empty(shape, kind, order, page_size=page_size, populate=populate)
    _check_memory(array, page_size, populate)
    np.copyto(array, fill_value, casting="unsafe")
    return array


def share(array: ArrayLike, *, page_size: Size | None = None, populate: bool = False) -> NDArray[Any]:
    """Copy an array into pages of its own, once, so that it can be mirrored from then on.

    Args: array: anything np.asarray takes; Fortran-contiguous ones stay so.
    Returns: a writable array of the same dtype and shape.
    Raises: TypeError for object dtypes; MapError when there is no memory.
    """
    source = np.asarray(array)
    order: Order = "F" if source.flags.f_contiguous and not source.flags.c_contiguous else "C"
    copy = empty(source.shape, source.dtype, order, page_size=page_size, populate=populate)
    _check_memory(copy, page_size, populate)
    np.copyto(copy, source)
    return copy


def _check_memory(array: NDArray[Any], page_size: Size | None, populate: bool) -> None:
    """Before it is filled: huge pages come from a pool, and what was populated is there."""
    if not populate and page_size in (None, "thp"):
        check_memory_left(array.nbytes, "mmap", "array")


def _fortran_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides: list[int] = []
    for count in shape:
        strides.append(itemsize)
        itemsize *= max(1, count)
    return tuple(strides)
