"""stitch(): one array over the pages of several, laid side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from mirrormap import kernel
from mirrormap.arrays import empty
from mirrormap.errors import NotMirrorableError
from mirrormap.foreign import own_region, place_any, runs_under
from mirrormap.kernel import Region
from mirrormap.placement import Run
from mirrormap.views import array_over, check_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["stitch"]

_LABEL = "stitch"
_READ, _READ_WRITE = kernel.PROT_READ, kernel.PROT_READ | kernel.PROT_WRITE


def stitch(arrays: Iterable[NDArray[Any]], *, copy: bool | None = False) -> NDArray[Any]:
    """np.concatenate along the first axis without copying: one array over the pages of several.

    Args:
        arrays: C-contiguous arrays on shareable pages, of one dtype and, but for the first axis, one
            shape. Each begins and ends on a page; the first may begin, and the last may end, inside
            one. Repeats, other orders and windows of one array are allowed.
        copy: False: never; True: always, into pages of its own; None: where it cannot be helped.
    Returns: an array that keeps the pages. What is written through it shows in the parts, and the
        other way round. Read-only if a part is.
    Raises: ValueError naming the part and the bytes that do not fit; NotMirrorableError for a part in
        private memory; TypeError for parts of several dtypes; MapError ENOMEM when it takes more
        mappings than vm.max_map_count leaves, before the first is made. Runs that are adjacent in
        memory, or in their object, are one mapping.

    One mmap(2) or mremap(2) for each run, in a range reserved beforehand.
    """
    parts = _checked(list(arrays))
    if copy is not True:
        try:
            return _show(parts)
        except (ValueError, NotMirrorableError):
            if copy is False:
                raise
    return _copied(parts)


def _checked(parts: list[NDArray[Any]]) -> list[NDArray[Any]]:
    if not parts:
        raise ValueError("nothing to stitch: at least one array is needed")
    for index, part in enumerate(parts):
        if not isinstance(part, np.ndarray):
            raise TypeError(f"part {index} must be an ndarray, not {type(part).__name__}")
        if not part.ndim:
            raise ValueError(f"part {index} has no axis to be stitched along")
        if part.dtype != parts[0].dtype:
            raise TypeError(f"part {index} has dtype {part.dtype}, part 0 has {parts[0].dtype}")
        if part.shape[1:] != parts[0].shape[1:]:
            raise ValueError(f"rows of part {index} have shape {part.shape[1:]}, not {parts[0].shape[1:]}")
    check_dtype(parts[0].dtype)
    return parts


class _Extent(NamedTuple):
    """Bytes [start, end) that parts `first` to `last` show, one behind the other."""

    region: Region | None
    start: int
    end: int
    first: int
    last: int


def _extents(parts: list[NDArray[Any]]) -> list[_Extent]:
    """The parts without the empty ones; those that lie side by side in memory are joined."""
    found: list[_Extent] = []
    for index, part in enumerate(parts):
        if not part.nbytes:
            continue
        if not part.flags.c_contiguous:
            raise ValueError(f"part {index} is not C-contiguous; copy=True copies")
        region = own_region(part)
        start: int = part.__array_interface__["data"][0]
        before = found[-1] if found else None
        if before is not None and before.end == start and before.region is region:
            found[-1] = before._replace(end=start + part.nbytes, last=index)
        else:
            found.append(_Extent(region, start, start + part.nbytes, index, index))
    return found


def _show(parts: list[NDArray[Any]]) -> NDArray[Any]:
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    dtype, extents = parts[0].dtype, _extents(parts)
    if not extents:
        return np.empty(shape, dtype)
    writable = all(part.flags.writeable for part in parts)
    wanted = _READ_WRITE if writable else _READ
    runs: list[Run] = []
    at = skew = 0
    for number, extent in enumerate(extents):
        address, under, page = runs_under(extent.region, extent.start, extent.end - extent.start, wanted)
        lead, tail = extent.start - address, (extent.end - address) % page
        if number == 0:
            skew = lead
        elif lead:
            _refuse(extent.first, f"starts {lead:,} bytes into a page of {page:,}")
        if at % page:
            _refuse(extent.first, f"has pages of {page:,} bytes and would start {at % page:,} into one")
        if tail and number + 1 < len(extents):
            _refuse(extent.last, f"ends {tail:,} bytes into a page of {page:,}, and more parts follow")
        runs += under
        at += extent.end - address
    region = place_any(runs, label=_LABEL)
    return array_over(region, dtype, shape, skew)


def _refuse(index: int, what: str) -> NoReturn:
    raise ValueError(f"part {index} {what}: only whole pages can be shown side by side; copy=True copies")


def _copied(parts: list[NDArray[Any]]) -> NDArray[Any]:
    joined = empty((sum(len(part) for part in parts), *parts[0].shape[1:]), parts[0].dtype)
    np.concatenate(parts, out=joined)
    return joined
