"""A heap with one view, with a view for each colour of a reference, and guarded, side by side.

First following references alone, in C: a chain through memory, the colour masked off or chosen as a view, the ways
in turns. Then whole heaps, each in a process of its own, in turns: a tree of records built, marked, walked from
Python and frozen, and buffers collected that leave holes. Medians; times are of the processor.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from children import apart, memory
from heap_objects import RESULTS, plant, walk

import mirrormap as mm

HERE: Final = Path(__file__).parent
MIB: Final = 1 << 20
NODE: Final = 64
WAYS: Final = {
    "one view, masked": ("m", 1),
    "three views, one colour": ("c", 1),
    "three views, colours mixed": ("b", 3),
}
MODES: Final[dict[str, dict[str, Any]]] = {
    "one view": {"views": 1}, "three views": {"views": 3}, "guarded": {"guard": True},
}  # fmt: skip


def compiled(folder: str) -> Callable[..., float]:
    target = f"{folder}/c_views.so"
    command = ["cc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, str(HERE / "c_views.c"), "-o", target], check=True)
    function = ctypes.CDLL(target).c_views
    number = ctypes.c_uint64
    function.argtypes = [ctypes.c_void_p, ctypes.c_uint, number, number, number, ctypes.c_char]
    function.restype = ctypes.c_double
    return function  # type: ignore[no-any-return]


def chase(function: Callable[..., float], nbytes: int, shuffled: bool, turns: int) -> dict[str, float]:
    """ns a load of each way, through nodes in order or not."""
    rng = np.random.default_rng(1)
    count = nbytes // NODE
    order = rng.permutation(count) if shuffled else np.arange(count)
    seen: dict[str, list[float]] = {way: [] for way in WAYS}
    with mm.Pages(nbytes) as pages:
        views = pages.views(3, populate=True)
        shift = views[0].nbytes.bit_length() - 1
        nodes = views[0].array("u8").reshape(count, NODE // 8)
        for _ in range(turns):
            for name, (way, colours) in WAYS.items():
                good = 2 << shift
                colour = good if colours == 1 else rng.integers(0, 3, count) << shift
                nodes[order, 0] = np.roll(order, -1) * NODE | colour
                start = int(order[0]) * NODE | (0 if way == "m" else good)
                loads = max(count, 1 << 20)
                seconds = function(views[0].address, shift, start, good, loads, way.encode())
                if seconds < 0:
                    raise RuntimeError(f"{name}: a reference of another colour")
                seen[name].append(1e9 * seconds / loads)
        del nodes
        for view in views:
            view.close()
    return {name: statistics.median(times) for name, times in seen.items()}


def timed(act: Callable[[], object]) -> float:
    start = time.process_time()
    act()
    return time.process_time() - start


def entries() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def life(mode: str, count: int, values: int) -> dict[str, float]:
    """Of a heap with a tree of about `count` nodes."""
    depth = count.bit_length() - 1
    nodes = 2 ** (depth + 1) - 1
    before = {field: memory(field) for field in ("VmRSS", "Pss", "VmPTE")}
    mappings = entries()
    heap = mm.Heap("4GiB", collector="manual", **MODES[mode])
    node = heap.record("Node", key="i8", left=mm.Ref, right=mm.Ref)
    found: dict[str, float] = {}
    start = time.process_time()
    heap.roots["top"] = plant(node, depth)
    found["build, ns a node"] = 1e9 * (time.process_time() - start) / nodes
    heap.collect()  # the first touches pages in other views
    marks = [timed(heap.collect) for _ in range(5)]
    if heap.stats().marked != 6 * nodes:
        raise RuntimeError("not every node was marked")
    found["full mark, ms"] = 1e3 * statistics.median(marks)
    walks = [timed(lambda: walk(heap.roots["top"])) for _ in range(2)]
    found["walk from Python, ns a node"] = 1e9 * min(walks) / nodes
    images: list[mm.Frozen] = []
    found["freeze, ms"] = 1e3 * timed(lambda: images.append(heap.freeze()))
    images.pop().close()
    kept = [heap.put(bytes(512)) for _ in range(values)]
    moved, steps = heap.stats().moved, []
    for _ in range(5):
        kept = kept[::2] + [heap.put(bytes(512)) for _ in range(values // 2)]
        steps.append(timed(heap.collect))
    told = heap.stats()
    if told.moved == moved:
        raise RuntimeError("nothing was moved")
    found["mark and move, ms"] = 1e3 * statistics.median(steps)
    found["longest step, ms"] = told.pauses["collect"].longest_ns / 1e6
    found["RSS, MiB"] = (memory("VmRSS") - before["VmRSS"]) / MIB
    found["PSS, MiB"] = (memory("Pss") - before["Pss"]) / MIB
    found["held by the heap, MiB"] = told.committed / MIB
    found["stats().resident, MiB"] = told.resident / MIB
    found["page tables, MiB"] = (memory("VmPTE") - before["VmPTE"]) / MIB
    found["mappings of the heap"] = sum("mirrormap:heap" in line for line in maps())
    found["other mappings more"] = entries() - mappings - found["mappings of the heap"]
    kept.clear()
    heap.close()
    return found


def maps() -> list[str]:
    return Path("/proc/self/maps").read_text().splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=2_000_000)
    parser.add_argument("--values", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=9, help="of the ways in C")
    options = parser.parse_args()
    from rich.console import Console
    from rich.table import Table

    console = Console(width=110)
    told: dict[str, Any] = {}
    table = Table("a chain in C, ns a load", *WAYS, title="A colour as a mask, and as a view")
    with tempfile.TemporaryDirectory() as folder:
        function = compiled(folder)
        for nbytes in (MIB, 64 * MIB):
            for shuffled in (False, True):
                name = f"{nbytes // MIB} MiB, {'shuffled' if shuffled else 'in order'}"
                cells = told[name] = chase(function, nbytes, shuffled, options.turns)
                first, *others = cells.values()
                table.add_row(name, f"{first:.2f}", *(f"{each:.2f} ({each / first:.2f}x)" for each in others))
    console.print(table)

    rounds: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for _ in range(options.rounds):
        for mode, runs in rounds.items():
            runs.append(apart(life, mode, options.nodes, options.values))
    told["heaps"] = rounds
    title = f"A tree of {2 ** options.nodes.bit_length() - 1:,} records, and {options.values:,} buffers"
    table = Table("", *MODES, title=title)
    for field in rounds["one view"][0]:
        first, *others = (statistics.median(each[field] for each in runs) for runs in rounds.values())
        ratios = (f"{each:.2f} ({each / first:.2f}x)" if first else f"{each:.2f}" for each in others)
        table.add_row(field, f"{first:.2f}", *ratios)
    console.print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "heap_views.json").write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
