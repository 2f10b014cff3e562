"""heap.map() and heap.lru(): values that a container owns."""

from __future__ import annotations

import gc
import random
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

import mirrormap as mm
from support import BLOCK, PAGE


@pytest.fixture(params=["manual", "incremental", "background"])
def heap(request: pytest.FixtureRequest) -> Any:
    made = mm.Heap("64MiB", collector=request.param)
    yield made
    gc.collect()
    made.close()


def test_a_map_is_a_mutable_mapping(heap: mm.Heap) -> None:
    values = heap.map()
    values["a"] = b"first"
    values["b"] = bytearray(b"second")
    values["a"] = b"third"
    assert dict(values) == {"a": b"third", "b": b"second"}
    assert len(values) == 2
    assert "a" in values
    assert "c" not in values
    assert values.get("c") is None
    assert values.pop("a") == b"third"
    assert values.setdefault("d", b"set") == b"set"
    with pytest.raises(KeyError):
        values["a"]
    with pytest.raises(KeyError):
        del values["a"]
    with pytest.raises(KeyError):
        values.view("a")
    with pytest.raises(TypeError):
        values["e"] = "text"
    assert "e" not in values
    assert repr(values) == "<Map 2 values>"
    values.clear()
    assert heap.verify().objects == 0


def test_values_die_when_they_are_removed_without_a_collection(heap: mm.Heap) -> None:
    values = heap.map()
    for at in range(5000):
        values[at] = bytes(3000)
    full = heap.stats()
    assert full.committed <= 1.02 * full.live + BLOCK
    for at in range(5000):
        if at % 16:
            del values[at]
    after = heap.stats()
    assert after.collections == 0
    assert after.committed <= 1.1 * after.live + 2 * BLOCK
    assert len(values) == heap.verify().objects
    assert all(values[at] == bytes(3000) for at in values)


def test_arrays_come_back_as_copies(heap: mm.Heap) -> None:
    values = heap.map()
    array = np.arange(6.0).reshape(2, 3)
    values[1] = array
    got = values[1]
    assert got.dtype == array.dtype
    assert np.array_equal(got, array)
    got[:] = 0
    assert np.array_equal(values[1], array)
    with values.view(1) as view:
        assert view.readonly
        assert view.shape == (2, 3)
        assert view.format == "d"
        assert np.array_equal(np.asarray(view), array)


def test_a_view_outlives_its_value(heap: mm.Heap) -> None:
    values = heap.map()
    for at in range(1000):
        values[at] = bytes([at % 256]) * 2000
    view = values.view(500)
    address = np.frombuffer(view, "u1").ctypes.data
    for at in range(1000):
        del values[at]
    heap.collect()
    assert view == bytes([500 % 256]) * 2000
    assert np.frombuffer(view, "u1").ctypes.data == address
    assert heap.stats().committed < BLOCK
    assert heap.verify().objects == 1
    view.release()
    assert heap.verify().objects == 0
    heap.collect()
    assert heap.stats().committed == 0


def test_a_value_that_is_replaced_under_a_view(heap: mm.Heap) -> None:
    values = heap.map()
    values["a"] = b"before"
    with values.view("a") as view:
        values["a"] = b"after"
        assert bytes(view) == b"before"
        assert values["a"] == b"after"
    assert heap.verify().objects == 1


def test_values_die_with_their_container(heap: mm.Heap) -> None:
    values = heap.map()
    values["a"], values["b"] = bytes(100_000), bytes(10)
    view = values.view("b")
    del values
    gc.collect()
    assert heap.verify().objects == 1
    view.release()
    assert heap.verify().objects == 0


def test_an_lru_forgets_what_was_used_least_recently(heap: mm.Heap) -> None:
    gone: list[tuple[str, bytes]] = []
    cache = heap.lru(30, on_evict=lambda key, value: gone.append((key, value)))
    for key in "abc":
        cache[key] = key.encode() * 10
    assert cache["a"] == b"a" * 10
    cache["d"] = b"d" * 10
    assert gone == [("b", b"b" * 10)]
    cache["c"] = b"c" * 21
    assert [key for key, _ in gone] == ["b", "a", "d"]
    assert list(cache) == ["c"]
    assert cache.nbytes == 21
    cache.view("c").release()
    with pytest.raises(ValueError, match="does not fit"):
        cache["e"] = bytes(31)
    assert cache.pop("c") == b"c" * 21
    assert cache.nbytes == 0
    assert len(gone) == 3


def test_setting_what_is_the_next_to_go_keeps_it(heap: mm.Heap) -> None:
    cache = heap.lru(30)
    cache["a"], cache["b"] = bytes(10), bytes(10)
    cache["a"] = b"x" * 25
    assert dict(cache) == {"a": b"x" * 25}
    assert cache.nbytes == 25


def test_a_callback_may_use_the_cache_and_may_raise(heap: mm.Heap) -> None:
    def evicted(key: int, value: bytes) -> None:
        assert key not in cache
        if key == 3:
            raise RuntimeError("no")

    cache = heap.lru(50, on_evict=evicted)
    for at in range(8):
        cache[at] = bytes(10)
    with pytest.raises(RuntimeError):
        cache[8] = bytes(10)
    assert 3 not in cache
    assert 8 not in cache
    assert cache.nbytes == sum(len(value) for value in cache.values()) <= 50
    heap.verify()


def test_an_lru_against_an_ordered_dict(heap: mm.Heap) -> None:
    rng = random.Random(5)
    cache, model = heap.lru("2MiB"), OrderedDict[int, bytes]()
    for step in range(6000):
        key = rng.randrange(3000)
        if rng.random() < 0.5:
            data = rng.randbytes(int(2 ** rng.uniform(0, 17)))
            cache[key] = data
            model.pop(key, None)
            model[key] = data
            while sum(map(len, model.values())) > 2 << 20:
                model.popitem(last=False)
        elif key in model:
            assert cache[key] == model[key]
            model.move_to_end(key)
        if step % 500 == 0:
            heap.verify()
            assert list(cache) == list(model)
    stats = heap.stats()
    ends = sum(
        -len(data) % PAGE for data in model.values() if len(data) > 1 << 16
    )  # large ones have whole pages
    assert stats.committed <= 1.1 * stats.live + 11 * BLOCK // 4 + ends
    heap.collect()
    assert {key: bytes(value) for key, value in cache.items()} == model


def test_a_full_heap_leaves_a_container_as_it_was(heap: mm.Heap) -> None:
    values = heap.map()
    with pytest.raises(MemoryError):
        for at in range(10_000):
            values[at] = bytes(50_000)
    count = len(values)
    with pytest.raises(MemoryError):
        values[0] = bytes(1 << 20)
    assert len(values) == count
    assert values[0] == bytes(50_000)
    heap.verify()
