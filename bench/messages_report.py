"""What bench/messages.py found: medians, tables, a plot."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

APART = ", no cache shared"
"""Behind the name of a row: of runs while the two processors shared none."""

Found = dict[str, dict[str, list[Any]]]
"""What every run gave, by row and contender."""


def median(runs: list[Any], figure: str) -> float:
    return float(np.median([each[figure] for each in runs]))


def report(found: Found, failed: dict[str, str], sizes: dict[str, int], console: Console) -> dict[str, Any]:
    """Print the tables. Args: sizes: bytes of a message, by row. Returns: the medians."""
    medians: dict[str, Any] = {}
    for cell, nbytes in ((cell + state, size) for cell, size in sizes.items() for state in ("", APART)):
        rates = {name: median(runs, "rate") for name, runs in found.get(cell, {}).items() if runs}
        table = Table(
            "", "messages/s", "GB/s", "mirrormap is", "runs", title=f"{cell}, one sender and one receiver"
        )
        ours = max((rate for name, rate in rates.items() if name.startswith("mirrormap")), default=0.0)
        for name, rate in sorted(rates.items(), key=lambda each: -each[1]):
            bold = "[bold]" if name.startswith("mirrormap") else ""
            table.add_row(
                bold + name,
                f"{rate:,.0f}",
                f"{rate * nbytes / 1e9:.2f}",
                f"{ours / rate:.2f}x",
                f"{len(found[cell][name])}",
            )
        if rates:
            console.print(table)
        medians[cell] = rates
    trips = {name: runs for name, runs in found.get("round trip", {}).items() if runs}
    if trips:
        title = "round trip of 64 B, pinned, us"
        table = Table("", "p50", "p99", "p99.9", "slower than 3 medians, a second", title=title)
        medians["round trip"] = {
            name: {figure: median(runs, figure) for figure in ("p50", "p99", "p99.9", "late")}
            for name, runs in trips.items()
        }
        for name, each in sorted(medians["round trip"].items(), key=lambda item: item[1]["p50"]):
            table.add_row(name, *(f"{value:,.1f}" for value in each.values()))
        console.print(table)
    if broadcast := found.get("broadcast"):
        medians["6 MiB to several"] = costs = {
            name: {figure: median(runs, figure) for figure in ("cpu", "besides")}
            for name, runs in sorted(broadcast.items())
        }
        table = Table(
            "receivers",
            "reserve and commit",
            "fill",
            "all",
            "times one's",
            title="6 MiB: us of the sender's CPU a message",
        )
        for name, each in costs.items():
            one = costs.get(name.replace(name[0], "1", 1), each)
            fill = each["cpu"] - each["besides"]
            row = f"{each['besides']:.1f}", f"{fill:,.0f}", f"{each['cpu']:,.0f}"
            times = ", ".join(f"{each[figure] / one[figure]:.2f}" for figure in ("besides", "cpu"))
            table.add_row(name, *row, times)
        console.print(table)
    if runs := found.get("idle", {}).get("mirrormap"):
        medians["idle"] = float(np.median(runs))
        console.print(f"idle receiver: {medians['idle'] * 1e3:.2f} ms of CPU in 2 s")
    for name, why in failed.items():
        console.print(f"left out: {name}: {why}")
    return medians


def plot(medians: dict[str, Any], sizes: dict[str, int], limits: Collection[str], folder: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(14, 10))
    for axis, cell in zip(axes.flat, ("64 B", "64 KiB", "1 MiB", "6 MiB"), strict=True):
        near, apart = (medians[cell + state] for state in ("", APART))
        rates = sorted((near if len(near) > len(apart) else apart).items(), key=lambda each: each[1])
        colours = ["C1" if name == "mirrormap" else "0.4" if name in limits else "C0" for name, _ in rates]
        scale = 1e-3 if cell == "64 B" else sizes[cell] * 1e-9
        axis.barh([name for name, _ in rates], [rate * scale for _, rate in rates], color=colours)
        axis.set_title(f"messages of {cell}")
        axis.set_xlabel("thousand messages a second" if cell == "64 B" else "GB/s")
    figure.tight_layout()
    for kind in ("svg", "png"):
        figure.savefig(folder / f"messages.{kind}")
