"""Reader: places in a stream, blocks, pins and what a reader is told."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

import mirrormap as mm
from support import PATIENCE_S


def test_a_reader_starts_where_it_is_told() -> None:
    with mm.Ring(10, "i4") as ring:
        ring.extend(np.arange(ring.capacity + 50, dtype="i4"))
        with ring.reader() as now, ring.reader("oldest") as oldest, ring.reader(60) as at:
            assert (now.available, oldest.available, at.available) == (0, ring.capacity, ring.capacity - 10)
            assert [one.position for one in (now, oldest, at)] == [ring.written, 50, 60]
        with pytest.raises(IndexError):
            ring.reader(ring.written + 1)
        with pytest.raises(mm.Overrun):
            ring.reader(49)
        with pytest.raises(ValueError, match="'now', 'oldest'"):
            ring.reader("newest")  # type: ignore[arg-type]


@pytest.mark.parametrize("overwrite", [True, False])
def test_peek_advance_read(overwrite: bool) -> None:
    with mm.Ring(10, "i4", overwrite=overwrite) as ring, ring.reader() as reader:
        ring.extend(np.arange(20, dtype="i4"))
        assert reader.peek(3).tolist() == [0, 1, 2]
        assert reader.peek(2).tolist() == [0, 1]
        reader.advance(2)
        assert reader.read(3).tolist() == [2, 3, 4]
        assert reader.available == 15
        assert reader.read(2, copy=True).flags.owndata
        assert reader.position == 7
        with pytest.raises(ValueError, match="cannot advance"):
            reader.advance(14)
        with pytest.raises(ValueError, match="cannot advance"):
            reader.advance(-1)
        with pytest.raises(TimeoutError):
            reader.read(14, timeout=0)
        with pytest.raises(TimeoutError, match="1 more"):
            reader.peek(14, timeout=0.01)
        with pytest.raises(ValueError, match="a block has"):
            reader.peek(ring.capacity + 1)
        with pytest.raises(ValueError, match="timeout"):
            reader.peek(14, timeout=-1)


def test_a_reader_that_falls_behind_is_told_how_much_it_missed() -> None:
    with mm.Ring(10, "i4") as ring, ring.reader() as reader:
        ring.extend(np.arange(ring.capacity + 25, dtype="i4"))
        with pytest.raises(mm.Overrun) as caught:
            reader.read(10)
        assert caught.value.missed == 25
        assert reader.read(3).tolist() == [25, 26, 27]


def test_a_lossless_writer_waits_for_the_slowest_reader_and_pins_hold() -> None:
    with mm.Ring(10, "i4", overwrite=False) as ring, ring.reader() as slow, ring.reader() as fast:
        ring.extend(np.arange(ring.capacity, dtype="i4"))
        fast.read(ring.capacity)
        with pytest.raises(TimeoutError, match="no room"):
            ring.append(1, timeout=0)
        with pytest.raises(TimeoutError):
            ring.extend([1, 2], timeout=0.01)
        with pytest.raises(TimeoutError):
            ring.reserve(1)
        held = slow.read(5)
        with pytest.raises(TimeoutError):
            ring.append(1, timeout=0)
        assert held.tolist() == [0, 1, 2, 3, 4]
        assert slow.peek(1).tolist() == [5]  # releases what was read
        fast.advance(0)
        ring.extend([1, 2, 3, 4, 5], timeout=0)
        with pytest.raises(TimeoutError):
            ring.append(6, timeout=0)
        slow.close()
        ring.append(6, timeout=0)


def test_without_readers_a_lossless_ring_does_not_wait() -> None:
    with mm.Ring(10, "i4", overwrite=False) as ring:
        ring.extend(np.arange(3 * ring.capacity, dtype="i4"), timeout=0)
        with ring.reader("oldest") as late:
            assert late.position == 2 * ring.capacity
            assert late.read(1).tolist() == [2 * ring.capacity]


def test_a_long_block_goes_through_a_lossless_ring_in_pieces() -> None:
    with mm.Ring(10, "i4", overwrite=False) as ring:
        block = np.arange(10 * ring.capacity + 3, dtype="i4")
        got: list[int] = []
        with ring.reader() as reader:

            def consume() -> None:
                while len(got) < len(block):
                    got.extend(reader.read(min(100, len(block) - len(got)), timeout=PATIENCE_S).tolist())

            thread = threading.Thread(target=consume)
            thread.start()
            ring.extend(block, timeout=PATIENCE_S)
            thread.join()
        assert got == block.tolist()


def test_blocks_overlap_and_tell_when_they_were_overwritten() -> None:
    with mm.Ring(10, "i4") as ring, ring.reader() as reader:
        ring.extend(np.arange(20, dtype="i4"))
        blocks = reader.blocks(8, step=4, timeout=0)
        assert [next(blocks).tolist()[0] for _ in range(4)] == [0, 4, 8, 12]
        with pytest.raises(TimeoutError):
            next(blocks)
        ring.extend(np.arange(20, 20 + ring.capacity, dtype="i4"))
        with pytest.raises(mm.Overrun):
            next(blocks)
        held = next(blocks)
        assert held[0] == 20
        ring.append(0)
        with pytest.raises(mm.Overrun) as caught:
            next(blocks)
        assert caught.value.missed == 1
        assert next(blocks)[0] == 21
        with pytest.raises(ValueError, match="step"):
            reader.blocks(8, step=0)


def test_blocks_pin_on_a_lossless_ring() -> None:
    with mm.Ring(10, "i4", overwrite=False) as ring, ring.reader() as reader:
        ring.extend(np.arange(ring.capacity, dtype="i4"))
        for number, block in enumerate(reader.blocks(8, step=4, timeout=0)):
            assert block[0] == 4 * number
            with pytest.raises(TimeoutError):
                ring.extend(np.zeros(4 * number + 1, "i4"), timeout=0)
            if number == 3:
                break
        reader.advance(0)
        ring.extend(np.zeros(16, "i4"), timeout=0)


def test_async_blocks() -> None:

    async def main() -> list[int]:
        seen: list[int] = []
        with mm.Ring(10, "i4") as ring, ring.reader() as reader:

            async def write() -> None:
                for at in range(0, 40, 4):
                    await asyncio.sleep(0.002)
                    ring.extend(np.arange(at, at + 4, dtype="i4"))

            task = asyncio.ensure_future(write())
            async for block in reader.blocks(8, step=8, timeout=10):
                seen += block.tolist()
                if len(seen) == 40:
                    break
            await task
            with pytest.raises(TimeoutError):
                async for _ in reader.blocks(8, timeout=0.02):
                    pass
        await asyncio.get_running_loop().shutdown_default_executor()
        return seen

    assert asyncio.run(main()) == list(range(40))


def test_readers_are_woken_and_told_when_the_writer_is_gone() -> None:
    ring = mm.Ring(10, "i4")
    reader = ring.reader()
    result: list[Any] = []

    def wait() -> None:
        try:
            while True:
                result.append(int(reader.read(1, timeout=PATIENCE_S)[0]))
        except mm.WriterGone as gone:
            result.append(gone)

    thread = threading.Thread(target=wait)
    thread.start()
    ring.append(5)
    ring.append(6)
    ring.close()
    thread.join(PATIENCE_S)
    assert result[:2] == [5, 6]
    assert isinstance(result[2], mm.WriterGone)
    reader.close()


def test_before_the_first_writer_readers_just_wait() -> None:
    with mm.Ring(10) as ring, ring.reader() as reader, pytest.raises(TimeoutError):
        reader.read(1, timeout=0.15)


def test_places_for_lossless_readers_are_limited_and_given_back() -> None:
    with mm.Ring(10, overwrite=False) as ring:
        readers = [ring.reader() for _ in range(184)]
        with pytest.raises(mm.BusyError, match="taken"):
            ring.reader()
        readers.pop().close()
        ring.reader().close()
        for reader in readers:
            reader.close()


def test_everything_on_a_closed_reader_is_a_closed_error() -> None:
    with mm.Ring(10) as ring:
        reader = ring.reader()
        reader.close()
        reader.close()
        for use in (lambda: reader.read(1), lambda: reader.peek(1), lambda: reader.advance(0)):
            with pytest.raises(mm.ClosedError):
                use()
        assert repr(reader) == "<Reader closed>"
