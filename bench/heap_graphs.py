"""Graphs that mutate, in the heap as records and as Python objects with slots: who builds and drops them faster, in what memory.

GCBench (Ellis, Kovac and Boehm): a long-lived tree and an array stay while trees of growing depth are planted from their roots down and
from their leaves up, and dropped. binary-trees (the Computer Language Benchmarks Game): many short-lived trees beside one that lives. A
cyclic graph: each round takes a node at random, gives it other neighbours, and puts a new node in the place of another. Each engine runs in a process of
its own, in turns; memory is what /proc/self/smaps_rollup adds, each page counted once, at its most.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from children import one
from heap import MIB, Stops, real_nbytes

import mirrormap as mm

RESULTS = Path(__file__).parent / "results"


class Node:
    __slots__ = ("key", "left", "right")

    def __init__(self, key: int = 0, left: Node | None = None, right: Node | None = None) -> None:
        self.key, self.left, self.right = key, left, right


class Most:
    """The most memory that was seen."""

    def __init__(self) -> None:
        gc.collect()
        self.before, self.nbytes = real_nbytes(), 0

    def look(self) -> None:
        self.nbytes = max(self.nbytes, real_nbytes() - self.before)


def from_leaves(node: Any, depth: int) -> Any:
    if depth == 0:
        return node(0)
    return node(depth, from_leaves(node, depth - 1), from_leaves(node, depth - 1))


def from_root(node: Any, top: Any, depth: int) -> None:
    if depth:
        top.left, top.right = node(depth), node(depth)
        from_root(node, top.left, depth - 1)
        from_root(node, top.right, depth - 1)


def count(top: Any) -> int:
    return 1 if top.left is None else 1 + count(top.left) + count(top.right)


def gcbench(node: Any, depth: int, most: Most) -> int:
    """Nodes made."""
    lasting, made = node(0), 2 ** (depth + 1)
    from_root(node, lasting, depth)
    numbers = [1 / (at + 1) for at in range(2**depth)]
    for small in range(4, depth + 1, 2):
        for _ in range(2 ** (depth - small + 2)):
            top = node(0)
            from_root(node, top, small)
            from_leaves(node, small)
            made += 2 * (2 ** (small + 1) - 1)
        most.look()
    assert count(lasting) == 2 ** (depth + 1) - 1
    assert len(numbers) == 2**depth
    return made


def binary_trees(node: Any, depth: int, most: Most) -> int:
    made = 2 ** (depth + 2)
    assert count(from_leaves(node, depth + 1)) == 2 ** (depth + 2) - 1
    lasting = from_leaves(node, depth)
    for small in range(4, depth + 1, 4):
        trees = 2 ** (depth - small + 4)
        total = sum(count(from_leaves(node, small)) for _ in range(trees))
        assert total == trees * (2 ** (small + 1) - 1)
        made += total
        most.look()
    assert count(lasting) == 2 ** (depth + 1) - 1
    return made


def cyclic(node: Any, depth: int, most: Most) -> int:
    rng, size = random.Random(1), 2**depth  # noqa: S311
    nodes = [node(at) for at in range(size)]
    for rounds in range(8 * size):
        one, other = rng.randrange(size), rng.randrange(size)
        nodes[one].left, nodes[one].right = nodes[other], nodes[rng.randrange(size)]
        nodes[other] = node(other)  # the one before lives as long as another leads to it
        if rounds % size == 0:
            most.look()
    assert all(nodes[at].key == at for at in range(size))
    return 9 * size


WORK: dict[str, tuple[Callable[[Any, int, Most], int], int]] = {
    "GCBench": (gcbench, 16),
    "binary-trees": (binary_trees, 15),
    "cyclic graph": (cyclic, 16),
}


def measured(what: str, name: str, depth: int) -> dict[str, float]:
    heap = None if name == "objects" else mm.Heap("2GiB", collector=name)  # type: ignore[arg-type]
    node: Any = Node
    if heap is not None:
        node = heap.record("Node", key="i8", left=mm.Ref, right=mm.Ref)
    most, stops = Most(), Stops(heap)
    start, processor = time.perf_counter(), time.process_time()
    made = WORK[what][0](node, depth, most)
    took, used = time.perf_counter() - start, time.process_time() - processor
    if heap is not None:
        heap.collect()
        heap.verify()
    return {
        "million nodes": made / 1e6,
        "s": took,
        "s of processor": used,
        "most held, MiB": most.nbytes / MIB,
        "longest stop, us": stops.told()["longest stop, us"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--less", type=int, default=0, help="so much shallower")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        what, name, depth = options.one
        print(json.dumps(measured(what, name, int(depth))))
        return
    from rich.console import Console
    from rich.table import Table

    told: dict[str, dict[str, list[dict[str, float]]]] = {}
    names = ("background", "incremental", "objects")
    for _ in range(options.rounds):
        for what, (_, depth) in WORK.items():
            for name in names:
                found = one(__file__, what, name, str(depth - options.less))
                told.setdefault(what, {}).setdefault(name, []).append(found)
    for what, engines in told.items():
        table = Table("", "records, background", "records, incremental", "objects with slots", title=what)
        for field in next(iter(engines.values()))[0]:
            cells = [statistics.median(each[field] for each in found) for found in engines.values()]
            table.add_row(field, *(f"{cell:.2f}" for cell in cells))
        Console(width=100).print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "heap_graphs.json").write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
