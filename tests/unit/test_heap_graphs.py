"""Graphs in the heap: deep, wide, cyclic, mutated while they are collected."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

import mirrormap as mm
from heap_modes import MODES, TRIED
from support import scaled


@pytest.fixture(params=TRIED)
def mode(request: pytest.FixtureRequest) -> dict[str, Any]:
    return MODES[request.param]


@pytest.fixture(params=["manual", "incremental", "background"])
def heap(request: pytest.FixtureRequest, mode: dict[str, Any]) -> Iterator[mm.Heap]:
    with mm.Heap("256MiB", collector=request.param, **mode) as made:
        yield made


def numbered(heap: mm.Heap, number: int, nrefs: int) -> mm.Ref:
    ref = heap.new(8 + number % 500, nrefs)
    with ref.writable() as array:
        array[:8].view("<i8")[0] = number
    return ref


def number_of(ref: mm.Ref) -> int:
    return int.from_bytes(bytes(ref)[:8], "little")


def plant(heap: mm.Heap, depth: int) -> mm.Ref:
    ref = heap.new(8, 2)
    if depth:
        ref[0], ref[1] = plant(heap, depth - 1), plant(heap, depth - 1)
    return ref


def test_trees_that_live_and_trees_that_die(heap: mm.Heap) -> None:
    """GCBench's shape: one tree stays, others come and go."""
    lasting = plant(heap, 12)
    for _ in range(6):
        plant(heap, 11)
        heap.collect()
        assert heap.verify().objects == 2**13 - 1
    left = lasting[0]
    lasting[0] = None
    del left
    heap.collect()
    assert heap.verify().objects == 2**12
    assert heap.stats().committed <= 1.1 * heap.stats().live + (1 << 18)


def test_a_long_list_needs_no_deep_stack(heap: mm.Heap) -> None:
    first = node = heap.new(0, 1)
    count = scaled(300_000, 50_000)  # far more than a stack has frames
    for _ in range(count):
        after = heap.new(0, 1)
        node[0] = after
        node = after
    del node, after
    heap.collect()
    assert heap.verify().objects == count + 1
    assert heap.stats().marked >= count + 1
    del first
    heap.collect()
    assert heap.verify().objects == 0


def test_one_object_with_very_many_references(heap: mm.Heap) -> None:
    wide = heap.new(0, 200_000)
    for at in range(0, 200_000, 2):
        wide[at] = heap.put(at.to_bytes(4, "little"))
        heap.put(bytes(40))
    for _ in range(2):
        heap.collect()
        heap.verify()
    for at in range(0, 200_000, 2222):
        found = wide[at]
        assert found is not None
        assert bytes(found) == at.to_bytes(4, "little")
    assert wide[1] is None


@pytest.mark.parametrize("seed", range(3))
def test_a_graph_that_is_mutated_at_random(heap: mm.Heap, seed: int) -> None:
    rng = random.Random(seed)
    count, degree = 4000, 3
    nodes: dict[int, mm.Ref] = {at: numbered(heap, at, degree) for at in range(count)}
    edges = {at: [-1] * degree for at in range(count)}
    heap.roots["first"] = nodes[0]
    pinned = {at: nodes[at].array for at in rng.sample(range(count), 2)}
    weak = {at: heap.weak(ref) for at, ref in nodes.items()}
    for _ in range(8):
        held = list(nodes)
        for _ in range(2 * count):
            source, slot, other = rng.choice(held), rng.randrange(degree), rng.choice([None, *held[:1]])
            other = rng.choice(held) if rng.random() < 0.8 else other
            nodes[source][slot] = None if other is None else nodes[other]
            edges[source][slot] = -1 if other is None else other
        for at in rng.sample(sorted(nodes), len(nodes) // 3):
            del nodes[at]
        alive: set[int] = set()
        todo = [0, *nodes, *pinned]
        while todo:
            at = todo.pop()
            if at not in alive:
                alive.add(at)
                todo += [other for other in edges[at] if other >= 0]
        heap.collect()
        assert heap.verify().objects == len(alive)
        assert {at for at, reference in weak.items() if reference() is not None} == alive
        for at, array in pinned.items():
            assert array[:8].view("<i8")[0] == at
        for at in alive:
            ref = weak[at]()
            assert ref is not None
            assert number_of(ref) == at
            for slot in range(degree):
                found = ref[slot]
                assert (-1 if found is None else number_of(found)) == edges[at][slot]
        del ref, found
    assert heap.stats().moved > 100
    pinned.clear()
    del array
