"""Growing, stitching, snapshots and the allocator against NumPy's own ways, side by side in one run."""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import mirrormap as mm

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20


def grow_ours(total: int, block: np.ndarray[Any, Any]) -> None:
    with mm.Growable("u1") as grown:
        for _ in range(total // block.nbytes):
            grown.extend(block)


def grow_numpy(total: int, block: np.ndarray[Any, Any]) -> None:
    array = block[:0]
    for _ in range(total // block.nbytes):
        array = np.concatenate([array, block])


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def growth(total: int) -> dict[str, float]:
    block = np.ones(total // 64, "u1")
    return {"ours": timed(lambda: grow_ours(total, block)), "peer": timed(lambda: grow_numpy(total, block))}


def stitching(total: int) -> dict[str, float]:
    parts = [mm.full(total // 16, 1, "u1") for _ in range(16)]
    return {"ours": timed(lambda: mm.stitch(parts)), "peer": timed(lambda: np.concatenate(parts))}


def longest_pause(array: np.ndarray[Any, Any], cut: Callable[[], Any]) -> float:
    """Of a thread that stores one byte again and again; an unrelated one is timed as it is."""
    stop, worst = threading.Event(), [0.0]

    def write() -> None:
        while not stop.is_set():
            start = time.perf_counter()
            array[0] = 1
            worst[0] = max(worst[0], time.perf_counter() - start)

    thread = threading.Thread(target=write)
    thread.start()
    time.sleep(0.05)
    worst[0] = 0.0
    cut()
    stop.set()
    thread.join()
    return worst[0]


def forked() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


def snapshots(total: int) -> dict[str, float]:
    array = mm.zeros(total, "u1", populate=True)
    private = np.ones(total, "u1")
    taken = mm.snapshot(array, copy=False)
    found = {"ours": timed(taken.__enter__), "peer": timed(private.copy), "fork": timed(forked)}
    taken.close()
    found["pause, ours"] = longest_pause(array, taken.__enter__)
    taken.close()
    found["pause, fork"] = longest_pause(private, forked)
    return found


def allocation(total: int) -> dict[str, float]:
    def make() -> None:
        np.empty(total, "u1").fill(1)

    plain = float(np.median([timed(make) for _ in range(7)]))
    with mm.numpy_allocator(cache=total):
        ours = float(np.median([timed(make) for _ in range(7)]))
        mm.numpy_allocator().trim()
    return {"ours": ours, "peer": plain}


ROWS: dict[str, Callable[[int], dict[str, float]]] = {
    "grow to it in 64 blocks, against concatenate": growth,
    "stitch 16 parts, against concatenate": stitching,
    "snapshot, against copy()": snapshots,
    "allocate and touch, against NumPy's own": allocation,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, nargs="+", default=[64, 256, 1024], help="sizes")
    sizes = parser.parse_args().mib
    found: dict[str, dict[int, dict[str, float]]] = {name: {} for name in ROWS}
    table = Table("", "MiB", "ours, ms", "peer, ms", "ratio", "more")
    with Progress() as progress:
        task = progress.add_task("arrays", total=len(ROWS) * len(sizes))
        for name, row in ROWS.items():
            for mib in sizes:
                cell = found[name][mib] = row(mib * MIB)
                more = ", ".join(
                    f"{key} {value * 1e3:.2f} ms"
                    for key, value in cell.items()
                    if key not in ("ours", "peer")
                )
                times = f"{cell['ours'] * 1e3:.2f}", f"{cell['peer'] * 1e3:.2f}"
                table.add_row(name, str(mib), *times, f"{cell['peer'] / cell['ours']:.1f}", more)
                progress.advance(task)
    Console(width=150).print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "arrays.json").write_text(json.dumps(found, indent=1))
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    for name, cells in found.items():
        axes.loglog(
            list(cells), [cell["peer"] / cell["ours"] for cell in cells.values()], marker="o", label=name
        )
    axes.set_xlabel("MiB")
    axes.set_ylabel("times as fast as NumPy")
    axes.legend()
    figure.savefig(RESULTS / "arrays.svg")
    figure.savefig(RESULTS / "arrays.png")


if __name__ == "__main__":
    main()
