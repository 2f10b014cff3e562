"""heap.map() and heap.lru() against an OrderedDict, with keys that do what keys should not."""

from __future__ import annotations

import gc
from collections import OrderedDict
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import mirrormap as mm


class Awkward:
    """A key that shares its hash with others, and whose comparison may raise, or act first."""

    act: Any = None

    def __init__(self, name: int) -> None:
        self.name = name

    def __hash__(self) -> int:
        return self.name % 3

    def __eq__(self, other: object) -> bool:
        act, Awkward.act = Awkward.act, None
        if act is not None:
            act()
        if isinstance(other, int):
            return self.name == other
        return isinstance(other, Awkward) and self.name == other.name

    def __repr__(self) -> str:
        return f"Awkward({self.name})"


KEYS: list[Any] = [
    *range(-3, 12), 1.0, 2.5, True, 1 << 62, 1 << 63, -(1 << 63), 1 << 80,
    "", "a", "1", "a" * 20, "a" * 21, "\u00e9" * 10, "\u00e9" * 11, "\ud800", b"", b"a", b"1", b"a" * 20, b"a" * 21,
    None, (1, 2), frozenset({1}), *map(Awkward, range(12)),
]  # fmt: skip
KEY = st.sampled_from(KEYS)
LENGTH = st.sampled_from([0, 1, 50, 1000, 1000, 4000, 70_000])
LIMIT = 100_000


class Cached(RuleBasedStateMachine):
    @initialize(
        bounded=st.booleans(),
        called=st.booleans(),
        collector=st.sampled_from(["manual", "incremental", "background"]),
        stress=st.sampled_from([0, 1000]),
    )
    def start(self, bounded: bool, called: bool, collector: Any, stress: int) -> None:
        Awkward.act = None
        self.heap = mm.Heap("16MiB", collector=collector, stress=stress)
        self.gone: list[tuple[Any, bytes]] = []
        self.forgotten: list[tuple[Any, bytes]] = []
        self.called = bounded and called
        note = (lambda key, value: self.gone.append((key, value))) if called else None
        self.cache: mm.Map[Any] | mm.LRU[Any]
        self.cache = self.heap.lru(LIMIT, on_evict=note) if bounded else self.heap.map()
        self.beside = self.heap.map()
        self.bounded = bounded
        self.model: OrderedDict[Any, bytes] = OrderedDict()
        self.views: list[tuple[memoryview, bytes]] = []
        self.count = 0

    def use(self, key: Any) -> None:
        if self.bounded:
            self.model.move_to_end(key)

    def put(self, key: Any, nbytes: int) -> None:
        self.count += 1
        data = (self.count.to_bytes(4, "little") * (nbytes // 4 + 1))[:nbytes]
        new = key not in self.model
        while self.bounded and new and sum(map(len, self.model.values())) + nbytes > LIMIT:
            self.forgotten.append(self.model.popitem(last=False))
        self.cache[key] = data
        self.model[key] = data
        self.use(key)
        while self.bounded and sum(map(len, self.model.values())) > LIMIT:
            self.forgotten.append(self.model.popitem(last=False))

    @rule(key=KEY, nbytes=LENGTH)
    def store(self, key: Any, nbytes: int) -> None:
        self.put(key, nbytes)

    @rule(count=st.integers(1, 300))
    def fill(self, count: int) -> None:
        for at in range(count):
            self.put(1000 + at, 100)
            self.beside[at] = b"beside"

    @rule(count=st.integers(1, 300), step=st.integers(1, 5))
    def thin(self, count: int, step: int) -> None:
        for at in range(0, count, step):
            assert self.cache.pop(1000 + at, None) == self.model.pop(1000 + at, None)
            self.beside.pop(at, None)

    @rule(key=KEY)
    def load(self, key: Any) -> None:
        assert (key in self.cache) == (key in self.model)
        assert self.cache.get(key) == self.model.get(key)
        if key in self.model:
            self.use(key)
            assert self.cache[key] == self.model[key]
        else:
            with pytest.raises(KeyError) as raised:
                self.cache[key]
            assert raised.value.args == (key,)

    @rule(key=KEY)
    def remove(self, key: Any) -> None:
        if key in self.model:
            del self.cache[key], self.model[key]
        else:
            with pytest.raises(KeyError):
                del self.cache[key]

    @rule(key=KEY)
    def look(self, key: Any) -> None:
        if key in self.model:
            self.views.append((self.cache.view(key), self.model[key]))
            self.use(key)

    @precondition(lambda self: self.views)
    @rule(at=st.integers(0))
    def look_away(self, at: int) -> None:
        view, data = self.views.pop(at % len(self.views))
        assert view == data
        view.release()

    @precondition(lambda self: self.model)
    @rule()
    def pop_first(self) -> None:
        assert self.cache.popitem() == self.model.popitem(last=False)

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.model.clear()

    @precondition(lambda self: self.model)
    @rule()
    def change_while_going_through(self) -> None:
        keys = iter(self.cache)
        assert next(keys) == next(iter(self.model))
        self.put(5000 + self.count, 10)
        with pytest.raises(RuntimeError):
            next(keys)

    @rule(key=KEY)
    def compare_and_raise(self, key: Any) -> None:
        def act() -> None:
            raise ZeroDivisionError

        before = self.model.copy()
        Awkward.act = act
        try:
            self.cache[key] = b"only if nothing is compared"
        except ZeroDivisionError:
            return
        finally:
            asked, Awkward.act = Awkward.act is None, None
        assert not asked
        self.model = before
        self.model[key] = b"only if nothing is compared"
        self.use(key)
        while self.bounded and sum(map(len, self.model.values())) > LIMIT:
            self.forgotten.append(self.model.popitem(last=False))

    @rule(key=KEY, other=KEY)
    def compare_and_remove(self, key: Any, other: Any) -> None:
        """Whatever a comparison does to the container, the answer is of one moment."""
        Awkward.act = lambda: self.cache.pop(other, None)
        got = self.cache.get(key)
        acted, Awkward.act = Awkward.act is None, None
        assert got in (self.model.get(key), None)
        if acted:
            self.model.pop(other, None)
        if key in self.model and got is not None:
            self.use(key)

    @rule()
    def collect(self) -> None:
        self.heap.collect()

    @invariant()
    def is_the_same(self) -> None:
        if not hasattr(self, "heap"):
            return
        self.heap.verify()
        assert len(self.cache) == len(self.model)
        assert list(self.cache) == list(self.model)
        assert list(map(type, self.cache)) == list(map(type, self.model))
        assert self.cache.nbytes == sum(map(len, self.model.values()))
        if self.called:
            assert self.gone == self.forgotten

    def teardown(self) -> None:
        if hasattr(self, "heap"):
            Awkward.act = None
            assert dict(self.cache.items()) == dict(self.model)
            self.views.clear()
            del self.cache, self.beside
            gc.collect()
            assert self.heap.verify().objects == 0
            self.heap.close()


class TestCached(Cached.TestCase):
    settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
