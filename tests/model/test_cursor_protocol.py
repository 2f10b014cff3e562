"""The cursor protocol, model-checked: every interleaving of small programs, on memory that reorders stores.

Each thread has a store buffer. A store leaves it at any later moment, in any order but that of stores to one word and of
release barriers (this is PSO, weaker than x86; loads stay in order, which the acquire fences see to). A full fence waits
until the buffer is empty; compare-and-swap and the futex call act on memory itself, after that. The programs
are the functions of cursors.h, line by line; for each ordering in them a test shows that without it something breaks.
ring.pml has whole lives of rings instead, several readers and deaths among them, on memory that is in order.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest

pytestmark = pytest.mark.apart

Step = tuple[Any, ...]
Program = Callable[[], Generator[Step, Any, None]]
CAPACITY = 1
WANTED = -1  # in a buffer: bit 0 is set in whatever the word is by then


class BrokenError(Exception):
    """A property does not hold in some interleaving."""


class State:
    """Replays programs along a schedule, so that generators need not be copied."""

    def __init__(self, programs: list[Program], memory: dict[str, int]) -> None:
        self.memory = dict(memory)
        self.buffers: list[list[tuple[str, int]]] = [[] for _ in programs]
        self.threads = [program() for program in programs]
        self.tickets = [0 for _ in programs]  # the word that each sleeps on
        self.pending: list[Step | None] = []
        self.history: list[list[Any]] = [[] for _ in programs]  # what each thread has seen: its local state
        for thread in self.threads:
            self.pending.append(next(thread, None))

    def key(self) -> Any:
        return (
            tuple(sorted(self.memory.items())),
            tuple(tuple(buffer) for buffer in self.buffers),
            tuple(tuple(seen) for seen in self.history),
            tuple(self.tickets),
        )

    def load(self, who: int, word: str) -> int:
        own = [value for name, value in self.buffers[who] if name == word]
        return own[-1] if own else self.memory[word]

    def choices(self) -> list[tuple[str, int, int]]:
        found: list[tuple[str, int, int]] = []
        for who, buffer in enumerate(self.buffers):
            for index, (word, _) in enumerate(buffer):
                earlier = [name for name, _ in buffer[:index]]
                if word == "barrier":
                    if index == 0:
                        found.append(("flush", who, 0))
                    break
                if word not in earlier:
                    found.append(("flush", who, index))
        for who, step in enumerate(self.pending):
            if step is None:
                continue
            if step[0] in ("fence", "swap", "sleep") and self.buffers[who]:
                continue
            if step[0] == "sleep" and self.memory[step[1]] == self.tickets[who]:
                continue  # a futex: while the word is what it was
            found.append(("run", who, 0))
        return found

    def take(self, choice: tuple[str, int, int]) -> None:
        kind, who, index = choice
        if kind == "flush":
            word, value = self.buffers[who].pop(index)
            if value == WANTED:  # read, changed and written at once, and that may be late
                value = self.tickets[who] = self.memory[word] | 1
            if word != "barrier":
                self.memory[word] = value
            return
        step, result = self.pending[who], None
        assert step is not None
        match step:
            case ("store", word, value):
                self.buffers[who].append((word, value))
            case ("load", word):
                result = self.load(who, word)
            case ("release",):
                if self.buffers[who]:
                    self.buffers[who].append(("barrier", 0))
            case ("swap", word, expected, value):
                result = self.memory[word] == expected
                if result:
                    self.memory[word] = value
            case ("want", word):
                self.buffers[who].append((word, WANTED))
        self.history[who].append(result)
        try:
            self.pending[who] = self.threads[who].send(result)
        except StopIteration:
            self.pending[who] = None


def explore(programs: list[Program], memory: dict[str, int]) -> int:
    """Every interleaving. Returns: how many states. Raises: BrokenError for one that ends badly."""
    seen: set[Any] = set()
    stack: list[list[tuple[str, int, int]]] = [[]]
    while stack:
        schedule = stack.pop()
        state = State(programs, memory)
        for choice in schedule:
            state.take(choice)
        key = state.key()
        if key in seen:
            continue
        seen.add(key)
        choices = state.choices()
        if not choices and any(step is not None for step in state.pending):
            raise BrokenError(f"asleep for ever after {schedule}")
        stack += [[*schedule, choice] for choice in choices]
    return len(seen)


# --- the programs; `without` leaves one ordering out -------------------------------------------------


def publish(word: str, flag: str, value: int, without: str) -> Generator[Step, Any, None]:
    """mm_publish and mm_advance: a release store, then is anybody waiting?"""
    if without != "release of publish":
        yield ("release",)
    yield ("store", word, value)
    if without != "fence of the waker":
        yield ("fence",)
    if (seen := (yield ("load", flag))) & 1:
        yield ("swap", flag, seen, seen + 1)


def wait_for(word: str, flag: str, value: int, without: str) -> Generator[Step, Any, None]:
    """mm_want, one more look, and the futex."""
    while (yield ("load", word)) < value:
        yield ("want", flag)
        if without != "fence of the sleeper":
            yield ("fence",)
        if (yield ("load", word)) >= value:
            return
        yield ("sleep", flag)


def waking(without: str = "") -> tuple[list[Program], dict[str, int]]:
    """A reader waits for two items, a writer writes them."""

    def writer() -> Generator[Step, Any, None]:
        yield from publish("written", "data_wanted", 1, without)
        yield from publish("written", "data_wanted", 2, without)

    def reader() -> Generator[Step, Any, None]:
        yield from wait_for("written", "data_wanted", 1, without)
        yield from wait_for("written", "data_wanted", 2, without)

    return [writer, reader], {"written": 0, "data_wanted": 0}


def windows(without: str = "") -> tuple[list[Program], dict[str, int]]:
    """An overwriting writer of three items into one place; a reader that reads and then asks."""

    def writer() -> Generator[Step, Any, None]:
        for index in range(3):
            yield ("store", "claimed", index + 1)
            if without != "release of claim":
                yield ("release",)
            yield ("store", "place", index)
            yield from publish("written", "data_wanted", index + 1, without)

    def reader() -> Generator[Step, Any, None]:
        for _ in range(2):
            written = yield ("load", "written")
            if written == 0:
                continue
            start = written - 1
            found = yield ("load", "place")
            if without == "the question afterwards":
                claimed = written
            else:
                claimed = yield ("load", "claimed")
            if start >= claimed - CAPACITY and found != start:
                raise BrokenError(f"item {start} was taken for intact and is {found}")

    return [writer, reader], {"claimed": 0, "written": 0, "data_wanted": 0, "place": -1}


def arriving(without: str = "") -> tuple[list[Program], dict[str, int]]:
    """A lossless writer of items 1 and 2 where item 0 is; a reader arrives at the oldest meanwhile and stays."""

    def writer() -> Generator[Step, Any, None]:
        for index in (1, 2):
            yield ("store", "intended", index + 1)
            if without != "fence of intend":
                yield ("fence",)
            if (yield ("load", "owner")) and index + 1 > (yield ("load", "position")) + CAPACITY:
                return  # waits for the reader, which stays
            yield ("store", "claimed", index + 1)
            yield ("release",)
            yield ("store", "place", index)
            yield from publish("written", "data_wanted", index + 1, "")

    def reader() -> Generator[Step, Any, None]:
        wanted = max(0, (yield ("load", "claimed")) - CAPACITY)
        yield ("swap", "owner", 0, 1)
        yield ("store", "position", wanted)
        if without != "fence of arrive":
            yield ("fence",)
        intended = yield ("load", "intended")
        claimed = yield ("load", "claimed")
        if without != "raising the position":
            wanted = max(wanted, max(intended, claimed) - CAPACITY)
        yield ("release",)
        yield ("store", "position", wanted)
        yield ("fence",)
        if (yield ("load", "written")) > wanted and (found := (yield ("load", "place"))) != wanted:
            raise BrokenError(f"item {wanted} is pinned and was overwritten by {found}")

    words = {
        "intended": 1,
        "claimed": 1,
        "written": 1,
        "owner": 0,
        "position": 5,  # the last holder of the slot left it far ahead
        "place": 0,
        "data_wanted": 0,
    }
    return [writer, reader], words


SCENES = {"waking": waking, "windows": windows, "arriving": arriving}


@pytest.mark.parametrize("scene", SCENES)
def test_the_protocol_holds_in_every_interleaving(scene: str) -> None:
    assert explore(*SCENES[scene]()) > 100


@pytest.mark.parametrize(
    ("scene", "without"),
    [
        ("waking", "fence of the waker"), ("waking", "fence of the sleeper"),
        ("windows", "release of claim"), ("windows", "release of publish"), ("windows", "the question afterwards"),
        ("arriving", "fence of intend"), ("arriving", "fence of arrive"), ("arriving", "raising the position"),
    ],
)  # fmt: skip
def test_every_ordering_is_needed(scene: str, without: str) -> None:
    with pytest.raises(BrokenError):
        explore(*SCENES[scene](without))
