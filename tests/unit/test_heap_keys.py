"""Keys of heap.map() and heap.lru(): which are kept as objects, for how long, and what they may do."""

from __future__ import annotations

import gc
import os
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import mirrormap as mm


class Key:
    """Compares by identity, and may be watched."""


@pytest.fixture
def heap() -> Iterator[mm.Heap]:
    made = mm.Heap("64MiB", collector="manual")
    yield made
    gc.collect()
    made.close()


@pytest.mark.parametrize(
    "key", [0, -1, (1 << 63) - 1, -(1 << 63), "", "short", "a" * 20, "\u00e9" * 10, b"", b"\x00" * 20]
)
def test_a_short_key_is_kept_without_an_object(heap: mm.Heap, key: Any) -> None:
    values = heap.map()
    values[key] = b"value"
    before = sys.getrefcount(key)
    values[key] = b"again"
    assert sys.getrefcount(key) == before
    (kept,) = values
    assert kept == key
    assert type(kept) is type(key)


@pytest.mark.parametrize("key", [1 << 63, "a" * 21, b"a" * 21, 1.5, (1,), "\ud800"])
def test_another_key_is_the_object(heap: mm.Heap, key: Any) -> None:
    values = heap.map()
    values[key] = b"value"
    assert next(iter(values)) is key


def test_numbers_that_are_equal_are_one_key(heap: mm.Heap) -> None:
    values = heap.map()
    values[1] = b"int"
    assert values[True] == values[1.0] == values[np.int64(1)] == b"int"
    values[1.0] = b"float"
    assert [(type(key), value) for key, value in values.items()] == [(int, b"float")]
    values[2.0] = b"float first"
    assert values[2] == b"float first"
    assert "1" not in values
    assert b"1" not in values


def test_a_key_lives_as_long_as_its_entry(heap: mm.Heap) -> None:
    cache = heap.lru(100)
    keys = [Key() for _ in range(3)]
    watched = [weakref.ref(key) for key in keys]
    for key in keys:
        cache[key] = bytes(40)
    keys.clear()
    del key
    assert [watch() is None for watch in watched] == [True, False, False]
    del cache[watched[1]()]
    assert watched[1]() is None
    cache.clear()
    assert watched[2]() is None


def test_a_cycle_through_a_key_is_found(heap: mm.Heap) -> None:
    values = heap.map()
    key = Key()
    key.values = values  # type: ignore[attr-defined]
    watch = weakref.ref(key)
    values[key] = b"value"
    del values, key
    gc.collect()
    assert watch() is None
    assert heap.verify().objects == 0


def test_keys_are_let_go_of_when_the_heap_is_closed() -> None:
    heap = mm.Heap("1MiB")
    values, key = heap.map(), Key()
    watch = weakref.ref(key)
    values[key] = b"value"
    del key
    heap.close()
    assert watch() is None
    with pytest.raises(mm.ClosedError):
        len(values)
    heap.__init__("1MiB")  # type: ignore[misc]
    with pytest.raises(mm.ClosedError):
        values[1] = b"of a heap that is no more"
    del values
    heap.close()


def test_a_key_that_closes_the_heap_when_it_dies() -> None:
    class Last:
        def __del__(self) -> None:
            heap.close()

    heap = mm.Heap("1MiB")
    values = heap.map()
    values[Last()] = b"value"
    values[1] = b"other"
    with pytest.raises(mm.ClosedError):
        values.clear()


def test_a_comparison_that_closes_the_heap() -> None:
    class Closing:
        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            heap.close()
            return True

    heap = mm.Heap("1MiB")
    values = heap.map()
    values[Closing()] = b"value"
    with pytest.raises(mm.ClosedError):
        values[Closing()]


def test_a_comparison_that_adds_keys_until_the_table_has_moved(heap: mm.Heap) -> None:
    class Adding:
        def __init__(self, name: int) -> None:
            self.name = name

        def __hash__(self) -> int:
            return 7

        def __eq__(self, other: object) -> bool:
            if not values.get("done"):
                values["done"] = b"yes"
                for at in range(5000):
                    values[at] = b"more"
            return isinstance(other, Adding) and self.name == other.name

    values = heap.map()
    values[Adding(1)] = b"first"
    assert values[Adding(1)] == b"first"
    assert len(values) == 5002
    heap.verify()


def test_an_iterator_sees_every_key_while_others_move(heap: mm.Heap) -> None:
    values, others = heap.map(), heap.map()
    for at in range(500):
        others[at] = b"other"
        values[at] = b"value"
    seen = []
    for key in values:
        seen.append(key)
        others.pop(key)
    assert seen == list(range(500))
    heap.verify()


def test_iteration_notices_changes(heap: mm.Heap) -> None:
    cache = heap.lru(1000)
    cache["a"], cache["b"] = b"1", b"2"
    keys = iter(cache)
    cache["c"] = b"3"
    with pytest.raises(RuntimeError, match="changed size"):
        next(keys)
    with pytest.raises(RuntimeError, match="changed size"):
        next(keys)
    keys = iter(cache)
    assert cache["a"] == b"1"
    with pytest.raises(RuntimeError, match="order"):
        next(keys)
    keys = iter(cache)
    assert (list(keys), list(keys)) == (["b", "c", "a"], [])


def test_keys_of_tuples_and_words_for_defaults(heap: mm.Heap) -> None:
    values = heap.map()
    with pytest.raises(KeyError) as raised:
        values[1, 2]
    assert raised.value.args == ((1, 2),)
    assert values.get("a", default=b"b") == values.pop("a", default=b"b") == values.get("a", b"b") == b"b"
    for wrong in (values.get, lambda: values.pop(1, 2, 3), lambda: values.get(1, other=2)):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(TypeError, match="unhashable"):
        values[[]] = b"value"  # type: ignore[index]
    assert values.setdefault("a", b"c") == b"c"
    values.update(b=b"d")
    assert values == {"a": b"c", "b": b"d"}


def test_a_lower_limit_counts_from_the_next_value(heap: mm.Heap) -> None:
    cache = heap.lru(100)
    for at in range(10):
        cache[at] = bytes(10)
    cache.limit = 35
    assert len(cache) == 10
    cache["new"] = bytes(5)
    assert list(cache) == [7, 8, 9, "new"]
    with pytest.raises((OverflowError, TypeError)):
        cache.limit = -1
    assert cache.limit == 35


def test_the_index_gets_shorter_with_what_it_holds(heap: mm.Heap) -> None:
    values = heap.map()
    for at in range(50_000):
        values[at] = b"v"
    full = heap.stats().index_nbytes
    assert full < 50_000 * 90
    for at in range(50_000):
        if at % 16:
            del values[at]
    assert heap.stats().index_nbytes < full / 7
    assert all(values[at] == b"v" for at in values)
    values.clear()
    assert heap.stats().index_nbytes < 4000
    heap.verify()


def test_many_containers_come_and_go(heap: mm.Heap) -> None:
    kept = [heap.map() for _ in range(100)]
    for at, values in enumerate(kept):
        values[at] = b"%d" % at
    for _ in range(1000):
        heap.lru(10)[1] = b"1"
    del kept[::2]
    kept += [heap.map() for _ in range(100)]
    heap.verify()
    assert [dict(values) for values in kept[:50]] == [{at: b"%d" % at} for at in range(1, 100, 2)]


def test_a_forked_child_lets_go_of_its_keys_only(heap: mm.Heap) -> None:
    values, key = heap.map(), Key()
    values[key], values[1] = b"value", b"other"
    watch = weakref.ref(key)
    del key
    child = os.fork()
    if child == 0:
        try:
            values[1]
        except mm.ClosedError:
            del values
            gc.collect()
            os._exit(0 if watch() is None else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert values[watch()] == b"value"
    heap.verify()
