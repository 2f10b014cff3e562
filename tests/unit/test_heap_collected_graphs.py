"""The graphs that collectors are measured with, small: GCBench, binary trees, a cyclic graph; the heap is verified after every phase."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

import mirrormap as mm
from support import phase_of


@pytest.fixture(params=["evacuated", "in place"])
def in_place(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "in place")


@pytest.fixture(
    params=[("manual", 0), ("incremental", 700), ("background", 700), ("manual", 100_000)], ids=str
)
def heap(request: pytest.FixtureRequest, in_place: bool) -> Iterator[mm.Heap]:
    collector, stress = request.param
    with mm.Heap("64MiB", collector=collector, stress=stress, target=1.02) as made:
        made._slide(in_place)
        yield made


def through_the_phases(heap: mm.Heap) -> None:
    """A collection, or what is left of one, with a look at everything whenever a phase is over; and another one."""
    heap.put(b"")  # there is a reason to begin
    seen = set()
    while heap.step(0):
        phase = phase_of(heap)
        if phase not in seen:
            heap.verify()
        seen.add(phase)
    assert "sweep" in seen or heap.stats().pauses.keys() & {"background", "allocation"}
    heap.collect()
    heap.verify()


def declared(heap: mm.Heap) -> Any:
    return heap.record("Node", key="i8", left=mm.Ref, right=mm.Ref)


def from_leaves(node: Any, depth: int) -> Any:
    return node(depth, from_leaves(node, depth - 1), from_leaves(node, depth - 1)) if depth else node(0)


def from_root(node: Any, top: Any, depth: int) -> None:
    if depth:
        top.left, top.right = node(depth - 1), node(depth - 1)
        from_root(node, top.left, depth - 1)
        from_root(node, top.right, depth - 1)


def check_tree(top: Any, depth: int) -> int:
    """Nodes of a full tree whose keys are their heights."""
    assert top.key == depth
    if not depth:
        assert top.left is None
        return 1
    return 1 + check_tree(top.left, depth - 1) + check_tree(top.right, depth - 1)


def test_gcbench(heap: mm.Heap) -> None:
    """A tree and an array stay; others are planted from their roots and from their leaves, and die."""
    node = declared(heap)
    lasting = node(10)
    from_root(node, lasting, 10)
    kept = []
    array = heap.array("f8")
    array.extend([1 / (at + 1) for at in range(2000)])
    for depth in (4, 6, 8):
        for _ in range(2 ** (12 - depth)):
            top = node(depth)
            from_root(node, top, depth)
            kept.append(from_leaves(node, 2))
            assert check_tree(top, depth) == check_tree(from_leaves(node, depth), depth)
        del top
        through_the_phases(heap)
        assert heap.verify().objects == check_tree(lasting, 10) + sum(check_tree(tree, 2) for tree in kept)
    assert heap.stats().moved > 1000
    assert array[1999] == 1 / 2000


def test_binary_trees(heap: mm.Heap) -> None:
    node = declared(heap)
    assert check_tree(from_leaves(node, 11), 11) == 4095
    heap.roots["lasting"] = from_leaves(node, 10)
    for depth in (4, 6, 8, 10):
        for _ in range(2 ** (12 - depth)):
            assert check_tree(from_leaves(node, depth), depth) == 2 ** (depth + 1) - 1
        through_the_phases(heap)
        assert heap.verify().objects == 2047
    assert check_tree(heap.roots["lasting"], 10) == 2047
    assert heap.stats().collections >= 8


@pytest.mark.parametrize("seed", range(2))
def test_a_cyclic_graph_of_records_is_mutated_at_random(heap: mm.Heap, seed: int) -> None:
    """A node that was replaced lives as long as another leads to it, as objects of Python's do."""

    class Plain:
        def __init__(self, key: int) -> None:
            self.key, self.left, self.right = key, self, self

    rng, node = random.Random(seed), declared(heap)
    ours: list[Any] = [node(at) for at in range(3000)]
    plain = [Plain(at) for at in range(3000)]
    for one in ours:
        one.left = one.right = one
    for round_ in range(4):
        for _ in range(4000):
            one, left, right, new = (rng.randrange(3000) for _ in range(4))
            for nodes in (ours, plain):
                nodes[one].left, nodes[one].right = nodes[left], nodes[right]
            key = 10_000 * round_ + new
            ours[new], plain[new] = node(key), Plain(key)
            ours[new].left = ours[new].right = ours[one]
            plain[new].left = plain[new].right = plain[one]
        through_the_phases(heap)
        same, queue = (
            {id(other): one for one, other in zip(ours, plain, strict=True)},
            list(zip(ours, plain, strict=True)),
        )
        while queue:
            found, meant = queue.pop()
            assert found.key == meant.key
            for name in ("left", "right"):
                there, expected = getattr(found, name), getattr(meant, name)
                if id(expected) in same:
                    assert same[id(expected)] == there
                else:
                    same[id(expected)] = there
                    queue.append((there, expected))
        assert heap.verify().objects == len(same)
        del found, there, same
    assert heap.stats().moved > 1000
