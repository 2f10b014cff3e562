"""Pages in huge pages; where views lie; dumps, PSS and files that were cut."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

import mirrormap as mm
from mirrormap import procmaps
from support import PAGE, libc, reserved

# --- huge pages ------------------------------------------------------------------------------


def test_huge_pages_are_made_mirrored_grown_shrunk_and_moved(huge: int) -> None:
    with mm.Pages(huge, page_size=huge) as pages:
        assert pages.page_size == huge
        with pages.map(populate=True) as view, view.mirror(populate=True) as other:
            assert view.resident == view.resident_huge == huge
            array = view.array()
            array[:] = 3
            other.resize(3 * huge)
            assert pages.nbytes == 3 * huge
            assert (other.array()[:huge] == 3).all()
            other.array()[2 * huge] = 1
            other.resize(huge)
            assert other.nbytes == huge
            view.resize(2 * huge)
            array[5] = 4
            assert view.array()[5] == other.array()[5] == 4


def test_huge_pages_grow_in_place_inside_their_reserve(huge: int) -> None:
    with mm.Pages(huge, page_size=huge) as pages, pages.map(reserve=8 * huge) as view:
        address, array = view.address, view.array()
        view.resize(4 * huge)
        assert view.address == address
        view.array()[0] = 5
        assert array[0] == 5
        view.array()[-1] = 1
        del array


def test_the_default_huge_size_has_a_name(huge: int) -> None:
    with mm.Pages(1, page_size="huge") as pages:
        assert pages.nbytes == pages.page_size == huge


def test_gigantic_pages() -> None:
    with reserved(1 << 30, 1), mm.Pages("1GiB", page_size="1GiB") as pages:
        with pages.map() as view, view.mirror() as other:
            view.array()[(1 << 30) - 1] = 7
            assert other.array()[(1 << 30) - 1] == 7
            assert other.address % (1 << 30) == 0
            assert other.resident_huge == 1 << 30


def test_gigantic_pages_grow_and_shrink() -> None:
    giga = 1 << 30
    with reserved(giga, 2), mm.Pages(giga, page_size="1GiB") as pages, pages.map() as view:
        view.array()[5] = 7
        view.resize(2 * giga)
        view.array()[2 * giga - 1] = 8
        with view.mirror() as other:
            assert other.array()[[5, 2 * giga - 1]].tolist() == [7, 8]
        view.resize(giga)
        assert pages.nbytes == 2 * giga
        assert view.array()[5] == 7
        pages.resize(giga)
        assert pages.allocated == giga


def test_transparent_huge_pages_are_aligned_and_reported() -> None:
    huge = procmaps.pmd_nbytes()
    with mm.Pages(3 * huge, page_size="thp") as pages, pages.map(populate=True) as view:
        assert pages.page_size == PAGE
        assert view.address % huge == 0
        assert view.resident == 3 * huge
        if not mm.probe().transparent_huge:
            pytest.skip("this kernel gives no transparent huge pages for shared memory")
        assert view.resident_huge == 3 * huge
        with view.mirror(populate=True) as other:
            assert other.resident_huge == 3 * huge


def test_a_page_size_the_kernel_has_not_lists_those_it_has() -> None:
    with pytest.raises(ValueError, match=r"it has .*'thp'"):
        mm.Pages(PAGE, page_size="8KiB")


def test_a_short_pool_says_how_many_and_which_command(huge: int) -> None:
    free = procmaps.huge_pool(huge).available
    with mm.Pages((free + 3) * huge, page_size=huge) as pages:
        with pytest.raises(mm.MapError) as caught:
            pages.map()
    text = str(caught.value)
    assert f"{free} free" in text
    assert f"{free + 3} needed" in text
    assert "nr_hugepages" in text
    assert "echo" in text


def test_an_in_place_growth_that_the_pool_refuses_changes_nothing(huge: int) -> None:
    free = procmaps.huge_pool(huge).available
    with mm.Pages(huge, page_size=huge) as pages, pages.map(reserve=(free + 8) * huge) as view:
        view.array()[0] = 1
        with pytest.raises(mm.MapError, match="too short"):
            view.resize((free + 4) * huge)
        assert view.nbytes == huge
        assert view.array()[0] == 1
        view.resize(2 * huge)
        view.array()[-1] = 1


# --- alignment and dumps ---------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, PAGE, 5 * PAGE])
def test_large_views_agree_with_their_object_modulo_a_huge_entry(offset: int) -> None:
    huge = procmaps.pmd_nbytes()
    half = max(huge, 8 * PAGE)  # where there are no huge pages an entry is a page
    with mm.Pages(4 * half) as pages, pages.map(offset, 2 * half) as view:
        assert view.address % huge == offset % huge
        with view.mirror(3 * PAGE) as other:
            assert other.address % huge == (offset + 3 * PAGE) % huge


def dumped(address: int) -> bool:
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            start, end = (int(part, 16) for part in head.split("-"))
            inside = start <= address < end
        elif inside and line.startswith("VmFlags:"):
            return "dd" not in line.split()
    raise AssertionError("no such mapping")


def test_core_dumps_hold_the_pages_once() -> None:
    with mm.Pages(2 * PAGE) as pages, pages.arrange([(0, 2 * PAGE), (0, 2 * PAGE)]) as ring:
        assert dumped(ring.address)
        assert not dumped(ring.address + 2 * PAGE)
        with ring.mirror() as other:
            assert not dumped(other.address)
    with mm.Pages(2 * PAGE) as pages:
        first = pages.map()
        first.close()
        with pages.map() as second:
            assert dumped(second.address)


def test_two_views_count_once_in_pss() -> None:
    with mm.Pages("8MiB") as pages, pages.map(populate=True) as view:

        def rollup() -> dict[str, int]:
            lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
            return {line.split(":")[0]: int(line.split()[1]) for line in lines}

        before = rollup()
        with view.mirror(populate=True):
            after = rollup()
        assert after["Rss"] - before["Rss"] >= 8 << 10
        assert abs(after["Pss"] - before["Pss"]) < 1 << 10


def test_close_is_idempotent_and_views_live_on() -> None:
    pages = mm.Pages(PAGE)
    view = pages.map()
    pages.close()
    pages.close()
    assert pages.closed
    assert repr(pages) == "<Pages closed>"
    with view.mirror() as other:
        other.array()[0] = 1
        assert view.array()[0] == 1
    view.resize(2 * PAGE)
    view.close()
    with pytest.raises(mm.ClosedError):
        pages.map()


def test_populate_on_a_view_of_every_page_size(huge: int) -> None:
    kinds: list[Any] = [None, "thp", huge]
    for page_size in kinds:
        with mm.Pages(2 * huge, page_size=page_size) as pages, pages.map(populate=True) as view:
            assert view.resident == view.nbytes


def test_the_libc_view_of_an_object_agrees() -> None:
    with mm.Pages(PAGE) as pages:
        raw = libc.mmap(None, PAGE, 3, 1, pages.fileno(), 0)
        with pages.map() as view:
            view.array()[3] = 9
            assert ctypes.string_at(raw + 3, 1) == b"\x09"
        libc.munmap(raw, PAGE)


def test_a_view_that_was_cut_with_its_file_grows_again(tmp_path: Path) -> None:
    with mm.Pages.open(tmp_path / "data", 16 * PAGE) as pages, pages.map(reserve=256 * PAGE) as view:
        pages.resize(PAGE + 5)
        assert view.nbytes == PAGE + 5
        view.resize(2 * PAGE)
        assert view.nbytes == pages.nbytes == 2 * PAGE
        view.resize(100 * PAGE)
        view.array()[:] = 1
        assert pages.nbytes == 100 * PAGE
