"""Blocks that are compacted in place, because there is no room to empty them, or because a test asks for it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

import mirrormap as mm
from mirrormap import cgroups
from support import BLOCK, PAGE, phase_of


@pytest.fixture(params=[True, False], ids=["asked for", "no room"])
def always(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def heap(always: bool, monkeypatch: pytest.MonkeyPatch) -> Iterator[mm.Heap]:
    """One in which nothing leaves its block, or not before another one has given pages back."""
    with mm.Heap("64MiB", collector="manual", target=1.02) as made:
        made._slide(always)
        monkeypatch.setattr(cgroups, "least_left", lambda: 0 if full else None)
        yield made
        full.clear()


full: list[bool] = []


def collected(heap: mm.Heap, always: bool) -> int:
    """Collect, in a memory cgroup that allows no page more. Returns: how many objects slid."""
    before = heap._slide(always)
    full.append(True)
    heap.collect()
    full.clear()
    heap._look()
    heap.verify()
    return heap._slide(always) - before


def numbered(heap: mm.Heap, count: int, nrefs: int, nbytes: int = 8) -> list[mm.Ref]:
    refs = []
    for at in range(count):
        ref = heap.new(nbytes, nrefs)
        with ref.writable() as array:
            array[:8].view("<i8")[0] = at
        refs.append(ref)
    return refs


def number_of(ref: Any) -> int:
    return int.from_bytes(bytes(ref)[:8], "little")


def test_old_references_find_what_slid_and_new_ones_lead_to_where_it_is(heap: mm.Heap, always: bool) -> None:
    """Where one object was another is now: both are right, by their colour."""
    refs = numbered(heap, 6000, 2)
    held = heap.new(0, 6000)
    for at, ref in enumerate(refs):
        held[at] = ref if at % 3 else None
        ref[0] = refs[at - 3] if at % 3 and at > 3 else None
    weak = [heap.weak(ref) for ref in refs]
    del refs, ref
    assert collected(heap, always) > (3000 if always else 50)
    for at in range(1, 6000, 2):  # new references, of the good colour, beside old ones that nobody loaded
        if at % 3:
            found = held[at]
            held[at] = found
            weak[at] = heap.weak(found) if found is not None else weak[at]
    heap.verify()
    for _ in range(2):
        for at in range(6000):
            found, by_weak = held[at], weak[at]()
            assert found == by_weak
            assert (found is None) == (at % 3 == 0)
            if found is not None:
                assert number_of(found) == at
                before = found[0]
                assert before is None or number_of(before) == at - 3
        del found, by_weak, before
        collected(heap, always)


def test_memory_goes_back_without_any_being_asked_for(heap: mm.Heap, always: bool) -> None:
    rng = random.Random(1)
    kept = {at: heap.put(at.to_bytes(2, "little") * 150) for at in range(20_000)}
    blocks = heap.stats().live // BLOCK + 1
    for at in rng.sample(sorted(kept), 17_000):
        del kept[at]
    assert collected(heap, always) > 1000 or not always
    stats = heap.stats()
    in_part = blocks * PAGE * 3 // 4  # of what every block holds the last page
    assert stats.committed <= max(1.1 * stats.live, stats.live + in_part)
    assert all(bytes(ref) == at.to_bytes(2, "little") * 150 for at, ref in kept.items())


def test_values_of_containers_slide_too(heap: mm.Heap, always: bool) -> None:
    cache = heap.map()
    for at in range(20_000):
        cache[at] = at.to_bytes(2, "little") * 100
    blocks = heap.stats().live // BLOCK + 1
    full.append(True)
    heap._look()
    for at in range(20_000):
        if at % 16:
            del cache[at]
    assert collected(heap, always) > 0 or heap._slide(always) > 50
    assert heap.stats().committed < max(4 * heap.stats().live, heap.stats().live + blocks * PAGE)
    assert all(cache[at] == at.to_bytes(2, "little") * 100 for at in cache)


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_a_view_taken_on_the_way(heap: mm.Heap, always: bool, steps: int) -> None:
    """A block that is about to slide does so at once, and what is pinned stays where it was put."""
    refs = numbered(heap, 2000, 0, 400)
    kept = refs[::3]
    del refs
    while heap.step(0) and phase_of(heap) != "move":
        pass
    full.append(True)
    heap._look()
    for _ in range(steps):
        heap.step(0)
    views = [(memoryview(ref), at) for at, ref in enumerate(kept) if at % 100 == 7]
    where = [ref.array.ctypes.data for ref in kept[7::100]]
    heap.verify()
    while heap.step(0):
        heap.verify()
    collected(heap, always)
    assert [ref.array.ctypes.data for ref in kept[7::100]] == where
    for view, at in views:
        assert int.from_bytes(view[:8], "little") == 3 * at
        view.release()
    assert [number_of(ref) for ref in kept] == list(range(0, 2000, 3))


def test_records_slide(heap: mm.Heap, always: bool) -> None:
    node: Any = heap.record("Node", key="i8", after=mm.Ref)
    heap.roots["first"] = last = node(0)
    for key in range(1, PAGE):  # some of them in blocks that have no pages left over
        after = node(key)
        if key % 4 == 0:
            last.after = after
            last = after
    del last, after
    assert collected(heap, always) > (500 if always else 50)
    here, keys = heap.roots["first"], []
    while here is not None:
        keys.append(here.key)
        here = here.after
    assert keys == list(range(0, PAGE, 4))
