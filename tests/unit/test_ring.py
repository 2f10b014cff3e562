"""Ring: the contract, method by method, in one process."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import numpy as np
import pytest

import mirrormap as mm
from support import PAGE, PATIENCE_S

RECORD = np.dtype([("time", "<i8"), ("price", "<f4"), ("side", "S3")])


def test_capacity_is_rounded_up_to_whole_pages() -> None:
    with mm.Ring(1000, "f4") as ring:
        assert (ring.capacity, ring.nbytes, ring.dtype, ring.shape) == (PAGE // 4, PAGE, np.dtype("f4"), ())
        assert (ring.written, ring.oldest, len(ring)) == (0, 0, 0)


def test_rows_need_not_divide_a_page() -> None:
    with mm.Ring(100, "u1", 496) as ring:
        assert ring.nbytes == -(-100 * 496 // PAGE) * PAGE
        assert ring.capacity == ring.nbytes // 496
        for number in range(3 * ring.capacity):
            ring.append(np.full(496, number % 251, "u1"))
            assert (ring.latest(min(number + 1, 7))[-1] == number % 251).all()


@pytest.mark.parametrize(
    "dtype",
    ["?", "i1", "u2", "f2", "f4", "f8", "g", "c8", "c16", "S7", "U5", "M8[ns]", "m8[s]", ">i4", RECORD],
    ids=str,
)
@pytest.mark.parametrize("shape", [(), (3,), (2, 5)], ids=str)
def test_every_dtype_comes_back_as_it_went_in(dtype: Any, shape: tuple[int, ...]) -> None:
    kind = np.dtype(dtype)
    with mm.Ring(64, kind, shape) as ring:
        rng = np.random.default_rng(1)
        count = ring.capacity + 10
        block = np.zeros((count, *shape), kind)
        if kind.names is None and kind.kind in "iufcmM":
            block[...] = rng.integers(0, 100, block.shape).astype(kind)
        for at in range(0, count, 7):
            ring.extend(block[at : at + 7])
        assert ring.latest(ring.capacity).dtype == kind
        assert np.array_equal(ring.latest(ring.capacity), block[-ring.capacity :])


def test_object_dtype_says_why() -> None:
    with pytest.raises(TypeError, match="Python objects"):
        mm.Ring(10, object)
    with pytest.raises(TypeError, match="Python objects"):
        mm.Ring(10, [("a", "i4"), ("b", "O")])


@pytest.mark.parametrize("capacity", [0, -1, 1 << 62])
def test_capacities_that_cannot_be(capacity: int) -> None:
    with pytest.raises(ValueError, match=r"ring needs|can be mapped"):
        mm.Ring(capacity)
    with pytest.raises(TypeError):
        mm.Ring("64KiB")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(0,), (-1,), (2, 0)])
def test_shapes_that_cannot_be(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one item"):
        mm.Ring(4, "f4", shape)
    with pytest.raises(ValueError, match="at least one byte"):
        mm.Ring(4, "V0")


# --- writing -------------------------------------------------------------------------------------


def test_scalars_rows_lists_and_bytes_are_taken() -> None:
    with mm.Ring(10, "i2") as ring:
        ring.append(1)
        ring.append(np.int8(2))
        ring.append(np.array(3))
        ring.extend([4, 5])
        ring.extend(np.array([6.0], "f8").astype("i8"))
        ring.extend(range(7, 9))
        assert ring.latest(8).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    with mm.Ring(10, "u1") as ring:
        ring.extend(b"abc")
        ring.extend(memoryview(b"de"))
        assert bytes(ring.latest(5)) == b"abcde"
    with mm.Ring(10, RECORD) as ring:
        ring.append((1, 2.5, b"buy"))
        ring.extend([(2, 3.5, b"sel")])
        assert ring.latest(2)["price"].tolist() == [2.5, 3.5]


def test_what_does_not_convert_is_refused_and_nothing_is_written() -> None:
    with mm.Ring(10, "i4", 2) as ring:
        for bad in ([1, 2, 3], [[1, 2, 3]], 5, np.zeros((2, 3), "i4"), np.zeros((1, 2, 2), "i4")):
            with pytest.raises(ValueError, match="does not fit"):
                ring.extend(bad)
        with pytest.raises(ValueError, match="does not fit"):
            ring.append([[1, 2]])
        with pytest.raises(TypeError, match="same_kind"):
            ring.extend(np.zeros((1, 2), "f8"))
        with pytest.raises((ValueError, TypeError)):
            ring.append(["x", "y"])
        assert ring.written == 0
        ring.extend(np.empty((0, 2), "i4"))
        assert ring.written == 0
    with mm.Ring(10, "u1") as ring, pytest.raises(OverflowError):
        ring.append(300)


def test_a_timeout_that_cannot_be_is_refused_even_where_nobody_waits() -> None:
    with mm.Ring(10, "i4") as ring:
        for write in (ring.append, ring.reserve, lambda one, timeout: ring.extend([one], timeout)):
            for timeout in (-1, -0.5, float("nan")):
                with pytest.raises(ValueError, match="timeout"):
                    write(1, timeout)
            with pytest.raises(TypeError):
                write(1, "soon")
        assert ring.written == 0
        ring.append(1, timeout=float("inf"))
        ring.append(2, timeout=None)
        assert ring.written == 2


class Closer:
    """A number or a block whose conversion closes the ring."""

    def __init__(self, ring: mm.Ring) -> None:
        self.ring = ring

    def __int__(self) -> int:
        self.ring.close()
        return 1

    __index__ = __int__

    def __array__(self, *unused: Any, **options: Any) -> np.ndarray[Any, Any]:
        self.ring.close()
        return np.ones(3, "i8")


@pytest.mark.parametrize("way", ["append", "extend"])
def test_a_conversion_that_closes_the_ring_is_a_closed_error(way: str) -> None:
    ring = mm.Ring(10, "i4")
    with pytest.raises(mm.ClosedError):
        getattr(ring, way)(Closer(ring))


def test_a_float64_block_goes_into_a_float32_ring() -> None:
    with mm.Ring(10) as ring:
        ring.extend(np.arange(4.0)[::-1])
        assert ring.latest(4).tolist() == [3, 2, 1, 0]


def test_a_block_longer_than_the_ring_keeps_its_newest() -> None:
    with mm.Ring(10, "i4") as ring:
        block = np.arange(3 * ring.capacity + 5, dtype="i4")
        ring.extend(block)
        assert ring.written == len(block)
        assert ring.oldest == len(block) - ring.capacity
        assert np.array_equal(ring.latest(ring.capacity), block[-ring.capacity :])


def test_a_window_of_the_ring_can_be_written_to_the_ring() -> None:
    with mm.Ring(10, "i4") as ring:
        ring.extend(np.arange(ring.capacity, dtype="i4"))
        half = ring.latest(ring.capacity // 2 + 1)
        expected = half.copy()
        ring.extend(half)
        assert np.array_equal(ring.latest(len(expected)), expected)


def test_reserve_is_written_in_place_and_seen_after_commit() -> None:
    with mm.Ring(1000, "i4") as ring:
        ring.extend(np.arange(ring.capacity - 2, dtype="i4"))
        room = ring.reserve(5)
        assert room.shape == (5,)
        assert room.flags.writeable
        np.add(np.arange(5), 100, out=room)
        assert ring.written == ring.capacity - 2
        assert ring.oldest == 3  # their places count as overwritten
        ring.commit(3)
        assert ring.latest(3).tolist() == [100, 101, 102]
        assert not ring.valid(2)
        assert ring.valid(3)


def test_reservations_are_one_at_a_time() -> None:
    with mm.Ring(10, "i4") as ring:
        with pytest.raises(ValueError, match="reserve"):
            ring.commit()
        ring.reserve(2)
        for write in (lambda: ring.append(1), lambda: ring.extend([1]), lambda: ring.reserve(1)):
            with pytest.raises(mm.BusyError, match="commit"):
                write()
        for bad in (3, -1):
            with pytest.raises(ValueError, match="commit 0 to 2"):
                ring.commit(bad)
        ring.commit(0)
        assert ring.written == 0
        for bad in (0, -1, ring.capacity + 1):
            with pytest.raises(ValueError, match="reserve 1 to"):
                ring.reserve(bad)


def test_a_second_writer_is_refused_until_the_first_closes() -> None:
    ring = mm.Ring(10, "i4")
    with mm.Ring.from_fd(ring.fileno()) as other:
        ring.append(1)
        assert other.latest(1).tolist() == [1]
        with pytest.raises(mm.BusyError, match="one writer"):
            other.append(2)
        ring.close()
        other.append(2)
        assert other.latest(2).tolist() == [1, 2]


def test_a_forgotten_writer_gives_up_its_place() -> None:
    ring = mm.Ring(10, "i4")
    with mm.Ring.from_fd(ring.fileno()) as other:
        ring.append(1)
        del ring
        gc.collect()
        other.append(2)


# --- windows -------------------------------------------------------------------------------------


def test_windows_are_read_only_contiguous_and_keep_their_pages() -> None:
    ring = mm.Ring(1000, "i4")
    ring.extend(np.arange(1500, dtype="i4"))
    window = ring.window(1000, 1400)
    assert not window.flags.writeable
    assert window.flags.c_contiguous
    with pytest.raises(ValueError, match=r"read-only|WRITEABLE"):
        window.flags.writeable = True
    ring.close()
    assert window.tolist() == list(range(1000, 1400))
    with pytest.raises(mm.ClosedError):
        ring.latest(1)


def test_latest_of_nothing_and_of_too_much() -> None:
    with mm.Ring(10, "i4", 2) as ring:
        assert ring.latest(0).shape == (0, 2)
        with pytest.raises(ValueError, match="0 are written"):
            ring.latest(1)
        ring.extend(np.zeros((2 * ring.capacity, 2), "i4"))
        for bad in (-1, ring.capacity + 1):
            with pytest.raises(ValueError, match="are asked for"):
                ring.latest(bad)


def test_windows_outside_what_is_there() -> None:
    with mm.Ring(10, "i4") as ring:
        ring.extend(np.arange(ring.capacity + 100, dtype="i4"))
        with pytest.raises(IndexError, match="not written yet"):
            ring.window(ring.written - 1, ring.written + 1)
        with pytest.raises(mm.Overrun) as caught:
            ring.window(90, 110)
        assert caught.value.missed == 10
        with pytest.raises(mm.Overrun):
            ring.window(0, ring.written)
        for bad in ((-1, 3), (5, 4)):
            with pytest.raises(ValueError, match="no window"):
                ring.window(*bad)
        assert ring.window(5, 5).size == 0


def test_valid_is_the_check_after_computing() -> None:
    with mm.Ring(10, "i4") as ring:
        ring.extend(np.arange(ring.capacity, dtype="i4"))
        window = ring.window(0, 4)
        assert ring.valid(0)
        ring.append(7)
        assert not ring.valid(0)
        assert ring.valid(1)
        assert window[0] == 7  # live, as documented
        assert not ring.valid(-1)


def test_sliding_windows_across_the_seam() -> None:
    with mm.Ring(10, "i4", 2) as ring:
        block = np.arange(3 * ring.capacity, dtype="i4").repeat(2).reshape(-1, 2)
        ring.extend(block[: 2 * ring.capacity + 33])
        intact = block[ring.oldest : ring.written]
        for count, step in ((1, 1), (5, 1), (100, 7), (ring.capacity, 1)):
            expected = np.lib.stride_tricks.sliding_window_view(intact, count, axis=0)[::step].swapaxes(1, 2)
            got = ring.windows(count, step)
            assert np.array_equal(got, expected)
            assert not got.flags.writeable
        assert ring.windows(ring.capacity + 1).shape == (0, ring.capacity + 1, 2)
        for bad in ((0, 1), (1, 0)):
            with pytest.raises(ValueError, match="cannot be"):
                ring.windows(*bad)


def test_the_mirror_of_a_window_is_its_pages_once_more() -> None:
    with mm.Ring(1000, "i4") as ring:
        ring.extend(np.arange(1500, dtype="i4"))
        window = ring.latest(100)
        other = mm.mirror(window)
        assert other.tolist() == window.tolist()
        assert not other.flags.writeable
        assert mm.shares_memory(other, window)


def test_reprs_tell() -> None:
    with mm.Ring(10, "i4", 2, overwrite=False) as ring, ring.reader() as reader:
        assert repr(ring) == f"<Ring lossless, {PAGE // 8:,} items of int32[2], {PAGE >> 10} KiB, 0 written>"
        assert repr(reader) == "<Reader at item 0, 0 available>"
    assert repr(ring) == "<Ring closed>"


def test_a_ring_on_huge_pages(huge: int) -> None:
    with mm.Ring(1000, "i4", page_size=huge) as ring:
        assert ring.nbytes == huge
        ring.extend(np.arange(ring.capacity + 10, dtype="i4"))
        assert ring.latest(20).tolist() == list(range(ring.capacity - 10, ring.capacity + 10))
        with mm.Ring.from_fd(ring.fileno()) as other:
            assert other.latest(1)[0] == ring.capacity + 9


def test_a_ring_is_not_closed_under_a_thread_that_waits_for_room() -> None:
    with mm.Ring(10, "i4", overwrite=False) as ring, ring.reader() as reader:
        ring.extend(np.zeros(ring.capacity, "i4"))
        thread = threading.Thread(target=ring.append, args=(7,), kwargs={"timeout": 30})
        thread.start()
        limit = time.monotonic() + 30
        while not ring._waiting and time.monotonic() < limit:
            time.sleep(0.001)
        with pytest.raises(mm.BusyError, match="waits for room"):
            ring.close()
        reader.advance(ring.capacity)
        thread.join(PATIENCE_S)
        assert reader.read(1, timeout=PATIENCE_S).tolist() == [7]
        ring.append(8)  # the writer's place was not given up


def test_threads_append_in_turns() -> None:
    with mm.Ring(1 << 16, "i8", 2) as ring:

        def work(number: int) -> None:
            for count in range(500):
                ring.append(np.array([number, count]))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seen = ring.latest(2000)
        for number in range(4):
            assert seen[seen[:, 0] == number, 1].tolist() == list(range(500))
