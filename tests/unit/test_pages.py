"""Pages: sizes, views, growth and shrinkage under live views, giving memory back."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

import mirrormap as mm
from mirrormap import procmaps
from support import PAGE, protections, read, write

F_GET_SEALS, F_SEAL_SHRINK = 1034, 2


# --- made, opened, adopted -----------------------------------------------------------------


def test_sizes_round_up_to_whole_pages() -> None:
    with mm.Pages(1) as pages:
        assert (pages.nbytes, pages.page_size) == (PAGE, PAGE)
    with mm.Pages("64KiB") as pages:
        assert pages.nbytes == 65536


def test_nothing_is_allocated_until_it_is_touched() -> None:
    with mm.Pages("64MiB") as pages:
        assert pages.allocated == 0
        with pages.map() as view:
            view.array()[5 * PAGE] = 1
            assert pages.allocated == PAGE


def test_the_name_is_seen_in_maps() -> None:
    with mm.Pages(PAGE, name="camera") as pages, pages.map():
        assert "/memfd:mirrormap:camera (deleted)" in Path("/proc/self/maps").read_text()
        assert "camera" in repr(pages)


def test_descriptors_are_closed_on_exec_and_sealed_against_shrinking() -> None:
    with mm.Pages(PAGE) as pages:
        assert not os.get_inheritable(pages.fileno())
        assert fcntl.fcntl(pages.fileno(), F_GET_SEALS) & F_SEAL_SHRINK


def test_nobody_can_truncate_our_memory_from_outside() -> None:
    with mm.Pages(4 * PAGE) as pages, pages.map() as view:
        fd = os.open(f"/proc/self/fd/{pages.fileno()}", os.O_RDWR)
        try:
            with pytest.raises(PermissionError):
                os.ftruncate(fd, PAGE)
        finally:
            os.close(fd)
        child = os.fork()
        if child == 0:
            try:
                os.truncate(f"/proc/{os.getppid()}/fd/{pages.fileno()}", PAGE)
            except PermissionError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        view.array()[3 * PAGE] = 1


def test_a_file_is_created_private_and_grown(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with mm.Pages.open(path, 10_000) as pages:
        assert path.stat().st_mode & 0o777 == 0o600
        assert pages.nbytes == path.stat().st_size == 10_000
    with mm.Pages.open(path, 100) as pages:
        assert pages.nbytes == 10_000, "opening never shortens"
    with mm.Pages.open(path, "64KiB") as pages:
        assert pages.nbytes == 65536


def test_a_missing_file_is_the_usual_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        mm.Pages.open(tmp_path / "none")
    assert caught.value.filename.endswith("none")


def test_a_file_that_cannot_grow_so_far_is_not_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "data"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, limits[1]))
    try:
        with pytest.raises(mm.MapError, match="File too large"):
            mm.Pages.open(path, 1 << 31)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert not path.exists()


def test_a_file_opened_for_reading_gives_read_only_views(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"a" * 5000)
    fd = os.open(path, os.O_RDONLY)
    try:
        with mm.Pages.from_fd(fd) as pages:
            with pytest.raises(mm.MapError, match="protection='r'"):
                pages.map()
            with pages.map(protection="r") as view:
                assert bytes(view) == b"a" * 5000
    finally:
        os.close(fd)


def test_from_fd_duplicates() -> None:
    fd = os.memfd_create("theirs")
    os.ftruncate(fd, 3 * PAGE)
    with mm.Pages.from_fd(fd) as pages:
        os.close(fd)
        assert pages.nbytes == 3 * PAGE
        assert pages.fileno() != fd
        with pages.map() as view:
            view.array()[0] = 1


@pytest.mark.parametrize("path", ["/dev/null", "/", "/dev/zero"])
def test_what_is_no_regular_file_is_refused(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(ValueError, match="regular files"):
            mm.Pages.from_fd(fd)
    finally:
        os.close(fd)


# --- views ---------------------------------------------------------------------------------


def test_a_view_of_a_stretch() -> None:
    with mm.Pages(8 * PAGE) as pages, pages.map() as whole, pages.map(2 * PAGE, 100) as part:
        part.array()[99] = 5
        assert part.nbytes == 100
        assert whole.array()[2 * PAGE + 99] == 5


def test_a_ring_is_contiguous_at_every_position() -> None:
    with mm.Pages(2 * PAGE) as pages, pages.arrange([(0, 2 * PAGE), (0, 2 * PAGE)]) as ring:
        array = ring.array()
        for position in (0, 1, PAGE, 2 * PAGE - 1):
            array[position : position + 2 * PAGE] = np.arange(2 * PAGE) % 251
            assert array[(position + 2 * PAGE) % (4 * PAGE) - 1] == (2 * PAGE - 1) % 251
            assert array[2 * PAGE] == array[0]
        del array


def test_runs_in_any_order_and_as_often_as_you_like() -> None:
    with mm.Pages(4 * PAGE) as pages, pages.map() as plain:
        plain.array()[::PAGE] = [1, 2, 3, 4]
        with pages.arrange([(3 * PAGE, PAGE), (0, 2 * PAGE), (3 * PAGE, 10)]) as view:
            assert view.array()[::PAGE].tolist() == [4, 1, 2, 4]
            assert view.nbytes == 3 * PAGE + 10


def test_runs_that_continue_one_another_are_one_mapping_of_the_kernel() -> None:
    with mm.Pages(64 * PAGE) as pages:
        with pages.arrange([(index * PAGE, PAGE) for index in range(64)]) as view:
            assert len(protections(view.address, view.nbytes)) == 1
        with pages.arrange([(index * PAGE, PAGE) for index in reversed(range(64))]) as view:
            assert len(protections(view.address, view.nbytes)) == 64


def test_too_many_runs_are_counted_before_any_is_mapped() -> None:
    before = procmaps.map_count()
    runs = [(0, PAGE)] * (procmaps.max_map_count() + 10)
    with mm.Pages(PAGE) as pages, pytest.raises(mm.MapError, match="max_map_count"):
        pages.arrange(runs)
    assert procmaps.map_count() <= before + 64  # allocators map for the list of runs; not tens of thousands


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 64])
def test_toggling_address_bits_chooses_the_view(count: int) -> None:
    with mm.Pages(3 * PAGE) as pages:
        views = pages.views(count)
        stride = views[1].address - views[0].address if count > 1 else 4 * PAGE
        assert stride == 4 * PAGE
        base = views[0].address
        assert base % (stride << (count - 1).bit_length()) == 0
        for index, view in enumerate(views):
            assert view.address == base | index * stride
            write(view.address + PAGE + index, bytes([index + 1]))
        for index in range(count):
            pointer = base + PAGE + index
            for colour in range(count):
                assert read(pointer ^ colour * stride, 1) == bytes([index + 1])
        for view in views[::-1]:
            view.close()


def test_views_at_a_stride_of_their_own_grow_in_place() -> None:
    with mm.Pages(PAGE) as pages:
        first, second = pages.views(2, stride="1GiB")
        assert second.address - first.address == 1 << 30
        address = second.address
        second.resize(100 * PAGE)
        assert second.address == address
        second.array()[-1] = 9
        first.resize(100 * PAGE)
        assert first.array()[-1] == 9
        first.close()
        second.close()


def test_coloured_pointers_over_huge_pages(huge: int) -> None:
    with mm.Pages(2 * huge, page_size=huge) as pages:
        views = pages.views(3, populate=True)
        write(views[0].address + huge, b"x")
        assert [read(view.address + huge, 1) for view in views] == [b"x"] * 3
        assert pages.allocated == 2 * huge
        for view in views:
            view.close()


# --- growth and shrinkage --------------------------------------------------------------------


def test_growing_leaves_views_alone_and_new_bytes_are_zero() -> None:
    with mm.Pages(PAGE) as pages, pages.map() as before:
        before.array()[0] = 1
        pages.resize(3 * PAGE)
        assert before.nbytes == PAGE
        with pages.map() as after:
            assert after.array()[::PAGE].tolist() == [1, 0, 0]


def test_shrinking_memory_gives_it_back_and_others_read_zeros() -> None:
    with mm.Pages(4 * PAGE) as pages, pages.map() as view:
        view.array()[:] = 7
        assert pages.allocated == 4 * PAGE
        pages.resize(PAGE)
        assert (pages.nbytes, pages.allocated) == (PAGE, PAGE)
        assert read(view.address + 2 * PAGE, 1) == b"\0"
        pages.resize(4 * PAGE)
        assert view.array()[::PAGE].tolist() == [7, 0, 0, 0]


def test_shrinking_under_a_live_array_is_a_buffer_error() -> None:
    with mm.Pages(4 * PAGE) as pages, pages.map(PAGE, 2 * PAGE) as view:
        array = view.array(shape=PAGE, offset=PAGE)
        with pytest.raises(BufferError, match="bytes beyond"):
            pages.resize(2 * PAGE)
        pages.resize(3 * PAGE)
        array[:] = 1
        del array
        pages.resize(2 * PAGE)
        assert pages.nbytes == 2 * PAGE


def test_a_moved_view_still_counts_when_pages_shrink() -> None:
    with mm.Pages(2 * PAGE) as pages, pages.map() as view:
        array = view.array()
        view.resize(64 * PAGE)
        with pytest.raises(BufferError):
            pages.resize(PAGE)
        del array
        pages.resize(PAGE)


def test_files_are_truncated_and_views_end_with_them(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with mm.Pages.open(path, 4 * PAGE) as pages, pages.map() as view:
        pages.resize(PAGE + 100)
        assert path.stat().st_size == PAGE + 100
        assert view.nbytes == PAGE + 100
        view.array()[-1] = 1
        with pytest.raises(ValueError, match="does not fit"):
            view.array(shape=2 * PAGE)


# --- giving back -----------------------------------------------------------------------------


def discard_and_look(pages: mm.Pages, unit: int) -> None:
    with pages.map() as view:
        view.array()[::PAGE] = 1
        full = pages.allocated
        pages.discard(unit, unit)
        assert pages.allocated == full - unit
        assert view.array()[[0, unit, 2 * unit]].tolist() == [1, 0, 1]


def test_discard_returns_memory() -> None:
    with mm.Pages(4 * PAGE) as pages:
        discard_and_look(pages, PAGE)
        pages.discard()
        assert pages.allocated == 0


def test_discard_returns_disk_blocks(tmp_path: Path) -> None:
    with mm.Pages.open(tmp_path / "data", 64 * PAGE) as pages:
        with pages.map() as view:
            view.array()[:] = 1
        pages.flush()
        full = pages.allocated
        pages.discard(0, 32 * PAGE)
        assert pages.allocated <= full - 31 * PAGE


def test_discard_returns_huge_pages(huge: int) -> None:
    with mm.Pages(3 * huge, page_size=huge) as pages:
        discard_and_look(pages, huge)


def test_flush_brings_stores_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with mm.Pages.open(path, PAGE) as pages, pages.map() as view:
        view.array()[:5] = np.frombuffer(b"hello", "u1")
        pages.flush()
        view.flush()
        assert path.read_bytes()[:5] == b"hello"
