"""Pages under live views that share frames: addresses and bytes stay, memory goes, and mappings are counted."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import mirrormap as mm
from mirrormap import procmaps
from pinned import Looks, entries
from support import PAGE, PATIENCE_S, address_of, forked, phase_of


@pytest.fixture
def heap() -> Iterator[mm.Heap]:
    with mm.Heap(PAGE << 14, collector="manual") as made:
        yield made


@pytest.mark.parametrize("owned", [False, True])
def test_memory_beside_pinned_objects_goes(heap: mm.Heap, owned: bool) -> None:
    looks = Looks(heap, owned)
    heap._mesh_most(0)
    goal = heap._goal()
    while heap._advance(goal, 1000_000_000):
        pass
    holes = heap.stats()
    assert holes.meshed == 0
    assert holes.mappings == entries() - looks.entries == 0
    heap.collect()
    stats = heap.stats()
    heap.verify()
    looks.check()
    assert holes.committed > 4 * stats.live, "holes alone"
    assert stats.committed < 1.8 * stats.live
    assert stats.meshed == holes.committed - stats.committed
    assert 0 < stats.mappings == entries() - looks.entries
    heap.collect()
    looks.check()
    heap.verify()


@pytest.mark.parametrize("owned", [False, True])
def test_frames_that_are_shared_become_fewer_as_they_empty(owned: bool) -> None:
    """What is meshed again and again comes to little more than what is meshed once, when most of it has gone."""
    committed = {}
    for often in (False, True):
        with mm.Heap(PAGE << 14, collector="manual") as heap:
            looks = Looks(heap, owned, keep=3)
            for keep in (3, 6, 12, 24):
                for at in random.Random(keep).sample(sorted(looks.views), len(looks.views) - 8000 // keep):
                    looks.drop(at)
                if often or keep == 24:
                    heap.collect()
                    heap.verify()
                    looks.check()
                    assert heap.stats().mappings == entries() - looks.entries
            committed[often] = heap.stats().committed
            looks.clear()
    assert committed[True] < 1.18 * committed[False]


@pytest.mark.parametrize("owned", [False, True])
def test_with_the_views_the_mappings_go(heap: mm.Heap, owned: bool) -> None:
    looks = Looks(heap, owned)
    heap.collect()
    before = heap.stats().mappings
    for count in (len(looks.views) // 2, 10, 0):
        while len(looks.views) > count:
            looks.drop(next(iter(looks.views)))
        heap.verify()
        heap.collect()
        heap.verify()
        looks.check()
        assert heap.stats().mappings == entries() - looks.entries < before
        before = heap.stats().mappings
    assert before == 0
    assert heap.stats().meshed == 0
    heap.collect()
    heap.collect()
    assert heap.stats().committed == 0


def test_objects_whose_views_ended_are_moved_out(heap: mm.Heap) -> None:
    """They live on, somewhere else, and the block's addresses are used again."""
    looks = Looks(heap, False)
    heap.collect()
    assert heap.stats().mappings
    for view in looks.views.values():
        view.release()
    heap.collect()
    heap.verify()
    stats = heap.stats()
    assert (stats.mappings, stats.meshed) == (0, 0)
    assert stats.committed < 1.1 * stats.live + (1 << 18)
    for at, ref in looks.refs.items():
        assert bytes(ref) == looks.data[at]


@pytest.mark.parametrize("owned", [False, True])
def test_the_heap_is_whole_after_each_step(heap: mm.Heap, owned: bool) -> None:
    looks = Looks(heap, owned, 4000)
    heap.put(b"reason")
    meshed = set()
    while heap.step(0):
        if phase_of(heap) == "mesh":
            heap.verify()
            looks.check()
            meshed.add(heap.stats().meshed)
    assert len(meshed) > 50
    heap.verify()


@pytest.mark.parametrize("act", ["drop", "write", "put", "pin", "collect"])
def test_anything_may_happen_between_two_steps(heap: mm.Heap, act: str) -> None:
    looks = [Looks(heap, owned, 3000, 8) for owned in (False, True)]
    rng = random.Random(1)
    more: list[Any] = []
    heap.put(b"reason")
    while heap.step(0):
        if phase_of(heap) != "mesh":
            continue
        for each in looks:
            at = rng.choice(list(each.views))
            if act == "drop" and len(each.views) > 20:
                each.drop(at)
            elif act == "write" and at in each.refs:
                with each.refs[at].writable() as array:
                    array[:] = rng.randrange(256)
                    each.data[at] = array.tobytes()
                    del array
            elif act == "put":
                more.append(heap.put(rng.randbytes(3000)))
                each.values[-1] = bytes(3000)
                del more[:-5]
            elif act == "pin" and more:
                more = [memoryview(heap.put(rng.randbytes(100)))]
        if act == "collect" and rng.random() < 0.05:
            heap.collect()
            break
        if rng.random() < 0.1:
            heap.verify()
    heap.verify()
    for each in looks:
        each.check()
        each.clear()
        each.values.clear()
    more.clear()
    heap.collect()
    heap.collect()
    assert heap.stats().committed == 0
    assert heap.stats().mappings == entries() - looks[0].entries == 0


def test_who_writes_has_frames_of_its_own(heap: mm.Heap) -> None:
    looks = Looks(heap, False)
    heap.collect()
    meshed = heap.stats().meshed
    rng = random.Random(1)
    held: dict[int, Any] = {}
    for at in rng.sample(list(looks.views), 200):
        held[at] = looks.refs[at].writable()
        with held[at] as array:
            heap.verify()
            assert array.ctypes.data == looks.where[at]
            array[:] = rng.randrange(256)
            looks.data[at] = array.tobytes()
            held[at] = array
        looks.check()
    del array
    stats = heap.stats()
    assert stats.meshed < meshed
    assert any(pin.writers for pin in stats.pins)
    heap.collect()
    heap.verify()
    for at, array in held.items():
        array[:] = rng.randrange(256)
        looks.data[at] = array.tobytes()
        looks.check()
    del array
    held.clear()
    heap.collect()
    heap.verify()
    looks.check()
    assert heap.stats().meshed > stats.meshed, "they share again when nobody writes"


def test_no_room_to_write_is_a_memory_error() -> None:
    with mm.Heap(PAGE << 10, collector="manual") as heap:
        looks = Looks(heap, False, 1500)
        heap.collect()
        heap._allow(0)
        refused = 0
        for ref in looks.refs.values():
            try:
                with ref.writable():
                    pass
            except MemoryError as error:
                assert "shares its pages" in str(error)
                refused += 1
            heap.verify()
        looks.check()
        assert refused > 10
        del ref
        looks.clear()


@pytest.mark.parametrize("most", [0, 1, 8, 50, 51])
def test_mappings_are_bounded(heap: mm.Heap, most: int) -> None:
    looks = Looks(heap, True)
    heap._mesh_most(most)
    goal = heap._goal()
    while heap._advance(goal, 1000_000_000):
        pass
    assert heap.stats().mappings == entries() - looks.entries <= most
    assert (heap.stats().meshed > 0) == (most > 1)
    looks.check()
    heap.verify()


def test_half_of_the_mappings_that_are_left_may_be_used(
    heap: mm.Heap, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Looks(heap, True)
    monkeypatch.setattr(procmaps, "max_map_count", lambda: procmaps.map_count() + 200)
    heap.collect()
    assert 90 < heap.stats().mappings <= 100
    looks.check()


def test_objects_with_references_are_pinned_and_not_meshed(heap: mm.Heap) -> None:
    made = [heap.new(200, 1) for _ in range(4000)]
    views = [memoryview(ref) for ref in made[::16]]
    del made
    heap.collect()
    heap.verify()
    stats = heap.stats()
    assert (stats.meshed, stats.mappings) == (0, 0)
    assert stats.committed > 3 * stats.live
    assert all(view == bytes(200) for view in views)


def test_stats_say_what_is_pinned(heap: mm.Heap) -> None:
    assert heap.stats().pins == ()
    values = heap.map()
    values["large"], values["small"] = bytes(100_000), np.zeros(10)
    ref = heap.put(b"bytes")
    views: list[Any] = [values.view("large"), values.view("small"), memoryview(ref), memoryview(ref)]
    with ref.writable() as array:
        pins = heap.stats().pins
        assert pins == (
            mm.Pin(address_of(views[0]), 100_000, 1, True, 0),
            mm.Pin(address_of(views[1]), 80, 1, True, 0),
            mm.Pin(address_of(views[2]), 5, 3, False, 1),
        )
        del array
    more = [memoryview(heap.put(bytes(at))) for at in range(200, 100, -1)]
    pins = heap.stats().pins
    assert [pin.nbytes for pin in pins] == [100_000, *range(200, 185, -1)]
    assert heap.stats().views == 4 + len(more)


def test_a_fork_leaves_both_with_what_they_see(heap: mm.Heap) -> None:
    looks = [Looks(heap, owned, 3000) for owned in (False, True)]
    heap.collect()
    assert heap.stats().meshed

    def act() -> None:
        for each in looks:
            each.check()
            for view in list(each.views.values()):
                view.release()
            each.views.clear()
            with pytest.raises(mm.ClosedError):
                each.values.clear()
        gc.collect()

    assert forked(act) == 0
    heap.verify()
    for each in looks:
        each.check()
        each.clear()
    heap.collect()
    heap.collect()
    assert heap.stats().committed == 0


def test_an_image_of_meshed_objects(heap: mm.Heap) -> None:
    looks = Looks(heap, False, 2000)
    for at, ref in looks.refs.items():
        heap.roots[str(at)] = ref
    heap.collect()
    assert heap.stats().meshed
    with heap.freeze() as frozen:
        for at, data in looks.data.items():
            assert bytes(frozen.roots[str(at)]) == data
    looks.check()


def test_closing_while_pages_share_frames() -> None:
    before = entries()
    heap = mm.Heap(PAGE << 12, collector="manual")
    looks = Looks(heap, False, 2000)
    heap.collect()
    assert heap.stats().mappings
    with pytest.raises(BufferError):
        heap.close()
    looks.check()
    looks.clear()
    assert heap.stats().mappings, "nobody has collected since"
    heap.close()
    assert entries() == before


@pytest.mark.parametrize("owned", [False, True])
def test_nobody_need_ask(owned: bool) -> None:
    with mm.Heap(PAGE << 14) as heap:
        looks = Looks(heap, owned)
        end = time.monotonic() + PATIENCE_S
        while heap.stats().committed > 2 * heap.stats().live + (1 << 19):
            assert time.monotonic() < end, heap.stats()
            time.sleep(0.01)
        looks.check()
        heap.verify()
        looks.clear()
        while heap.stats().mappings:
            assert time.monotonic() < end, heap.stats()
            time.sleep(0.01)
