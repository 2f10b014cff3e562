"""Mapping: views of arrays, resizing, protection, population, inheritance, closing."""

from __future__ import annotations

import gc
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

import mirrormap as mm
from support import PAGE, dies_by, is_mapped, protections, stores_without_fault

SIGSEGV, SIGBUS = 11, 7


# --- arrays and buffers ------------------------------------------------------------------------


def test_arrays_of_any_dtype_shape_and_offset() -> None:
    with mm.Pages(4 * PAGE) as pages, pages.map() as view:
        assert view.array().shape == (4 * PAGE,)
        assert view.array("f8").shape == (4 * PAGE // 8,)
        assert view.array("i4", (10, 20), offset=PAGE + 8).shape == (10, 20)
        assert view.array("c16", 5).shape == (5,)
        assert view.array([("a", "u1"), ("b", "<u4")], 3, 1).dtype.itemsize == 5
        assert view.array("u1", np.int64(7)).shape == (7,)
        assert view.array("u1", ()).shape == ()
        view.array("i4", 4, PAGE)[:] = [1, 2, 3, 4]
        assert view.array("i4")[PAGE // 4 : PAGE // 4 + 4].tolist() == [1, 2, 3, 4]
        assert view.array().flags.aligned


def test_it_is_a_writable_byte_buffer() -> None:
    with mm.Pages(PAGE) as pages, pages.map() as view:
        with memoryview(view) as bytes_:
            assert (bytes_.format, bytes_.ndim, bytes_.nbytes, bytes_.readonly) == ("B", 1, PAGE, False)
            bytes_[0] = 65
        assert bytes(view)[:1] == b"A"
        assert len(view) == view.nbytes == PAGE
        assert np.frombuffer(view, "u1")[0] == 65


def test_a_read_only_view_exports_read_only() -> None:
    with mm.Pages(PAGE) as pages, pages.map(protection="r") as view:
        with memoryview(view) as bytes_:
            assert bytes_.readonly
        array = view.array()
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        del array


def test_no_protection_shows_no_bytes() -> None:
    with mm.Pages(PAGE) as pages, pages.map(protection="none") as view:
        with pytest.raises(BufferError, match=r"protect\('r'\)"):
            view.array()
        with pytest.raises(BufferError):
            memoryview(view)


def test_arrays_keep_their_memory_after_everything_else_is_gone() -> None:
    array = mm.Pages(PAGE).map().array("i8")
    gc.collect()
    array[:] = 5
    assert array.sum() == 5 * array.size


# --- resize ------------------------------------------------------------------------------------


def test_growth_inside_the_reserve_stays_in_place_and_visible() -> None:
    with mm.Pages(PAGE) as pages, pages.map(reserve=256 * PAGE) as view:
        address, before = view.address, view.array("i4")
        before[0] = 7
        for count in (2, 3, 100, 256):
            view.resize(count * PAGE)
            assert view.address == address
            assert view.array("i4")[0] == 7
            view.array()[-1] = count % 256
        assert pages.nbytes == 256 * PAGE
        before[1] = 8
        assert view.array("i4")[1] == 8
        del before


def test_a_view_that_must_move_leaves_old_arrays_showing_the_same_pages() -> None:
    with mm.Pages(PAGE) as pages, pages.map() as view:
        old = view.array()
        address = view.address
        view.resize(1000 * PAGE)
        assert view.address != address
        old[5] = 9
        assert view.array()[5] == 9
        view.array()[6] = 10
        assert old[6] == 10
        assert is_mapped(address)
        del old
        assert not is_mapped(address)


def test_shrinking_unmaps_the_tail_and_leaves_the_pages() -> None:
    with mm.Pages(4 * PAGE) as pages, pages.map() as view, pages.map() as other:
        view.array()[3 * PAGE] = 4
        address = view.address
        view.resize(PAGE)
        assert view.nbytes == PAGE
        assert not is_mapped(address + PAGE, 3 * PAGE)
        assert pages.nbytes == 4 * PAGE
        assert other.array()[3 * PAGE] == 4
        view.resize(4 * PAGE)
        assert view.array()[3 * PAGE] == 4


def test_shrinking_inside_a_reserve_keeps_the_window() -> None:
    with mm.Pages(PAGE) as pages, pages.map(reserve=64 * PAGE) as view:
        address = view.address
        view.resize(64 * PAGE)
        view.resize(PAGE)
        assert protections(address, 64 * PAGE)[0] == "rw-s"
        view.resize(30 * PAGE)
        assert view.address == address
        view.array()[-1] = 1


def test_shrinking_below_a_live_array_is_a_buffer_error() -> None:
    with mm.Pages(4 * PAGE) as pages, pages.map() as view:
        array = view.array(shape=2 * PAGE)
        view.resize(2 * PAGE)
        with pytest.raises(BufferError, match="delete them first"):
            view.resize(PAGE)
        array[-1] = 1
        del array
        view.resize(PAGE)


def test_sizes_inside_a_page() -> None:
    with mm.Pages(4 * PAGE) as pages, pages.map(0, 100) as view:
        view.resize(200)
        assert view.nbytes == 200
        view.resize(PAGE + 1)
        view.array()[PAGE] = 3
        view.resize(10)
        assert view.nbytes == 10
        with pages.map() as whole:
            assert whole.array()[PAGE] == 3


def test_an_arrangement_keeps_its_size() -> None:
    with mm.Pages(2 * PAGE) as pages, pages.arrange([(0, 2 * PAGE), (0, 2 * PAGE)]) as ring:
        with pytest.raises(ValueError, match="arrange a new one"):
            ring.resize(8 * PAGE)
        with pytest.raises(ValueError, match="arrange a new one"):
            ring.resize(PAGE)


def test_a_file_grows_with_its_view(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with mm.Pages.open(path, 100) as pages, pages.map() as view:
        view.resize(10_001)
        assert path.stat().st_size == 10_001
        view.array()[-1] = 6
        assert path.read_bytes()[-1] == 6


def test_a_mirror_of_foreign_memory_grows_by_its_object() -> None:
    with mmap.mmap(-1, 2 * PAGE) as source, mm.mirror(source) as view:
        if not mm.probe().map_files:
            pytest.skip("without CAP_CHECKPOINT_RESTORE this memory has no descriptor to grow it by")
        source[0] = 5
        view.resize(8 * PAGE)
        assert view.array()[0] == 5
        view.array()[-1] = 1
        with view.mirror(6 * PAGE) as tail:
            assert tail.array()[-1] == 1


def test_protections_survive_a_move() -> None:
    with mm.Pages(4 * PAGE) as pages, pages.map() as view:
        view.protect("r", PAGE, PAGE)
        view.resize(100 * PAGE)
        assert [letters[:2] for letters in protections(view.address, 4 * PAGE)][:3] == ["rw", "r-", "rw"]


# --- protect -----------------------------------------------------------------------------------


def test_protection_is_per_view() -> None:
    with mm.Pages(PAGE) as pages, pages.map() as one, pages.map() as other:
        one.protect("r")
        assert (one.protection, other.protection) == ("r", "rw")
        other.array()[0] = 1
        assert not one.array().flags.writeable
        one.protect("none")
        one.protect("rx")
        assert protections(one.address, PAGE) == ["r-xs"]
        one.protect("rw")
        one.array()[1] = 2


def test_a_part_can_have_a_protection_of_its_own() -> None:
    with mm.Pages(4 * PAGE) as pages, pages.map() as view:
        view.protect("none", PAGE, PAGE)
        assert view.protection == "mixed"
        assert view.array(shape=PAGE).flags.writeable
        with pytest.raises(BufferError):
            view.array(shape=PAGE + 1)
        assert view.array(offset=2 * PAGE).flags.writeable
        with view.mirror() as other:
            assert other.protection == "mixed"
        view.protect("rw", PAGE, PAGE)
        assert view.protection == "rw"
        view.array()[:] = 1


def test_a_store_through_an_old_array_into_a_protected_page_is_a_segv() -> None:
    script = "import mirrormap as mm; v = mm.Pages(1).map(); a = v.array(); v.protect('r'); a[0] = 1"
    assert dies_by(script) == SIGSEGV


# --- populate ----------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [False, True])
def test_population_leaves_no_fault_for_reading_or_writing(write: bool) -> None:
    with mm.Pages(512 * PAGE) as pages, pages.map(populate=True) as view:
        assert view.resident == view.nbytes
        assert stores_without_fault(view.array(), write=write) == 0
        with view.mirror(populate=True) as other:
            assert stores_without_fault(other.array(), write=write) == 0
        with view.mirror() as lazy:
            assert lazy.resident == 0
            lazy.array()[:] = (
                1  # its faults go uncounted before Linux 6: the first store to a page tries twice
            )
            assert lazy.resident == lazy.nbytes


def test_population_of_files_is_ready_for_writing(tmp_path: Path) -> None:
    with mm.Pages.open(tmp_path / "data", 64 * PAGE) as pages, pages.map(populate=True) as view:
        assert view.resident == view.nbytes
        assert stores_without_fault(view.array(), write=True) == 0


def test_population_of_files_for_reading_leaves_no_fault(tmp_path: Path) -> None:
    with mm.Pages.open(tmp_path / "data", 64 * PAGE) as pages:
        with pages.map() as view:
            view.array()[:] = 1
        with pages.map(protection="r", populate=True) as view:
            assert stores_without_fault(view.array(), write=False) == 0
        with pages.map() as view:
            view.populate()
            assert stores_without_fault(view.array(), write=False) == 0


@pytest.mark.parametrize("nbytes", [256 * PAGE, 32 << 20])
def test_population_for_writing_after_reading_leaves_no_fault(nbytes: int) -> None:
    """A page that was only read has an entry that some processors let nobody store through."""
    with mm.Pages(nbytes) as pages, pages.map() as view:
        view.populate()
        view.populate(write=True)
        assert stores_without_fault(view.array(), write=True) == 0


def test_population_of_transparent_huge_pages_leaves_no_fault() -> None:
    with mm.Pages("8MiB", page_size="thp") as pages, pages.map(populate=True) as view:
        assert stores_without_fault(view.array(), write=True, huge=True) == 0
        with view.mirror(populate=True) as other:
            assert stores_without_fault(other.array(), write=True, huge=True) == 0


@pytest.mark.parametrize("hole", [0, 1 << 20, (20 << 20) + 5 * PAGE])
def test_population_of_much_memory_with_a_hole_in_it(hole: int) -> None:
    """The short cut by fault-around sees pages that are missing, and leaves them to the kernel."""
    with mm.Pages("32MiB") as pages, pages.map(populate=True) as view:
        pages.discard(hole, PAGE)
        with view.mirror(PAGE * 3, populate=True) as other:
            assert other.resident == other.nbytes
            assert stores_without_fault(other.array(), write=True) == 0


def test_population_of_huge_pages(huge: int) -> None:
    with mm.Pages(4 * huge, page_size=huge) as pages, pages.map(populate=True) as view:
        assert view.resident == view.resident_huge == 4 * huge
        with view.mirror(populate=True) as other:
            assert stores_without_fault(other.array(), write=True, huge=True) == 0


def test_population_of_a_ring_covers_both_halves() -> None:
    with mm.Pages(16 * PAGE) as pages:
        with pages.arrange([(0, 16 * PAGE), (0, 16 * PAGE)], populate=True) as ring:
            assert ring.resident == 32 * PAGE
            assert stores_without_fault(ring.array(), write=True) == 0


def test_populating_one_view_leaves_another_alone() -> None:
    with mm.Pages(16 * PAGE) as pages, pages.map() as one, pages.map() as other:
        one.populate()
        assert (one.resident, other.resident) == (16 * PAGE, 0)
        other.populate(write=True)
        assert other.resident == 16 * PAGE


def test_a_hole_past_the_end_is_an_exception_that_names_the_range(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with mm.Pages.open(path, 64 * PAGE) as pages, pages.map() as view:
        os.truncate(path, 32 * PAGE)
        with pytest.raises(mm.MapError, match=f"bytes 0 to {64 * PAGE:,}") as caught:
            view.populate()
        assert caught.value.errno == 14


def test_what_cannot_be_populated_says_so() -> None:
    with mm.Pages(PAGE) as pages, pages.map(protection="none") as view:
        with pytest.raises(ValueError, match="cannot be populated"):
            view.populate()
        with pytest.raises(ValueError, match="cannot be populated"):
            pages.map(protection="none", populate=True)
    with mm.Pages(PAGE) as pages, pages.map(protection="r") as view:
        view.populate()
        with pytest.raises(ValueError, match="not writable"):
            view.populate(write=True)


# --- discard and addresses -----------------------------------------------------------------------


def test_discard_through_a_mirror_empties_every_view() -> None:
    with mmap.mmap(-1, 4 * PAGE) as source, mm.mirror(source) as view:
        np.frombuffer(source, "u1")[:] = 5
        view.discard(PAGE, PAGE)
        assert [source[index * PAGE] for index in range(4)] == [5, 0, 5, 5]


def test_map_at_an_address_and_not_where_something_is() -> None:
    with mm.Pages(4 * PAGE) as pages:
        with pages.map() as view:
            free = view.address
            with pytest.raises(mm.MapError, match="address"):
                pages.map(address=free + PAGE)
        with pages.map(address=free) as view:
            assert view.address == free
        with pytest.raises(ValueError, match="multiple of the page size"):
            pages.map(address=free + 1)
