"""mirror(): huge pages, and what cannot be mirrored."""

from __future__ import annotations

import mmap
import os
from contextlib import closing
from typing import Any

import numpy as np
import pytest

import mirrormap as mm
from support import (
    MAP_ANONYMOUS,
    MAP_HUGETLB,
    MAP_SHARED,
    MFD_HUGETLB,
    PAGE,
    Raw,
)  # fmt: skip


def address(array: np.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])


# --- huge pages --------------------------------------------------------------------------------


def test_huge_pages_of_ours(huge: int) -> None:
    with mm.Pages(2 * huge, page_size=huge) as pages, pages.map() as view, mm.mirror(view, huge) as other:
        other.array()[7] = 3
        assert view.array()[huge + 7] == 3
        assert other.address % huge == 0
    array = mm.zeros(huge, "u1", page_size=huge)[100:-100:3]
    mirrored = mm.mirror(array)
    mirrored[5] = 8
    assert array[5] == 8
    assert address(mirrored) % huge == address(array) % huge


def test_anonymous_huge_pages_of_others_through_map_files(huge: int) -> None:
    with Raw(2 * huge, flags=MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB) as source:
        source.buffer[huge] = 5
        with mm.mirror(source.buffer) as view:
            assert view.page_size == huge
            assert view.array()[huge] == 5
            with view.mirror(huge, huge) as again:
                again.array()[1] = 6
                assert source.buffer[huge + 1] == 6


def test_huge_pages_of_others_grow_shrink_and_are_discarded_through_their_mirror(huge: int) -> None:
    with Raw(2 * huge, flags=MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB) as source:
        source.buffer[0], source.buffer[huge] = 1, 2
        with mm.mirror(source.buffer) as view:
            view.resize(4 * huge)
            assert view.array()[[0, huge]].tolist() == [1, 2]
            view.array()[-1] = 9
            view.resize(huge)
            assert view.nbytes == huge
            assert source.buffer[huge] == 2
            view.resize(2 * huge)
            view.discard(huge, huge)
            assert (source.buffer[0], source.buffer[huge]) == (1, 0)


def test_sharing_copies_once_and_the_original_stays_apart() -> None:
    private = np.arange(1000)
    shared = mm.share(private, populate=True)
    shared[0] = 77
    assert private[0] == 0
    assert mm.mirror(shared)[0] == 77


def test_huge_pages_of_others_by_their_open_descriptor(huge: int) -> None:
    fd = os.memfd_create("others", MFD_HUGETLB)
    try:
        os.ftruncate(fd, huge)
        with closing(mmap.mmap(fd, huge)) as source, mm.mirror(source) as view:
            view.array()[3] = 4
            assert source[3] == 4
    finally:
        os.close(fd)


def test_a_mirror_of_huge_pages_starts_on_one(huge: int) -> None:
    with Raw(2 * huge, flags=MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB) as source:
        with pytest.raises(ValueError, match="into a page of"):
            mm.mirror(source.buffer, PAGE)


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", [np.zeros(1 << 20), b"x" * 100_000, bytearray(100_000)], ids=["malloc", "bytes", "bytearray"]
)
def test_private_memory_names_the_way_out(source: Any) -> None:
    with pytest.raises(mm.NotMirrorableError, match="share") as caught:
        mm.mirror(source)
    assert caught.value.errno == 22


def test_a_buffer_that_starts_inside_a_page_is_sent_to_ndarray() -> None:
    with mmap.mmap(-1, 2 * PAGE) as source, memoryview(source)[10:100] as part:
        with pytest.raises(ValueError, match="asarray"):
            mm.mirror(part)
        other = mm.mirror(np.asarray(part))
        other[0] = 1
        assert source[10] == 1
        del other


def test_object_arrays_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="Python objects"):
        mm.mirror(np.array([object()] * 10))


def test_ndarrays_are_sliced_not_offset() -> None:
    with pytest.raises(ValueError, match="slice it first"):
        mm.mirror(mm.zeros(PAGE), offset=PAGE)


def test_what_is_no_buffer_is_a_type_error() -> None:
    for source in (5, "text", None, object()):
        with pytest.raises(TypeError, match="has no buffer"):
            mm.mirror(source)


def test_a_non_contiguous_memoryview_is_sent_to_ndarray() -> None:
    with mmap.mmap(-1, PAGE) as source, memoryview(source)[::2] as part:
        with pytest.raises(ValueError, match="not contiguous"):
            mm.mirror(part)


def test_the_mirror_outlives_its_source() -> None:
    source = mmap.mmap(-1, PAGE)
    source[0] = 12
    view = mm.mirror(source)
    source.close()
    assert view.array()[0] == 12
    view.close()
