"""mirror(): memory somebody else made, shown once more.

What lies where, and how it is shown once more, is found out in `foreign`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
from numpy.lib.array_utils import byte_bounds

from mirrormap import kernel
from mirrormap.foreign import foreign_runs, place_any, runs_under
from mirrormap.kernel import PAGE_NBYTES
from mirrormap.mapping import Mapping
from mirrormap.protections import protection_bits
from mirrormap.units import Size, as_range, check_address
from mirrormap.views import array_over, buffer_of, check_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["mirror"]

_LABEL = "mirror"


@overload
def mirror(  # pyright: ignore[reportOverlappingOverload]
    source: NDArray[Any],
    offset: Size = 0,
    nbytes: Size | None = None,
    *,
    protection: str | None = None,
    populate: bool = False,
    address: int | None = None,
) -> NDArray[Any]: ...
@overload
def mirror(
    source: Any,
    offset: Size = 0,
    nbytes: Size | None = None,
    *,
    protection: str | None = None,
    populate: bool = False,
    address: int | None = None,
) -> Mapping: ...
def mirror(
    source: Any,
    offset: Size = 0,
    nbytes: Size | None = None,
    *,
    protection: str | None = None,
    populate: bool = False,
    address: int | None = None,
) -> Mapping | NDArray[Any]:
    """Show the pages of existing shared memory at one more address.

    Args:
        source: a Mapping, mmap.mmap, multiprocessing SharedMemory (or its `.buf`), a ctypes array
            over shared memory, or any contiguous buffer that starts on a page: gives a Mapping.
            An ndarray of any shape and strides that lies in shared memory (np.memmap, our own, a
            torch tensor's `.numpy()`): gives an ndarray of the same dtype, shape and strides.
        offset: of the first byte, a multiple of the page size. Not for ndarrays: slice instead.
        nbytes: the rest of the source by default.
        protection: "none", "r", "rw", "rx"; by default that of each part of the source, and "r"
            for a read-only array or buffer.
        populate: make the page-table entries now, ready for writing if that is allowed.
        address: where to put it, a page multiple with nothing mapped there. For an ndarray it is
            the address of the first covering page.
    Returns: a Mapping, or an ndarray, that owns its range of addresses and keeps the pages alive
        after the source has gone. No byte is copied.
    Raises:
        NotMirrorableError: private memory (copy it with `share()`), a sealed mapping, a perf or
            io_uring ring, huge pages without a second handle; the text names the way out.
        MapError: EFAULT: not mapped, or beyond the end of the object, where touching would be a
            SIGBUS; EEXIST: `address` is occupied; EACCES: more rights than the source's file gives.
        ValueError: a range that does not fit, or does not start on a page.
        TypeError: no buffer; an object dtype.

    A mirror is made by mremap(2) with old_size 0; see mirror(3).
    """
    if isinstance(source, Mapping):
        return source.mirror(offset, nbytes, protection=protection, populate=populate, address=address)
    if isinstance(source, np.ndarray):
        if offset or nbytes is not None:
            raise ValueError("an ndarray is mirrored whole: slice it first, mirror(array[i:j])")
        return _mirror_array(cast("NDArray[Any]", source), protection, populate, address)
    with buffer_of(source) as view:
        start, length, readonly = kernel.buffer_address(view)
        if not length:
            raise ValueError("a mirror needs at least one byte")
        if start % PAGE_NBYTES:
            foreign_runs(start, max(1, length), None)  # memory that cannot be mirrored at all says so
            raise ValueError(
                f"the buffer starts {start % PAGE_NBYTES} bytes into a page: mirror it as an ndarray, "
                "mirror(np.asarray(buffer))"
            )
        inside, count = as_range(offset, nbytes, length, PAGE_NBYTES, "mirror")
        wanted = _wanted(protection, readonly)
        mapping, shift = _cover(view.obj, start + inside, count, wanted, populate, address, exact=True)
        assert shift == 0
        return mapping


def _mirror_array(
    source: NDArray[Any], protection: str | None, populate: bool, address: int | None
) -> NDArray[Any]:
    check_dtype(source.dtype)
    if source.size == 0:
        raise ValueError("an empty array has no pages to mirror")
    low, high = byte_bounds(source)
    wanted = _wanted(protection, not source.flags.writeable)
    mapping, shift = _cover(source, low, high - low, wanted, populate, address, exact=False)
    region = mapping._live
    first = source.__array_interface__["data"][0] - low
    return array_over(
        region,
        source.dtype,
        source.shape,
        shift,
        strides=source.strides,
        start=first,
        readonly=protection is None and not source.flags.writeable,
    )


def _wanted(protection: str | None, readonly: bool) -> int | None:
    if protection is None:
        return kernel.PROT_READ if readonly else None
    return protection_bits(protection)


def _cover(
    owner: Any,
    start: int,
    nbytes: int,
    wanted: int | None,
    populate: bool,
    address: int | None,
    *,
    exact: bool,
) -> tuple[Mapping, int]:
    """A new mapping of the pages under [start, start + nbytes), and where `start` lies in it.

    Args: exact: refuse unless that is at its first byte; the mapping is then `nbytes` long.
    """
    if nbytes < 1:
        raise ValueError("a mirror needs at least one byte")
    first, runs, page = runs_under(owner, start, nbytes, wanted)
    if exact and first != start:
        raise ValueError(
            f"the range starts {start - first:,} bytes into a page of {page:,}: "
            "offset must be a multiple of that"
        )
    check_address(address, page)
    placed = place_any(runs, address=address, label=_LABEL)
    return Mapping._settled(placed, _LABEL, populate=populate), start - first
