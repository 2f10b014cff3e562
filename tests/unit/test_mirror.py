"""mirror(): every kind of source, whole and in part, keeps pages, geometry and protection."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import tempfile
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mirrormap as mm
from mirrormap import residency
from support import (
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE,
    PROT_NONE,
    PROT_READ,
    RW,
    Raw,
    address_of,
    is_mapped,
    protections,
)  # fmt: skip


def address(array: np.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])


@pytest.fixture
def block() -> Iterator[shared_memory.SharedMemory]:
    shared = shared_memory.SharedMemory(create=True, size=1000)
    yield shared
    shared.close()
    shared.unlink()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "data"
    file.write_bytes(bytes(range(256)) * (25 * PAGE // 512))  # twelve pages and a half
    return file


# --- sources ---------------------------------------------------------------------------------


def test_an_anonymous_mmap() -> None:
    with mmap.mmap(-1, 4 * PAGE) as source, mm.mirror(source) as view:
        source[PAGE + 5] = 7
        assert view.array()[PAGE + 5] == 7
        view.array()[0] = 9
        assert source[0] == 9
        assert view.nbytes == 4 * PAGE
        assert view.address != address_of(source)


def test_a_file_mmap(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as source, mm.mirror(source) as view:
        assert bytes(view) == path.read_bytes()
        view.array()[3] = 200
        assert source[3] == 200
        view.flush()
        assert path.read_bytes()[3] == 200


def test_a_shared_memory_block_keeps_its_odd_length(block: shared_memory.SharedMemory) -> None:
    assert block.buf is not None
    for source in (block, block.buf):
        with mm.mirror(source) as view:
            assert view.nbytes == 1000
            view.array()[999] = 42
            assert block.buf[999] == 42


def test_a_ctypes_array_over_shared_memory() -> None:
    with mmap.mmap(-1, 2 * PAGE) as source:
        numbers = (ctypes.c_int * (2 * PAGE // 4)).from_buffer(source)
        with mm.mirror(numbers) as view:
            numbers[5] = 77
            assert view.array("i4")[5] == 77
        del numbers


def test_a_mapping_of_ours_and_a_mirror_of_a_mirror() -> None:
    with mm.Pages(4 * PAGE) as pages, pages.map() as first, mm.mirror(first) as second:
        with mm.mirror(second, PAGE, PAGE) as third:
            third.array()[1] = 5
            assert first.array()[PAGE + 1] == second.array()[PAGE + 1] == 5


def test_a_mirror_of_a_foreign_mirror() -> None:
    with mmap.mmap(-1, 4 * PAGE) as source, mm.mirror(source) as first, first.mirror(2 * PAGE) as second:
        second.array()[0] = 3
        assert source[2 * PAGE] == 3
        assert np.array_equal(mm.mirror(second.array()), second.array())


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_our_making(order: Any) -> None:
    made = [
        mm.empty((7, 5), "i4", order),
        mm.zeros((7, 5), "f8", order),
        mm.full((7, 5), 3.5, order=order),
        mm.share(np.asarray(np.arange(35).reshape(7, 5), order=order)),
    ]
    for array in made:
        other = mm.mirror(array)
        assert other.strides == array.strides
        assert other.dtype == array.dtype
        other[3, 2] = 12
        assert array[3, 2] == 12


def test_a_torch_tensor_by_its_numpy_view() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed here")
    tensor = torch.zeros(5000).share_memory_()
    other = mm.mirror(tensor.numpy())
    other[17] = 5
    assert tensor[17] == 5


def test_a_buffer_that_wraps_shared_storage_as_torch_does() -> None:
    class Storage:
        """An owner NumPy knows only by its array interface, as it knows a tensor's storage."""

        def __init__(self, memory: mmap.mmap) -> None:
            self.memory = memory
            self.__array_interface__ = {
                "version": 3, "typestr": "<f4", "shape": (1000,), "data": (address_of(memory) + 8, False),
            }  # fmt: skip

    memory = mmap.mmap(-1, 2 * PAGE)
    view = np.asarray(Storage(memory))
    other = mm.mirror(view)
    other[9] = 1.5
    assert view[9] == 1.5
    assert memory[8 + 36 : 8 + 40] == np.array(1.5, "<f4").tobytes()


# --- np.memmap -------------------------------------------------------------------------------


def check_geometry(source: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    other: np.ndarray[Any, Any] = mm.mirror(source)
    assert type(other) is np.ndarray
    assert (other.shape, other.strides, other.dtype) == (source.shape, source.strides, source.dtype)
    assert address(other) != address(source)
    assert address(other) % PAGE == address(source) % PAGE
    assert other.tobytes() == source.tobytes()
    assert mm.is_mirror(other, source)
    return other


def test_a_memmap_with_an_odd_offset(path: Path) -> None:
    source = np.memmap(path, "<u2", "r+", offset=4321 * 2)
    other = check_geometry(source)
    other[3] = 999
    assert source[3] == 999


@pytest.mark.parametrize(
    "part",
    [np.s_[::3, ::-2], np.s_[5:, 7], np.s_[::-1], np.s_[30:31, 2:3], np.s_[..., None, 3:9], np.s_[4, 4]],
    ids=str,
)
def test_slices_of_a_two_dimensional_memmap(path: Path, part: Any) -> None:
    source = np.memmap(path, "u2", "r+", offset=6, shape=(100, 120))
    view = source[part]
    if np.ndim(view) == 0:
        view = source[part[0] : part[0] + 1, part[1] : part[1] + 1].reshape(())
    other = check_geometry(np.asarray(view))
    other[...] = 5
    assert (view == 5).all()


def test_a_structured_memmap(path: Path) -> None:
    kind = np.dtype([("time", "<u4"), ("level", "<f4"), ("tag", "S5")])
    other = check_geometry(np.memmap(path, kind, "r+", offset=16, shape=(3000,))[10:400:7])
    other["level"] = 2.5
    source = np.memmap(path, kind, "r", offset=16, shape=(3000,))
    assert source["level"][17] == 2.5


def test_read_only_stays_read_only_in_flags_and_in_the_page_table(path: Path) -> None:
    source = np.memmap(path, "u1", "r")
    other = check_geometry(source)
    assert not other.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        other.flags.writeable = True
    assert protections(address(other), PAGE) == ["r--s"]
    with pytest.raises(mm.MapError, match="opened with fewer rights"):
        mm.mirror(source, protection="rw")


def test_a_read_only_view_of_writable_memory_gives_a_read_only_mirror() -> None:
    source = mm.zeros(5000, "u1")
    source.flags.writeable = False
    other = mm.mirror(source)
    assert not other.flags.writeable
    assert protections(address(other), PAGE) == ["r--s"]
    again = mm.mirror(source, protection="rw")
    again[4] = 1
    assert source[4] == 1


def test_copy_on_write_memmaps_are_private(path: Path) -> None:
    with pytest.raises(mm.NotMirrorableError, match="mode 'c'"):
        mm.mirror(np.memmap(path, "u1", "c"))


# --- parts -----------------------------------------------------------------------------------


def test_a_part_by_offset_and_length() -> None:
    with mmap.mmap(-1, 8 * PAGE) as source, mm.mirror(source, 3 * PAGE, 2 * PAGE) as view:
        source[3 * PAGE] = 1
        source[5 * PAGE - 1] = 2
        assert (view.array()[0], view.array()[-1], view.nbytes) == (1, 2, 2 * PAGE)


def test_sizes_may_be_strings() -> None:
    with mmap.mmap(-1, 256 << 10) as source, mm.mirror(source, "64KiB", "128KiB") as view:
        source[64 << 10] = 8
        assert view.nbytes == 128 << 10
        assert view.array()[0] == 8


def test_pieces_of_one_object_keep_their_pages_and_protections() -> None:
    with Raw(4 * PAGE) as source:
        for index in range(4):
            source.buffer[index * PAGE] = index + 1
        source.protect(PAGE, PAGE, PROT_READ)
        source.protect(2 * PAGE, PAGE, PROT_NONE)
        with mm.mirror(source.buffer) as view:
            assert [letters[:3] for letters in protections(view.address, view.nbytes)] == [
                "rw-",
                "r--",
                "---",
                "rw-",
            ]
            assert view.protection == "mixed"
            view.protect("r")
            assert view.array()[::PAGE].tolist() == [1, 2, 3, 4]


def test_pieces_of_two_objects_side_by_side_show_their_own_pages() -> None:
    with Raw(4 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS) as window:
        for index in range(2):
            Raw(2 * PAGE, at=window.address + 2 * index * PAGE)
            window.buffer[2 * index * PAGE] = 65 + index
        with mm.mirror(window.buffer) as view:
            assert view.array()[:: 2 * PAGE].tolist() == [65, 66]
            window.buffer[3 * PAGE] = 9
            assert view.array()[3 * PAGE] == 9
            with view.mirror(PAGE, 2 * PAGE) as middle:
                assert middle.array()[PAGE] == 66


def test_a_ring_of_ours_stays_a_ring() -> None:
    with mm.Pages(2 * PAGE) as pages, pages.arrange([(0, 2 * PAGE), (0, 2 * PAGE)]) as ring:
        with mm.mirror(ring) as other:
            other.array()[2 * PAGE + 3] = 6
            assert ring.array()[3] == other.array()[3] == 6
        other_array = mm.mirror(ring.array())
        assert other_array[3] == other_array[2 * PAGE + 3] == 6


def test_a_ring_of_others_stays_a_ring() -> None:
    fd = os.memfd_create("ring")
    try:
        os.ftruncate(fd, 2 * PAGE)
        with Raw(4 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS) as window:
            for start in (0, 2 * PAGE):
                Raw(2 * PAGE, RW, MAP_SHARED, fd, at=window.address + start)
            with mm.mirror(window.buffer) as view:
                view.array()[2 * PAGE + 1] = 4
                assert view.array()[1] == window.buffer[1] == 4
    finally:
        os.close(fd)


def test_a_hole_in_the_range_is_refused() -> None:
    with Raw(3 * PAGE) as source:
        ctypes.CDLL(None).munmap(ctypes.c_void_p(source.address + PAGE), PAGE)
        with pytest.raises(mm.MapError, match="Nothing is mapped") as caught:
            mm.mirror(source.buffer)
        assert caught.value.errno == 14


# --- where, and with what rights ---------------------------------------------------------------


def somewhere_free() -> int:
    """An address in the middle of a hole, which the kernel and the C library fill from its ends."""
    with Raw(1024 * PAGE) as hole:
        return hole.address + 512 * PAGE


def test_a_chosen_address_is_honoured_and_an_occupied_one_refused() -> None:
    with mmap.mmap(-1, 4 * PAGE) as source:
        free = somewhere_free()
        with mm.mirror(source, address=free) as view:
            assert view.address == free
            for taken in (free, free + 3 * PAGE):
                with pytest.raises(mm.MapError, match="mapped there already") as caught:
                    mm.mirror(source, address=taken)
                assert caught.value.errno == 17
        assert not is_mapped(free)


def test_the_address_of_an_array_is_that_of_its_first_page() -> None:
    source = mm.zeros(PAGE, "u1")[100:200]
    free = somewhere_free()
    other = mm.mirror(source, address=free)
    assert address(other) == free + 100


def test_a_read_only_mirror_of_a_writable_source() -> None:
    with mmap.mmap(-1, PAGE) as source, mm.mirror(source, protection="r") as view:
        source[0] = 3
        assert view.array()[0] == 3
        assert not view.array().flags.writeable
        assert view.protection == "r"
        view.protect("rw")
        view.array()[1] = 4
        assert source[1] == 4


CODE = {  # int f(void) { return N; }
    "x86_64": lambda number: b"\xb8" + number.to_bytes(4, "little") + b"\xc3",
    "aarch64": lambda number: (
        (0x52800000 | number << 5).to_bytes(4, "little") + 0xD65F03C0.to_bytes(4, "little")
    ),
}


def test_machine_code_written_through_one_view_runs_through_the_other() -> None:
    code = CODE.get(platform.machine())
    if code is None:
        pytest.skip(f"no machine code for {platform.machine()} in this test")
    with mm.Pages(PAGE) as pages, pages.map() as writable, writable.mirror(protection="rx") as runnable:
        function = ctypes.CFUNCTYPE(ctypes.c_int)(runnable.address)
        for number in (42, 1234):
            instructions = code(number)
            writable.array()[: len(instructions)] = np.frombuffer(instructions, "u1")
            if platform.machine() == "aarch64":  # the instruction cache does not watch stores
                clear = ctypes.CDLL("libgcc_s.so.1").__clear_cache
                for view in (writable, runnable):
                    clear(ctypes.c_void_p(view.address), ctypes.c_void_p(view.address + PAGE))
            assert function() == number
        assert protections(runnable.address, PAGE) == ["r-xs"]
        assert protections(writable.address, PAGE) == ["rw-s"]


def test_a_fresh_mirror_has_no_entries_and_a_populated_one_all() -> None:
    with mmap.mmap(-1, 64 * PAGE) as source:
        np.frombuffer(source, "u1")[::PAGE] = 1
        with mm.mirror(source) as lazy, mm.mirror(source, populate=True) as eager:
            assert lazy.resident == 0
            assert eager.resident == eager.nbytes


def test_the_same_frames_lie_behind_both_addresses() -> None:
    with mmap.mmap(-1, 4 * PAGE) as source, mm.mirror(source, populate=True) as view:
        np.frombuffer(source, "u1")[::PAGE] = 1
        mine, theirs = (
            residency.frames(view.address, 4 * PAGE),
            residency.frames(address_of(source), 4 * PAGE),
        )
        if mine is None:
            pytest.skip("frame numbers are readable by root only")
        assert mine == theirs


# --- lengths -----------------------------------------------------------------------------------


def test_a_mapping_longer_than_its_truncated_file_is_refused(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as source:
        file.truncate(PAGE)
        with pytest.raises(mm.MapError, match="past the end of its object") as caught:
            mm.mirror(source)
        assert caught.value.errno == 14
        with mm.mirror(source, 0, PAGE) as view:
            assert bytes(view) == path.read_bytes()


def test_a_file_that_ends_inside_its_last_page_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "short"
    file.write_bytes(b"x" * (PAGE + 10))
    other = mm.mirror(np.memmap(file, "u1", "r"))
    assert other.nbytes == PAGE + 10
    assert bytes(other) == file.read_bytes()


def test_unreadable_memory_past_its_object_is_found_out_too() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(2 * PAGE)
        with Raw(4 * PAGE, PROT_NONE, MAP_SHARED, file.fileno()) as source:
            with pytest.raises(mm.MapError, match="past the end of its object"):
                mm.mirror(source.buffer)
            with mm.mirror((ctypes.c_ubyte * (2 * PAGE)).from_address(source.address)) as view:
                assert view.protection == "none"
                view.protect("r")
                assert view.array()[0] == 0
