"""What live views keep: a heap's pages when a read-only array shows every survivor, with meshing and without it.

A cache is filled, an array is taken of each value that will survive, and the others are removed: all but a quarter, the oldest
first, or all but 1/16 at random. Nobody asks for memory back; a quarter of a second later its pages are counted, per live
byte of payload. Each case has a process of its own, in turns; "holes alone" is the same with meshing switched off.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

from children import one
from heap import MIB, RESULTS, sizes

CASES = {"shrunk to 1/4": (4, False), "scattered 1/16": (16, True)}
SORTS = {"64 B to 64 KiB": (64, 65536), "64 B to 2 KiB": (64, 2048)}
WAIT_S = 0.25


def fill(cache: Any, volume: int, low: int, high: int) -> None:
    source, rng, key = memoryview(bytes(range(256)) * (high // 256)), random.Random(1), 0  # noqa: S311
    while volume > 0:
        nbytes = sizes(rng, low, high)
        cache[key] = source[:nbytes]
        volume -= nbytes
        key += 1


def heap_lines() -> int:
    return Path("/proc/self/maps").read_text().count("/memfd:mirrormap:heap")


def keep(case: str, sort: str, volume: int, meshing: bool) -> dict[str, float]:
    import numpy as np

    import mirrormap as mm

    heap = mm.Heap(4 * volume)
    if not meshing:
        heap._mesh_most(0)
    cache: Any = heap.map()
    fill(cache, volume, *SORTS[sort])
    share, scattered = CASES[case]
    keys = list(cache)
    if scattered:
        random.Random(2).shuffle(keys)  # noqa: S311
    kept = keys[len(keys) - len(keys) // share :]
    arrays = {key: np.asarray(cache.view(key)) for key in kept}
    where = {key: array.ctypes.data for key, array in arrays.items()}
    before, lines = heap.stats().pauses, heap_lines()
    start = time.perf_counter()
    for key in keys[: len(keys) - len(kept)]:
        del cache[key]
    dropped, spent = time.perf_counter() - start, time.process_time()
    time.sleep(WAIT_S)
    live = sum(array.nbytes for array in arrays.values())
    unasked = heap.stats().committed / live
    if meshing:  # collect() would allow it again
        heap.collect()
    else:
        goal = heap._goal()
        while heap._advance(goal, 150_000):
            pass
    spent = time.process_time() - spent
    heap.verify()
    told = heap.stats()
    source = bytes(range(256)) * (SORTS[sort][1] // 256)
    assert all(array.ctypes.data == where[key] for key, array in arrays.items()), "an address changed"
    assert all(array.tobytes() == source[: array.nbytes] for array in arrays.values()), "bytes changed"
    found = {
        "live, MiB": live / MIB,
        "held / live, unasked": unasked,
        "held / live, collected": told.committed / live,
        "mappings": float(told.mappings),
        "steps": float(
            sum(each.steps for each in told.pauses.values()) - sum(each.steps for each in before.values())
        ),
        "p99.9 of steps, us": max(each.p999_ns for each in told.pauses.values()) / 1e3,
        "longest step, us": max(each.longest_ns for each in told.pauses.values()) / 1e3,
        "processor time after removing, s": spent,
        "removing, s": dropped,
    }
    assert told.mappings == heap_lines() - lines, "mappings were miscounted"
    arrays.clear()
    start = time.perf_counter()
    while heap.stats().mappings and time.perf_counter() - start < 5:
        time.sleep(0.01)
    found["until no mapping is left, s"] = math.nan if heap.stats().mappings else time.perf_counter() - start
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--mib",
        type=int,
        default=256,
        help="bytes in the cache, before most are removed; small ones a quarter",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        case, sort, volume, meshing = options.one
        print(json.dumps(keep(case, sort, int(volume), meshing == "meshing")))
        return
    from rich.console import Console
    from rich.table import Table

    rounds: dict[str, dict[str, list[dict[str, float]]]] = {}
    for _ in range(options.rounds):
        for sort, (_, high) in SORTS.items():
            volume = options.mib * MIB // (1 if high > 4096 else 4)
            for case in CASES:
                for meshing in ("meshing", "holes alone"):
                    title = f"#4: {volume // MIB} MiB of {sort}, {case}"
                    found = one(__file__, case, sort, str(volume), meshing)
                    rounds.setdefault(title, {}).setdefault(meshing, []).append(found)
    for title, ways in rounds.items():
        table = Table("", *ways, title=title)
        for field in ways["meshing"][0]:
            cells = [sorted(each[field] for each in found)[len(found) // 2] for found in ways.values()]
            table.add_row(field, *("" if math.isnan(cell) else f"{cell:,.2f}" for cell in cells))
        Console(width=110).print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "heap-pinned.json").write_text(json.dumps(rounds, indent=1))


if __name__ == "__main__":
    main()
