"""Records, frozen images and growing arrays of a heap, against objects with slots and NumPy.

Each engine runs in a process of its own, in turns. Memory is what /proc/self/smaps_rollup says, each page counted
once (Pss), or what a reader has of its own (Private_Dirty). Numbers of the issue are in the rows.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from children import one

import mirrormap as mm
from mirrormap import kernel

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20
GROWN = 2 * MIB


def rollup(field: str, maps: str = "smaps_rollup", address: int | None = None) -> int:
    """Bytes of one field, of the whole process or of the mapping at an address."""
    inside = address is None
    for line in Path(f"/proc/self/{maps}").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            low, high = (int(each, 16) for each in words[0].split("-"))
            inside = address is None or low <= address < high
        elif inside and words[0] == f"{field}:":
            return int(words[1]) << 10
    raise RuntimeError(f"no {field} in {maps}")


class Node:
    __slots__ = ("key", "left", "right")

    def __init__(self, key: int, left: Node | None = None, right: Node | None = None) -> None:
        self.key, self.left, self.right = key, left, right


def plant(node: Any, depth: int) -> Any:
    if depth:
        return node(depth, plant(node, depth - 1), plant(node, depth - 1))
    return node(0)


def maker(name: str) -> tuple[Any, mm.Heap | None]:
    if name == "slots":
        return Node, None
    heap = mm.Heap("4GiB")
    return heap.record("Node", key="i8", left=mm.Ref, right=mm.Ref), heap


def tree(name: str, count: int) -> dict[str, float]:
    """A full binary tree of about `count` nodes, and a collection that finds no garbage."""
    depth = count.bit_length() - 1
    count = 2 ** (depth + 1) - 1
    node, heap = maker(name)
    gc.collect()
    before = rollup("Pss")
    start, processor = time.perf_counter(), time.process_time()
    top = plant(node, depth)
    built, used = time.perf_counter() - start, time.process_time() - processor
    held = rollup("Pss") - before
    pages = heap.stats().committed / count if heap is not None else 0.0
    start = time.process_time()
    if heap is None:
        gc.collect()
    else:
        heap.collect()
        assert heap.verify().objects == count
    del top
    return {
        "million nodes": count / 1e6,
        "bytes a node, process": held / count,
        "bytes a node, pages of the heap": pages,
        "build, s": built,
        "build, s of processor": used,
    }


def walk(top: Any) -> int:
    total, queue = 0, [top]
    while queue:
        here = queue.pop()
        total += here.key
        if here.left is not None:
            queue += [here.left, here.right]
    return total


def reader(shared: Any, address: int | None, answers: Any) -> None:
    before = rollup("Private_Dirty")
    if isinstance(shared, mm.Frozen):
        address = shared._mapping._live.address
        walk(shared.roots["top"])
        own = rollup("Private_Dirty", "smaps", address)
    else:
        walk(shared)
        own = 0
    answers.put((own, rollup("Private_Dirty") - before))


def read(name: str, count: int) -> dict[str, float]:
    """What a reader of all of a graph makes its own: of the image, and of the whole process."""
    depth = count.bit_length() - 1
    node, heap = maker(name)
    gc.collect()
    before = rollup("Pss")
    top = plant(node, depth)
    graph = rollup("Pss") - before
    found: dict[str, float] = {}
    shared: Any = top
    if heap is not None:
        heap.roots["top"] = top
        start = time.perf_counter()
        shared = heap.freeze()
        found["freeze, s"] = time.perf_counter() - start
        graph = shared.nbytes
        walk(shared.roots["top"])
    gc.collect()
    for method in ("fork", "spawn"):
        if heap is None and method == "spawn":
            continue  # objects cannot be handed over without a copy of all of them
        context = multiprocessing.get_context(method)
        answers = context.SimpleQueue()
        process = context.Process(target=reader, args=(shared, None, answers))
        process.start()
        own, all_own = answers.get()
        process.join()
        found[f"{method}: % of the graph privatised"] = 100 * (all_own if heap is None else own) / graph
        found[f"{method}: MiB of the reader's own, all"] = all_own / MIB
    return found


def grow(name: str, rounds: int) -> dict[str, float]:
    """One element more at the end of what is shown, under a live view; and one more where there is room."""
    grown: list[float] = []
    plain: list[float] = []
    commits: list[float] = []
    if name == "numpy":
        for _ in range(rounds):
            array = np.ones(GROWN // 8)
            start = time.perf_counter_ns()
            array = np.append(array, 1.0)  # resize() refuses: a view lives
            grown.append(time.perf_counter_ns() - start)
        return {"2 MiB and one element more, us": statistics.median(grown) / 1e3}
    with mm.Heap("64MiB") as heap:
        for _ in range(rounds):
            array = heap.array("f8")
            array.extend(np.ones(GROWN // 8 - 2))
            view = array.array
            times = []
            for _ in range(6):  # the third has no memory yet
                before = array._rows.allocated
                start = time.perf_counter_ns()
                array.append(1.0)
                times.append(time.perf_counter_ns() - start)
                if len(times) == 3:
                    assert array._rows.allocated > before
            assert view.ctypes.data == array.array.ctypes.data
            grown.append(times[2])
            plain.append(statistics.median(times[3:]))
            with mm.Pages(4 * MIB) as pages:
                start = time.perf_counter_ns()
                kernel.allocate(pages.fileno(), GROWN, 64 << 10)
                commits.append(time.perf_counter_ns() - start)
            del view, array
    return {
        "2 MiB and one element more, us": statistics.median(grown) / 1e3,
        "one element where there is room, us": statistics.median(plain) / 1e3,
        "committing 64 KiB, us": statistics.median(commits) / 1e3,
        "growing besides, us": (
            statistics.median(grown) - statistics.median(commits) - statistics.median(plain)
        )
        / 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=10_000_000)
    parser.add_argument("--read", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    what = {"tree": tree, "read": read, "grow": grow}
    if options.one:
        kind, name, number = options.one
        print(json.dumps(what[kind](name, int(number))))
        return
    from rich.console import Console
    from rich.table import Table

    work = {
        f"#7: a tree of {options.nodes:,} nodes": ("tree", options.nodes, ["records", "slots"]),
        f"#9: readers of a graph of {options.read:,} nodes": ("read", options.read, ["records", "slots"]),
        "#11: growing 2 MiB under a live view": ("grow", 200, ["array", "numpy"]),
    }
    os.environ["PYTHONHASHSEED"] = "0"  # of those that measure
    told: dict[str, Any] = {}
    for _ in range(options.rounds):
        for row, (kind, number, names) in work.items():
            for name in names:
                told.setdefault(row, {}).setdefault(name, []).append(one(__file__, kind, name, str(number)))
    for row, engines in told.items():
        table = Table("", *engines, title=row)
        fields = dict.fromkeys(field for found in engines.values() for each in found for field in each)
        for field in fields:
            cells = [[each[field] for each in found if field in each] for found in engines.values()]
            table.add_row(field, *(f"{statistics.median(cell):.2f}" if cell else "" for cell in cells))
        Console(width=110).print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "heap_objects.json").write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
