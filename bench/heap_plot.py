"""Memory of a process with a cache of real text, over time: an LRU of a heap beside an OrderedDict of bytes.

The text is that of the standard library, 1 to 64 paragraphs a value. The cache fills, churns, is asked for long paragraphs only,
then for short ones, is cut to a quarter, and loses 15 of 16 values at random places. Each engine has a process of
its own; both do the same. Draws PNG and SVG into bench/results.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from children import one
from heap import MIB, engine, real_nbytes

RESULTS = Path(__file__).parent / "results"
PHASES = ("filled, churned", "long ones", "short ones", "cut to 1/4", "1/16 at random")


def paragraphs() -> list[bytes]:
    files = sorted(Path(os.__file__).parent.rglob("*.py"))
    texts = (path.read_bytes() for path in files if "site-packages" not in path.parts)
    found = [part for text in texts for part in text.split(b"\n\n") if len(part) > 64]
    rng, at, joined = random.Random(2), 0, []  # noqa: S311
    while at < len(found):
        count = int(64 ** rng.random())
        joined.append(b"\n\n".join(found[at : at + count]))
        at += count
    return joined


def life(cache: Any, text: list[bytes], limit: int) -> Iterator[str]:
    """What happens to the cache; yields the name of the phase now and then."""
    rng = random.Random(1)  # noqa: S311
    order = sorted(range(len(text)), key=lambda at: len(text[at]))
    half = len(order) // 2
    for phase, keys, volume in (
        (PHASES[0], order, 3 * limit), (PHASES[1], order[half:], 2 * limit), (PHASES[2], order[:half], 2 * limit),
    ):  # fmt: skip
        step = 0
        while volume > 0:
            key = rng.choice(keys) + len(text) * rng.randrange(64)
            if cache.get(key) is None:
                data = text[key % len(text)]
                cache.put(key, memoryview(data))
                volume -= len(data)
            step += 1
            if step % 500 == 0:
                yield phase
    for phase, count, shuffled in ((PHASES[3], 4, False), (PHASES[4], 16, True)):
        keys, target = cache.keys(), cache.nbytes // count
        if shuffled:
            rng.shuffle(keys)
        for step, key in enumerate(keys):
            if cache.nbytes <= target:
                break
            cache.drop(key)
            if step % 500 == 0:
                yield phase
        for _ in range(10):
            time.sleep(0.02)
            yield phase


def sample(name: str, limit: int) -> list[tuple[str, float, float, float, float]]:
    """(phase, step, MiB of payload, of growth of the process, of the heap's pages), some hundred times."""
    text = paragraphs()
    __import__("mirrormap")
    gc.collect()
    before = real_nbytes()
    cache = engine(name, limit)
    found: list[tuple[str, float, float, float, float]] = []
    for step, phase in enumerate(life(cache, text, limit)):
        found.append((phase, step, cache.nbytes / MIB, (real_nbytes() - before) / MIB, cache.payload() / MIB))
    return found


def draw(told: dict[str, list[Any]], limit: int) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for name, (label, colour) in {
        "bytes": ("OrderedDict of bytes", "tab:red"),
        "1.10": ("Heap, lru", "tab:blue"),
    }.items():
        axes.plot([row[1] for row in told[name]], [row[3] for row in told[name]], colour, label=label)
    rows = told["1.10"]
    axes.plot([row[1] for row in rows], [row[4] for row in rows], "tab:cyan", label="the heap's own pages")
    axes.plot([row[1] for row in rows], [row[2] for row in rows], "0.4", linestyle=":", label="text alive")
    for phase in PHASES:
        first = next(row[1] for row in rows if row[0] == phase)
        axes.axvline(first, color="0.85", zorder=0)
        axes.text(first, axes.get_ylim()[1], f" {phase}", va="top", fontsize=8, rotation=90)
    axes.set(
        xlabel="moments",
        ylabel="MiB that the process grew by",
        title=f"A cache of text, {limit // MIB} MiB",
        ylim=0,
    )
    axes.legend(loc="center left")
    RESULTS.mkdir(exist_ok=True)
    for kind in ("svg", "png"):
        figure.savefig(
            RESULTS / f"heap-cache.{kind}", dpi=120, metadata={"Date": None} if kind == "svg" else None
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=64, help="live bytes of the cache")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    limit = options.mib * MIB
    if options.one:
        print(json.dumps(sample(options.one, limit)))
        return
    told: dict[str, list[Any]] = {}
    for name in ("bytes", "1.10"):
        told[name] = one(__file__, name, "--mib", str(options.mib))
    for phase in PHASES:
        for name, rows in told.items():
            last = [row for row in rows if row[0] == phase][-1]
            print(
                f"{phase:>16}  {name:>6}  {last[2]:7.1f} MiB alive  {last[3]:7.1f} MiB held  {last[3] / last[2]:5.2f}"
            )
    draw(told, limit)


if __name__ == "__main__":
    main()
