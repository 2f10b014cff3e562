"""Append a block and take the newest window: mirrormap.Ring, its peers, and C, side by side in one run."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from peers import Compacting, Mirrored, made
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

HERE = Path(__file__).parent
BLOCKS, WINDOWS = (1, 64, 1024, 16384), (1024, 65536, 1 << 20)
SLICE_SECONDS = 0.02
WARM_STEPS = 16


def limit(folder: str) -> Any:
    """The C function: seconds for a number of steps."""
    target = f"{folder}/c_stream.so"
    command = ["cc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, str(HERE / "c_stream.c"), "-o", target], check=True)
    function = ctypes.CDLL(target).c_stream
    function.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 4]
    function.restype = ctypes.c_double
    return function


def timed(ring: Any, block: np.ndarray[Any, Any], steps: int) -> list[int]:
    """Nanoseconds of each append and window together."""
    append, window, clock = ring.append, ring.window, time.perf_counter_ns
    times = []
    for _ in range(steps):
        start = clock()
        append(block)
        window()
        times.append(clock() - start)
    return times


def clock_cost() -> float:
    clock = time.perf_counter_ns
    return float(np.median([-(clock() - clock()) for _ in range(10_000)]))


def cell(block: int, window: int, c_stream: Any, turns: int) -> dict[str, dict[str, float] | str]:
    """Figures of every contender, which take turns, 20 ms each."""
    capacity = max(2 * window, 2 * block)
    data = np.random.default_rng(0).random(block, "f4")
    found: dict[str, dict[str, float] | str] = {}
    rings: dict[str, Any] = {}
    steps: dict[str, int] = {}
    for name, ring in made(block, window, capacity):
        if isinstance(ring, str):
            found[name] = ring
            continue
        rings[name] = ring
        warm = timed(ring, data, 20)
        steps[name] = max(3, min(20_000, int(SLICE_SECONDS * 1e9 / (np.median(warm) + 1))))
    times: dict[str, list[int]] = {name: [] for name in rings}
    native = []
    for _ in range(turns):
        for name, ring in rings.items():
            times[name] += timed(ring, data, steps[name])
        native.append(c_stream(data.ctypes.data, block, window, capacity, 20_000 if block < 9999 else 2_000))
    cost = clock_cost()
    for name, each in times.items():
        sample = np.array(each) - cost
        found[name] = {
            "mean": float(sample.mean()), "p50": float(np.median(sample)),
            "p99.9": float(np.percentile(sample, 99.9)), "max": float(sample.max()),
        }  # fmt: skip
    seconds = float(np.median(native)) / (20_000 if block < 9999 else 2_000)
    found["C"] = {"mean": seconds * 1e9}
    return found


def stalls(block: int, window: int, turns: int) -> dict[str, dict[str, float]]:
    """Worst steps of the ring and of the compacting buffer over two whole cycles, repeated from the start.

    A stall of the algorithm comes at the same step each time, what the machine does in between does not:
    the least time of each step is the step's own, and the worst of those is the algorithm's stall.
    """
    capacity = 2 * window
    data = np.random.default_rng(0).random(block, "f4")
    steps = 4 * capacity // block
    contenders: dict[str, Any] = {"mirrormap": Mirrored, "compacting buffer": Compacting}
    least: dict[str, np.ndarray[Any, Any]] = {}
    worst: dict[str, list[int]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name, make in contenders.items():
            ring = make(block, window, capacity)
            for _ in range(2 * capacity // block + WARM_STEPS):
                ring.append(data)
            timed(ring, data, WARM_STEPS)
            times = np.array(timed(ring, data, WARM_STEPS + steps)[WARM_STEPS:])
            worst[name].append(int(times.max()))
            least[name] = np.minimum(least.get(name, times), times)
    cost = clock_cost()
    nbytes = {"mirrormap": Mirrored(block, window, capacity).ring.nbytes, "compacting buffer": 8 * capacity}
    return {
        name: {
            "worst step": float(least[name].max() - cost),
            "worst step seen": float(np.median(worst[name]) - cost),
            "MiB": nbytes[name] / 2**20,
        }
        for name in contenders
    }


def report(cells: dict[tuple[int, int], dict[str, Any]], console: Console) -> None:
    names = list(dict.fromkeys(name for found in cells.values() for name in found))
    for figure in ("mean", "p99.9", "max"):
        table = Table("B, W", *names, title=f"{figure} of append + window, ns")
        for (block, window), found in cells.items():
            best = min(
                (each[figure] for name, each in found.items() if name != "C" and isinstance(each, dict)),
            )
            row = []
            for name in names:
                each = found.get(name)
                value = each.get(figure) if isinstance(each, dict) else None
                text = "-" if value is None else f"{value:,.0f}"
                row.append(f"[bold]{text}[/]" if value == best else text)
            table.add_row(f"{block:,}, {window:,}", *row)
        console.print(table)
    for found in cells.values():
        for name, each in found.items():
            if isinstance(each, str):
                console.print(f"{name}: {each}")
        break


def plot(cells: dict[tuple[int, int], dict[str, Any]], folder: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(WINDOWS), figsize=(14, 5), sharey=True)
    for axis, window in zip(axes, WINDOWS, strict=True):
        for name in dict.fromkeys(name for found in cells.values() for name in found):
            points = [
                (block, found[name]["mean"])
                for (block, size), found in cells.items()
                if size == window and isinstance(found.get(name), dict)
            ]
            if points:
                style = {"linewidth": 3} if name == "mirrormap" else {"linewidth": 1}
                axis.loglog(*zip(*points, strict=True), "o-" if name != "C" else "k--", label=name, **style)
        axis.set_title(f"window of {window:,} items")
        axis.set_xlabel("block, items")
    axes[0].set_ylabel("append + window, mean ns")
    axes[-1].legend(fontsize=8)
    figure.tight_layout()
    for kind in ("svg", "png"):
        figure.savefig(folder / f"stream.{kind}")


def main() -> int:
    """Run every cell. Exit status 0 unless something could not be run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few turns: does it run?")
    options = parser.parse_args()
    console = Console(width=180)
    cells: dict[tuple[int, int], dict[str, Any]] = {}
    gc.disable()
    with tempfile.TemporaryDirectory() as folder, Progress(console=console) as progress:
        c_stream = limit(folder)
        for block, window in progress.track([(b, w) for w in WINDOWS for b in BLOCKS], description="cells"):
            cells[block, window] = cell(block, window, c_stream, 2 if options.quick else 12)
        found = stalls(1024, 1 << 20, 3 if options.quick else 15)
    report(cells, console)
    ours, theirs = found["mirrormap"], found["compacting buffer"]
    table = Table("B=1024, W=1Mi", *found, "ratio", title="stalls, ns, and storage")
    for figure, value in ours.items():
        table.add_row(figure, f"{value:,.0f}", f"{theirs[figure]:,.0f}", f"{theirs[figure] / value:,.1f}")
    console.print(table)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    plot(cells, results)
    text: dict[str, Any] = {f"B={block} W={window}": each for (block, window), each in cells.items()}
    text["stalls"] = found
    (results / "stream.json").write_text(json.dumps(text, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
