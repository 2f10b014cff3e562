"""Heap against CPython's dict of bytes: memory held through a cache's life, its operations, a tree.

Every engine runs in a process of its own, in turns; memory is what /proc/self/smaps_rollup adds to what the
process held before the cache was made, each page counted once (Pss). Numbers of the issue are in the rows.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import sys
import time
from array import array
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from children import memory, one

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20
HEADROOM = 3  # max_bytes, in live bytes
CHURN_S = 10
MOST_TIMED = 1 << 20


def real_nbytes() -> int:
    """Pages of this process, each once: private ones and its share of what others map too."""
    return memory("Pss")


class Bytes:
    """What a Python programmer does today: an OrderedDict of bytes, bounded by hand."""

    def __init__(self, limit: int) -> None:
        self.values: OrderedDict[int, bytes] = OrderedDict()
        self.limit, self.nbytes = limit, 0

    def put(self, key: int, data: memoryview) -> None:
        before = self.values.pop(key, None)
        if before is not None:
            self.nbytes -= len(before)
        self.values[key] = bytes(data)
        self.nbytes += len(data)
        while self.nbytes > self.limit:
            self.nbytes -= len(self.values.popitem(last=False)[1])

    def get(self, key: int) -> bytes | None:
        value = self.values.get(key)
        if value is not None:
            self.values.move_to_end(key)
        return value

    def drop(self, key: int) -> None:
        self.nbytes -= len(self.values.pop(key))

    def keys(self) -> list[int]:
        return list(self.values)

    def payload(self) -> float:
        """Nothing tells what malloc holds for values alone."""
        return math.nan

    def index(self) -> float:
        return float(sys.getsizeof(self.values) + sum(map(sys.getsizeof, self.values)))


class Ours:
    def __init__(self, limit: int, target: float) -> None:
        import mirrormap as mm

        self.heap = mm.Heap(HEADROOM * limit, target=target)
        self.cache = self.heap.lru(limit)
        self.get, self.put = self.cache.get, self.cache.__setitem__  # what a program would call

    @property
    def nbytes(self) -> int:
        return self.cache.nbytes

    def drop(self, key: int) -> None:
        del self.cache[key]

    def keys(self) -> list[int]:
        return list(self.cache)

    def payload(self) -> float:
        return float(self.heap.stats().committed)

    def index(self) -> float:
        return float(self.heap.stats().index_nbytes)


class BytesCopied(Bytes):
    """Whoever asks gets bytes of his own, as from our cache."""

    def get(self, key: int) -> bytes | None:
        value = super().get(key)
        return None if value is None else bytes(memoryview(value))


class Viewed(Ours):
    """Whoever asks gets a view, as a reference from a dict: nothing is copied."""

    def __init__(self, limit: int, target: float) -> None:
        super().__init__(limit, target)
        self.get = self.view

    def view(self, key: int) -> memoryview | None:
        try:
            return self.cache.view(key)
        except KeyError:
            return None


def engine(name: str, limit: int) -> Any:
    if name.startswith("bytes"):
        return BytesCopied(limit) if name == "bytes, copied" else Bytes(limit)
    target, _, how = name.partition(", ")
    return (Viewed if how == "view" else Ours)(limit, float(target))


def sizes(rng: random.Random, low: int, high: int) -> int:
    return int(math.exp(rng.uniform(math.log(low), math.log(high))))


def rates(taken: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Of NumPy's, whose copies leave nothing behind in CPython's arenas."""
    most = len(taken) * 99 // 100
    quick = np.partition(taken, most)[:most]
    return {
        "kops/s": len(taken) / taken.sum() / 1e3,
        "kops/s without the slowest 1 %": most / quick.sum() / 1e3,  # where others take the processor
        "p99.9, us": np.quantile(taken, 0.999) * 1e6,
    }


def operations(name: str, limit: int, low: int, high: int) -> dict[str, Any]:
    """The churn of `life` alone."""
    return life(name, limit, low, high, operations_only=True)


def life(name: str, limit: int, low: int, high: int, *, operations_only: bool = False) -> dict[str, Any]:
    """Fill, churn, shift to small, shift to large, shrink or thin; held bytes per live one after each."""
    source, rng = memoryview(bytes(range(256)) * (high // 256)), random.Random(1)  # noqa: S311
    __import__("mirrormap")
    times = array("d", bytes(8 * MOST_TIMED))  # what the benchmark itself needs is there before
    kept = times[:]
    timed = 0
    gc.collect()
    before = real_nbytes()
    cache = engine(name, limit)
    found: dict[str, Any] = {}

    def churn(low: int, high: int, volume: int) -> None:
        nonlocal timed
        span = int(limit / ((high - low) / math.log(high / low)) * 2)
        clock = time.perf_counter
        while volume > 0:
            key = rng.randrange(span)
            start = clock()
            got = cache.get(key)
            if got is None:
                nbytes = sizes(rng, low, high)
                start = clock()
                cache.put(key, source[:nbytes])
                volume -= nbytes
            times[timed % MOST_TIMED] = clock() - start
            timed += 1

    def note(phase: str) -> None:
        found[phase] = (real_nbytes() - before) / cache.nbytes
        found[f"{phase}, payload"] = cache.payload() / cache.nbytes
        found[f"{phase}, index"] = cache.index() / cache.nbytes

    churn(low, high, limit)
    timed = 0
    churn(low, high, limit)
    note("churn")
    memoryview(kept)[:] = memoryview(times)
    taken = np.frombuffer(kept)[: min(timed, MOST_TIMED)]
    if operations_only:
        return found | rates(taken)
    churn(low, max(low * 2, high // 16), limit)
    note("shift to small")
    churn(max(low, high // 4), high, limit)
    note("shift to large")
    churn(low, high, 2 * limit)
    note("back")
    target = cache.nbytes // 4
    oldest_first = cache.keys()  # an LRU whose limit was lowered
    for key in oldest_first:
        if cache.nbytes <= target:
            break
        cache.drop(key)
    del oldest_first, key
    time.sleep(0.25)
    note("shrink to 1/4")
    target = cache.nbytes // 4
    keys = cache.keys()
    rng.shuffle(keys)
    for key in keys:
        if cache.nbytes <= target:
            break
        cache.drop(key)
    del keys, key
    time.sleep(0.25)
    note("scattered 1/16")
    return found | rates(taken)  # not before: it leaves 8 MiB free in malloc's hands


class Node:
    __slots__ = ("key", "left", "right")

    def __init__(self, key: int) -> None:
        self.key = key
        self.left: Node | None = None
        self.right: Node | None = None


def plant(depth: int) -> Node:
    node = Node(depth)
    if depth:
        node.left, node.right = plant(depth - 1), plant(depth - 1)
    return node


def plant_in(heap: Any, depth: int) -> Any:
    ref = heap.new(8, 2)
    if depth:
        ref[0], ref[1] = plant_in(heap, depth - 1), plant_in(heap, depth - 1)
    return ref


class Stops:
    """The longest times for which somebody else's collector stopped this thread: CPython's, or the heap's steps."""

    def __init__(self, heap: Any) -> None:
        self.heap, self.longest, self.start = heap, 0.0, 0.0
        if heap is None:
            gc.callbacks.append(self.note)

    def note(self, phase: str, _info: dict[str, Any]) -> None:
        now = time.perf_counter()
        if phase == "start":
            self.start = now
        else:
            self.longest = max(self.longest, now - self.start)

    def told(self) -> dict[str, float]:
        if self.heap is None:
            return {"longest stop, us": self.longest * 1e6, "p99.9 of steps, us": math.nan, "steps": math.nan}
        pauses = self.heap.stats().pauses.values()
        return {
            "longest stop, us": max((each.longest_ns for each in pauses), default=0) / 1e3,
            "p99.9 of steps, us": max((each.p999_ns for each in pauses), default=0) / 1e3,
            "steps": sum(each.steps for each in pauses),
        }


def churn(name: str, count: int) -> dict[str, Any]:
    """A tree of about `count` nodes in which a subtree of 255, chosen at random, is planted anew each round."""
    import mirrormap as mm

    depth = count.bit_length() - 1
    heap = None if name == "bytes" else mm.Heap("4GiB", collector=name)
    gc.collect()
    before = real_nbytes()
    root: Any = plant(depth) if heap is None else plant_in(heap, depth)
    alive = real_nbytes() - before
    stops, rng, rounds, most = Stops(heap), random.Random(1), 0, 0  # noqa: S311
    start = time.perf_counter()
    while time.perf_counter() - start < CHURN_S:
        node, path = root, rng.getrandbits(depth)
        for _ in range(depth - 8):
            path, side = path >> 1, path & 1
            node = (node.right if side else node.left) if heap is None else node[side]
        if heap is None:
            node.left = plant(7)
        else:
            node[0] = plant_in(heap, 7)
        rounds += 1
        if rounds % 1000 == 0:
            most = max(most, real_nbytes() - before)
    took = time.perf_counter() - start
    return {
        "subtrees of 255 a second": rounds / took,
        "most held / held at first": most / alive,
        "collections": math.nan if heap is None else heap.stats().collections,
        **stops.told(),
    }


def tree(name: str, count: int) -> dict[str, Any]:
    """A full binary tree of about `count` nodes with 8 bytes of key, and a collection that finds no garbage."""
    import mirrormap as mm

    depth = count.bit_length() - 1
    count = 2 ** (depth + 1) - 1
    heap = None if name == "bytes" else mm.Heap("4GiB", collector=name)
    stops = Stops(heap)
    gc.collect()
    before = real_nbytes()
    start = time.perf_counter()
    made = plant(depth) if heap is None else plant_in(heap, depth)
    built = time.perf_counter() - start
    held = (real_nbytes() - before) / count
    building = 0 if heap is None else heap.stats().collections
    start = time.thread_time()
    if heap is None:
        gc.collect()
    else:
        heap.collect()
    took = time.thread_time() - start
    assert made is not None
    return {
        "nodes": count,
        "bytes a node": held,
        "build, s": built,
        "collections while building": math.nan if heap is None else building,
        "full collection, ms of CPU": took * 1e3,
        **stops.told(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=256, help="live bytes of the cache")
    parser.add_argument("--nodes", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="rows whose title has this in it")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        what, name, *numbers = options.one
        found = {"life": life, "operations": operations, "tree": tree, "churn": churn}[what](
            name, *map(int, numbers)
        )
        print(json.dumps(found))
        return
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    limit = options.mib * MIB
    work = {
        f"#1 #2 #5: {options.mib} MiB of 64 B to 64 KiB": (
            "life",
            [limit, 64, 65536],
            ["1.10", "1.05", "bytes"],
        ),
        "#5: the same, and what a hit costs that copies nothing, or a dict's that copies": (
            "operations",
            [limit, 64, 65536],
            ["1.10", "1.10, view", "bytes", "bytes, copied"],
        ),
        f"#3: {options.mib // 4} MiB of 64 B to 2 KiB": ("life", [limit // 4, 64, 2048], ["1.10", "bytes"]),
        f"#6 #7: a tree of {options.nodes:,} nodes": (
            "tree",
            [options.nodes],
            ["background", "incremental", "bytes"],
        ),
        "#6 #8: a tree of 1,000,000 nodes, churned": (
            "churn",
            [1_000_000],
            ["background", "incremental", "bytes"],
        ),
    }
    work = {row: each for row, each in work.items() if options.only in row}
    rounds: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with Progress() as progress:
        task = progress.add_task(
            "heap", total=sum(len(names) for *_, names in work.values()) * options.rounds
        )
        for _ in range(options.rounds):  # engines take turns
            for row, (what, numbers, names) in work.items():
                for name in names:
                    found = one(__file__, what, name, *map(str, numbers))
                    rounds.setdefault(row, {}).setdefault(name, []).append(found)
                    progress.advance(task)
    medians: dict[str, Any] = {}
    for row, engines in rounds.items():
        table = Table(
            "",
            *(
                f"Heap, {name}" if name[:5] != "bytes" else name.replace("bytes", "CPython")
                for name in engines
            ),
            title=row,
        )
        for field in next(iter(engines.values()))[0]:
            cells = [sorted(each[field] for each in found)[len(found) // 2] for found in engines.values()]
            medians.setdefault(row, {})[field] = dict(zip(engines, cells, strict=True))
            table.add_row(field, *("" if math.isnan(cell) else f"{cell:.2f}" for cell in cells))
        Console(width=110).print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "heap.json").write_text(json.dumps({"medians": medians, "rounds": rounds}, indent=1))


if __name__ == "__main__":
    main()
