"""Every method of Ring and Reader against a plain list, at every position of the seam."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import mirrormap as mm
from support import PAGE, scaled


class Stream(RuleBasedStateMachine):
    """The model: the number of each item ever written, and where each reader stands."""

    item_nbytes = 1

    @initialize(overwrite=st.booleans(), start=st.integers(0, 3))
    def make(self, overwrite: bool, start: int) -> None:
        items = max(1, (2 * PAGE) // self.item_nbytes - start)
        self.ring = mm.Ring(items, "u1", (self.item_nbytes,), overwrite=overwrite)
        self.overwrite = overwrite
        self.capacity = self.ring.capacity
        self.written = self.claimed = 0
        self.readers: list[list[Any]] = []  # reader, position, items handed out

    def block(self, first: int, count: int) -> np.ndarray[Any, Any]:
        """Items that tell their number in their first and last bytes."""
        numbers = np.arange(first, first + count, dtype="u4")
        rows = np.zeros((count, self.item_nbytes), "u1")
        rows[:, 0] = numbers % 251
        rows[:, -1] = numbers % 241
        return rows

    def matches(self, got: np.ndarray[Any, Any], first: int) -> None:
        assert np.array_equal(got, self.block(first, len(got)))

    @property
    def oldest(self) -> int:
        return max(0, self.claimed - self.capacity)

    def room(self) -> int | None:
        if self.overwrite or not self.readers:
            return None
        return min(position for _, position, _ in self.readers) + self.capacity - self.written

    @rule(data=st.data(), way=st.sampled_from(["extend", "append", "reserve", "list"]))
    def write(self, data: Any, way: str) -> None:
        longest = self.capacity + (5 if way == "extend" and self.room() is None else 0)
        near = st.integers(0, longest) | st.sampled_from([1, self.capacity - 1, self.capacity])
        count = 1 if way == "append" else data.draw(near)
        block, room = self.block(self.written, count), self.room()
        if way == "reserve":
            count = max(1, min(count, self.capacity))
            if room is not None and count > room:
                with pytest.raises(TimeoutError):
                    self.ring.reserve(count)
                return
            place = self.ring.reserve(count)
            used = data.draw(st.integers(0, count))
            place[:used] = self.block(self.written, used)
            self.claimed = max(self.claimed, self.written + count)
            self.ring.commit(used)
            self.written += used
            return
        if room is not None and count > room:
            with pytest.raises(TimeoutError):
                self.ring.extend(block, timeout=0)
            return
        if way == "append":
            self.ring.append(block[0], timeout=0)
        else:
            self.ring.extend(block.tolist() if way == "list" and count < 50 else block, timeout=0)
        self.written += count
        self.claimed = max(self.claimed, self.written)

    @rule(data=st.data())
    def latest(self, data: Any) -> None:
        count = data.draw(st.integers(0, self.capacity + 1))
        if count > min(self.written, self.capacity):
            with pytest.raises(ValueError, match="are asked for"):
                self.ring.latest(count)
        elif count and self.written - count < self.oldest:
            with pytest.raises(mm.Overrun):
                self.ring.latest(count)
        else:
            self.matches(self.ring.latest(count), self.written - count)

    @rule(data=st.data())
    def window(self, data: Any) -> None:
        start = data.draw(st.integers(max(0, self.oldest - 3), self.written + 2))
        stop = data.draw(st.integers(start, self.written + 2))
        if stop > self.written:
            with pytest.raises(IndexError):
                self.ring.window(start, stop)
        elif start < self.oldest and stop > start:
            with pytest.raises(mm.Overrun) as caught:
                self.ring.window(start, stop)
            assert caught.value.missed == self.oldest - start
        else:
            self.matches(self.ring.window(start, stop), start)
        assert self.ring.valid(start) == (start >= self.oldest)

    @rule(count=st.integers(1, 9), step=st.integers(1, 4))
    def windows(self, count: int, step: int) -> None:
        found = self.ring.windows(count, step)
        intact = self.written - min(self.oldest, self.written)
        assert len(found) == max(0, (intact - count) // step + 1)
        if len(found):
            self.matches(found[0], self.oldest)
            self.matches(found[-1], self.oldest + (len(found) - 1) * step)

    @precondition(lambda self: len(self.readers) < 4)
    @rule(start=st.sampled_from(["now", "oldest"]))
    def join(self, start: Any) -> None:
        reader = self.ring.reader(start)
        oldest = min(self.oldest, self.written)
        position = self.written if start == "now" else oldest
        if not self.overwrite:  # a lossless ring promises no more than what nobody intends to overwrite
            position = max(position, oldest)
        assert position <= reader.position <= self.written
        self.readers.append([reader, reader.position, 0])

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), way=st.sampled_from(["peek", "read", "copy", "advance", "close"]))
    def use(self, data: Any, way: str) -> None:
        state = data.draw(st.sampled_from(self.readers))
        reader, position, held = state
        if way == "close":
            reader.close()
            self.readers.remove(state)
            return
        state[1:] = position, _ = position + held, 0
        available = self.written - position
        if way == "advance":
            count = data.draw(st.integers(0, max(0, available)))
            reader.advance(count)
            state[1] += count
            return
        count = data.draw(st.integers(0, min(self.capacity, available + 1)))
        if count > available:
            with pytest.raises(TimeoutError):
                reader.peek(count, timeout=0)
            return
        act = {"peek": reader.peek, "read": reader.read, "copy": lambda n, t: reader.read(n, t, copy=True)}[
            way
        ]
        if count and position < self.oldest:
            with pytest.raises(mm.Overrun) as caught:
                act(count, 0)
            assert caught.value.missed == self.oldest - position
            state[1] = self.oldest
            return
        self.matches(act(count, 0), position)
        if way == "read":
            state[2] = count
        elif way == "copy":
            state[1] += count

    @invariant()
    def cursors_agree(self) -> None:
        if hasattr(self, "ring"):
            assert self.ring.written == self.written
            assert self.ring.oldest == min(self.oldest, self.written)

    def teardown(self) -> None:
        if hasattr(self, "ring"):
            for reader, _, _ in self.readers:
                reader.close()
            self.ring.close()


@pytest.mark.parametrize("item_nbytes", [1, 2, 3, 12, 496, 1921, PAGE])
def test_a_stream_of_items(item_nbytes: int) -> None:
    machine = type("Stream", (Stream,), {"item_nbytes": item_nbytes})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=scaled(150, 15), stateful_step_count=40, deadline=None)
    )


def test_rows_of_six_megabytes() -> None:
    machine = type("Stream", (Stream,), {"item_nbytes": 6 << 20})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=3, stateful_step_count=10, deadline=None)
    )


@pytest.mark.parametrize("item_nbytes", [3, 12, 1921])
def test_every_position_of_the_seam(item_nbytes: int) -> None:
    with mm.Ring(2 * PAGE // item_nbytes, "u1", item_nbytes) as ring:
        rows = np.random.default_rng(0).integers(0, 255, (3 * ring.capacity, item_nbytes), "u1")
        for index, row in enumerate(rows):
            ring.append(row)
            count = min(index + 1, 5, ring.capacity)
            assert np.array_equal(ring.latest(count), rows[index + 1 - count : index + 1])
