"""A collection in steps, and whatever a program may do between two of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mirrormap as mm
from support import address_of, phase_of

PHASES = ["roots", "trace", "weak", "sweep", "choose", "move", "values", "punch", "mesh", "drain"]


@pytest.fixture
def heap() -> Iterator[mm.Heap]:
    with mm.Heap("64MiB", collector="manual") as made:
        yield made


def go_to(heap: mm.Heap, phase: str) -> bool:
    """Step on until the collection is in a phase; False: it came to its end instead."""
    while phase_of(heap) != phase:
        if not heap.step(0):
            return False
    return True


def scattered(heap: mm.Heap, count: int, keep: int) -> list[tuple[mm.Ref, bytes]]:
    """Every `keep`th of many small objects, so that there is something to move."""
    made = [(heap.put(data), data) for data in (at.to_bytes(4, "little") * 200 for at in range(count))]
    return made[::keep]


def finish(heap: mm.Heap) -> None:
    while heap.step(0):
        pass


def test_each_phase_is_passed_and_the_heap_is_whole_after_every_step(heap: mm.Heap) -> None:
    kept = scattered(heap, 3000, 8)
    weak = [heap.weak(ref) for ref, _ in kept]
    node = heap.new(0, len(kept))
    for at, (ref, _) in enumerate(kept):
        node[at] = ref
    values = heap.map()
    for at in range(500):
        values[at] = bytes(900)
    seen: list[str] = []
    at = 0
    while heap.step(0):
        phase = phase_of(heap)
        if not seen or seen[-1] != phase or at % 16 == 0:
            heap.verify()
        if not seen or seen[-1] != phase:
            seen.append(phase)
        at += 1
    assert [phase for phase in PHASES if phase in seen] == seen
    assert {"roots", "trace", "weak", "sweep", "choose", "move", "punch"} <= set(seen)
    assert phase_of(heap) == "idle"
    assert heap.stats().collections == 1
    assert heap.stats().moved >= len(kept) // 2
    heap.verify()
    for (ref, data), reference in zip(kept, weak, strict=True):
        assert bytes(ref) == data
        assert reference() == ref
    steps = heap.stats().pauses["step"]
    assert steps.steps >= at
    assert steps.p50_ns <= steps.p99_ns <= steps.p999_ns <= steps.longest_ns


def test_a_step_without_reason_does_nothing(heap: mm.Heap) -> None:
    assert not heap.step(100)
    ref = heap.put(b"kept")
    assert not heap.step(100), "nothing has lost a Ref"
    assert heap.stats().collections == 0
    del ref
    while heap.step(100):
        pass
    assert heap.stats().collections == 1
    assert heap.stats().live == 0
    assert not heap.step(0)
    for us in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="step of"):
            heap.step(us)


def test_collect_begins_after_the_call(heap: mm.Heap) -> None:
    """What dies while a collection is under way is dead for the next `collect()`, which finishes that first."""
    for phase in PHASES[:7]:
        kept = scattered(heap, 2000, 8)
        assert go_to(heap, phase)
        kept.clear()
        before = heap.stats().collections
        heap.collect()
        assert heap.stats().collections == before + 2, phase
        assert heap.verify().objects == 0
        assert heap.stats().live == 0
        assert heap.stats().committed == 0


def chain(heap: mm.Heap, count: int) -> mm.Ref:
    first = node = heap.new(8, 1)
    for _ in range(count):
        after = heap.new(8, 1)
        node[0] = after
        node = after
    return first


def last_of(ref: mm.Ref) -> mm.Ref:
    while (after := ref[0]) is not None:
        ref = after
    return ref


def test_a_reference_carried_past_the_marking_is_not_lost(heap: mm.Heap) -> None:
    """The object is taken out of what is still to be looked at, and put into what has been."""
    for count in (1, 2, 50, 500):
        done = heap.new(0, 1)
        first = chain(heap, 1000)
        heap.roots["done"], heap.roots["first"] = done, first
        del first
        heap.put(b"reason")
        assert go_to(heap, "trace")
        for _ in range(count):
            heap.step(0)
        carrier = heap.roots["first"]
        for _ in range(500):
            following = carrier[0]
            assert following is not None
            carrier = following
        rest = carrier[0]
        carrier[0] = None
        done[0] = rest
        del rest, carrier, following
        finish(heap)
        heap.verify()
        beyond = done[0]
        assert beyond is not None
        last_of(beyond)
        assert heap.verify().objects == 1002
        del beyond, done
        heap.roots.clear()
        heap.collect()
        assert heap.verify().objects == 0


@pytest.mark.parametrize("phase", ["roots", "trace", "weak", "sweep"])
def test_what_is_made_while_marking_lives(heap: mm.Heap, phase: str) -> None:
    kept = scattered(heap, 2000, 3)
    assert go_to(heap, phase)
    made = scattered(heap, 2000, 1)
    large = heap.put(bytes(100_000))
    node = heap.new(0, 1)
    node[0] = heap.put(b"held by a slot only")
    finish(heap)
    assert heap.verify().objects == len(kept) + len(made) + 3
    for ref, data in kept + made:
        assert bytes(ref) == data
    inner = node[0]
    assert inner is not None
    assert bytes(inner) == b"held by a slot only"
    assert large.nbytes == 100_000
    del made, large, node, inner, ref
    heap.collect()
    assert heap.verify().objects == len(kept)


def test_a_ref_moved_into_a_slot_while_roots_are_read(heap: mm.Heap) -> None:
    """Its root is gone before the marking comes to it, and the slot belongs to what was marked already."""
    node = heap.new(0, 200)
    refs = [heap.put(at.to_bytes(2, "little")) for at in range(200)]
    heap.put(b"reason")
    assert go_to(heap, "roots")
    for _ in range(3):
        heap.step(0)
    for at in reversed(range(200)):
        node[at] = refs.pop()
        if at % 5 == 0:
            heap.step(0)
    finish(heap)
    for at in range(200):
        found = node[at]
        assert found is not None
        assert bytes(found) == at.to_bytes(2, "little")
    del found
    assert heap.verify().objects == 201


@pytest.mark.parametrize("phase", ["roots", "trace", "weak"])
def test_weak_references_while_marking(heap: mm.Heap, phase: str) -> None:
    """In the marking a weak reference may save an object; from its end on it must not be had back."""
    weak = [heap.weak(heap.put(at.to_bytes(2, "little"))) for at in range(300)]
    kept = heap.put(b"kept")
    assert go_to(heap, phase)
    got = [reference() for reference in weak]
    assert [ref is None for ref in got] == [phase == "weak"] * 300
    finish(heap)
    heap.verify()
    for at, (ref, reference) in enumerate(zip(got, weak, strict=True)):
        assert reference() == ref
        assert ref is None or bytes(ref) == at.to_bytes(2, "little")
    assert bytes(kept) == b"kept"


def pinning(heap: mm.Heap, kept: list[tuple[mm.Ref, bytes]]) -> None:
    views = [(memoryview(ref), data) for ref, data in kept[::50]]
    where = [address_of(view) for view, _ in views]
    finish(heap)
    heap.verify()
    assert [address_of(view) for view, _ in views] == where
    assert all(view == data for view, data in views)
    heap.collect()
    assert [address_of(view) for view, _ in views] == where
    for view, _ in views:
        view.release()


def storing(heap: mm.Heap, kept: list[tuple[mm.Ref, bytes]]) -> None:
    node = heap.new(0, len(kept))
    for at, (ref, _) in enumerate(kept):
        node[at] = ref
        if at % 3 == 0:
            heap.step(0)
        assert node[at] == ref
    heap.verify()
    finish(heap)
    heap.verify()
    for at, (ref, data) in enumerate(kept):
        found = node[at]
        assert found == ref
        assert bytes(ref) == data


def collecting(heap: mm.Heap, kept: list[tuple[mm.Ref, bytes]]) -> None:
    heap.collect()
    assert heap.verify().objects == len(kept)


@pytest.mark.parametrize("act", [pinning, storing, collecting])
@pytest.mark.parametrize("phase", ["choose", "move"])
@pytest.mark.parametrize("steps", [1, 30, 400])
def test_blocks_on_their_way_out(heap: mm.Heap, act: Callable[..., Any], phase: str, steps: int) -> None:
    kept = scattered(heap, 4000, 8)
    assert go_to(heap, phase)
    for _ in range(steps):
        heap.step(0)
    heap.verify()
    act(heap, kept)
    for ref, data in kept:
        assert bytes(ref) == data
    heap.collect()
    stats = heap.stats()
    assert stats.committed <= 1.1 * stats.live + (1 << 18) + (1 << 16)


def test_an_object_of_very_many_references_is_looked_at_in_pieces(heap: mm.Heap) -> None:
    """It is overwritten behind and before where the marking stands."""
    wide = heap.new(0, 20_000)
    for at in range(20_000):
        wide[at] = heap.put(at.to_bytes(4, "little"))
    assert go_to(heap, "trace")
    rng = random.Random(1)
    order = list(range(20_000))
    count = 0
    while phase_of(heap) == "trace":
        heap.step(0)
        first, second = rng.randrange(20_000), rng.randrange(20_000)
        wide[first], wide[second] = wide[second], wide[first]
        order[first], order[second] = order[second], order[first]
        count += 1
    assert count > 20_000 // 256, "not in one go"
    finish(heap)
    heap.verify()
    for at in range(0, 20_000, 7):
        found = wide[at]
        assert found is not None
        assert bytes(found) == order[at].to_bytes(4, "little")


def test_a_large_value_goes_in_slices(heap: mm.Heap) -> None:
    with mm.Heap("64MiB", collector="incremental") as paced:
        values = paced.map()
        values["large"] = bytes(16 << 20)
        del values["large"]
        held = [paced.stats().committed]
        while paced.step(0):
            held.append(paced.stats().committed)
            paced.verify()
        assert len(set(held)) > 8
        assert paced.stats().committed == 0
        values["large"] = bytes(40 << 20)
        del values["large"]
        values["large"] = bytes(40 << 20)  # there is no room for both


@pytest.mark.parametrize("collector", ["manual", "incremental", "background"])
@pytest.mark.parametrize("stress", [1, 3000])
def test_stress(collector: Any, stress: int) -> None:
    with mm.Heap("16MiB", collector=collector, stress=stress) as heap:
        rng = random.Random(stress)
        kept: dict[int, tuple[mm.Ref, bytes]] = {}
        node = heap.new(0, 50)
        for at in range(1500):
            data = rng.randbytes(rng.randrange(600))
            kept[rng.randrange(300)] = (heap.put(data), data)
            index = rng.randrange(50)
            node[index] = None if at % 3 else next(iter(kept.values()))[0]
            if at % 50 == 0:
                heap.verify()
        for ref, data in kept.values():
            assert bytes(ref) == data
        stats = heap.stats()
        assert stats.collections > 1500 * 300 // 3000 // 2 or collector != "manual"
        assert stats.pauses["allocation"].steps > 100
        if stress == 1:
            assert stats.collections >= 1
        del ref
        kept.clear()
        heap.verify()
