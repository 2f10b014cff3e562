"""Growing, stitching, snapshots and the allocator against NumPy's own ways, side by side in one run."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from allocating import allocate
from children import Cost, apart, cost
from freezing import built, first_stores, freeze
from growth import IN_FILES, IN_MEMORY, flatness, grow, grow_file
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

import mirrormap as mm

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20
BLOCKS, FILE_BLOCKS, PARTS = 64, 256, 16
MOST_NUMBERS_NBYTES = 64 * MIB  # four times as many bytes as a list
Found = dict[str, Any]


def medians(costs: Iterable[Cost]) -> Cost:
    each = list(costs)
    seconds, processor, peaks, held = zip(*each, strict=True)
    return Cost(float(np.median(seconds)), float(np.median(processor)), max(peaks), max(held))


def in_turns(contenders: list[str], turns: int, work: Callable[[str], Cost | str]) -> dict[str, Cost | str]:
    taken: dict[str, list[Cost]] = {name: [] for name in contenders}
    found: dict[str, Cost | str] = {}
    for _ in range(turns):
        for name in contenders:
            one = work(name)
            if isinstance(one, str):
                found[name] = one
            else:
                taken[name].append(one)
    return found | {name: medians(each) for name, each in taken.items() if each}


def growing(options: argparse.Namespace, step: Callable[[str], None]) -> Found:
    found = {}
    for mib in options.mib:
        step(f"grow to {mib} MiB")
        names = [name for name in IN_MEMORY if name != "list of numbers" or mib * MIB <= MOST_NUMBERS_NBYTES]
        found[mib] = in_turns(
            names, options.turns, lambda name, mib=mib: apart(grow, name, mib * MIB, BLOCKS)
        )
    return found


def in_files(options: argparse.Namespace, step: Callable[[str], None]) -> Found:
    step("grow in a file")
    mib = min(256, *options.mib)
    work = in_turns(
        list(IN_FILES), options.turns, lambda name: apart(grow_file, name, mib * MIB, FILE_BLOCKS)
    )
    return {mib: work}


def flat(options: argparse.Namespace, step: Callable[[str], None]) -> Found:
    """Twice each, in turn: a hypervisor finds memory for whoever asks first."""
    step("append rows of 1 KiB")
    names = ("Growable", "stores") * 2
    turns = [(name, dict(apart(flatness, name, options.flat_gib << 30))) for name in names]
    return {
        nbytes: {name: min(turn[nbytes] for whose, turn in turns if whose == name) for name in names[:2]}
        for nbytes in turns[0][1]
    }


def _stitched(parts: list[np.ndarray[Any, Any]], name: str, read: bool) -> Any:
    joined = mm.stitch(parts) if name.startswith("stitch") else np.concatenate(parts)
    return joined, joined[:: 4096 // 8].max() if read else 0


def join(name: str, total: int) -> Cost:
    """To be run in a process of its own."""
    parts = [mm.full(total // PARTS // 8, 1, "i8", page_size="thp", populate=True) for _ in range(PARTS)]
    mm.stitch(parts[:2])
    return cost(_stitched, parts, name, "read" in name)


def stitching(options: argparse.Namespace, step: Callable[[str], None]) -> Found:
    found = {}
    names = ["stitch", "np.concatenate", "stitch, and read", "np.concatenate, and read"]
    for mib in options.stitch_mib:
        step(f"stitch {mib} MiB")
        found[mib] = in_turns(names, options.turns, lambda name, mib=mib: apart(join, name, mib * MIB))
    return found


def freezing(options: argparse.Namespace, step: Callable[[str], None]) -> Found:
    found: Found = {}
    with tempfile.TemporaryDirectory() as folder:
        library = built(folder)
        step("store to frozen pages")
        stores = apart(first_stores, library, 6 * options.turns + 1)
        for mib in options.mib:
            step(f"freeze {mib} MiB")
            found[mib] = {
                name: apart(freeze, name, mib * MIB, library, 2 * options.turns + 1)
                for name in ("snapshot", "fork", "copy")
            }
            for name, seconds in stores.items():
                found[mib][name]["first store, a page"] = seconds
    return found


def allocating(options: argparse.Namespace, step: Callable[[str], None]) -> Found:
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(MIB // 2)
    found = {}
    for mib in options.allocate_mib:
        step(f"allocate {mib} MiB")
        found[mib] = apart(allocate, mib * MIB, 2 * options.turns + 1 if mib > 64 else 15)
    del os.environ["MALLOC_MMAP_THRESHOLD_"]
    return found


SECTIONS: dict[str, Callable[[argparse.Namespace, Callable[[str], None]], Found]] = {
    "growing": growing,
    "in files": in_files,
    "flat": flat,
    "stitching": stitching,
    "freezing": freezing,
    "allocating": allocating,
}


# --- tables and plots ----------------------------------------------------------------------


def of_costs(title: str, found: Found, console: Console) -> None:
    """Times, how many times ours that is, and peak memory as multiples of what was asked for."""
    heads = "MiB", "", "ms", "times ours", "ms of processor", "times ours", "peak RSS", "PSS in the end"
    table = Table(*heads, title=f"{title}; memory in times the data")
    for mib, cells in found.items():
        ours = next(iter(cells.values()))
        for name, one in cells.items():
            if isinstance(one, str):
                table.add_row(str(mib), name, one)
                continue
            row = [f"{one.peak_nbytes / MIB / mib:.2f}", f"{one.held_nbytes / MIB / mib:.2f}"]
            for spent, by_us in ((one.processor, ours.processor), (one.seconds, ours.seconds)):
                row[:0] = f"{spent * 1e3:,.2f}", f"{spent / by_us:,.2f}"
            table.add_row(str(mib), name, *row)
        table.add_section()
    console.print(table)


def of_flatness(found: Found, console: Console) -> None:
    names = next(iter(found.values()))
    table = Table(
        "rows, KiB so far", *names, "ratio", title="rows of 1 KiB appended one by one: ns an append"
    )
    for nbytes, cells in found.items():
        ours, limit = cells.values()
        table.add_row(f"{nbytes >> 10:,}", f"{ours:,.0f}", f"{limit:,.0f}", f"{ours / limit:.2f}")
    console.print(table)


def of_freezing(found: Found, console: Console) -> None:
    for mib, cells in found.items():
        table = Table(f"{mib} MiB in 4 KiB pages", *cells, "fork / snapshot", title="freezing: ms, and KiB")
        for figure in cells["fork"]:
            memory = figure in ("page tables", "memory")
            values = [cells[name].get(figure, 0) * (1 / 1024 if memory else 1e3) for name in cells]
            ratio = "" if memory or not values[0] else f"{values[1] / values[0]:,.2f}"
            table.add_row(
                figure, *(f"{value:,.5f}" if not memory else f"{value:,.0f}" for value in values), ratio
            )
        console.print(table)


def of_allocating(found: Found, console: Console) -> None:
    names = list(next(iter(found.values())))
    setting = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled").read_text().strip()
    table = Table(
        "MiB", *names, title=f"made and touched, ms (and times NumPy's); shmem_enabled: {escape(setting)}"
    )
    for mib, cells in found.items():
        row = []
        for name in names:
            peer = cells["NumPy, zeros" if "zeros" in name else "NumPy"]
            row.append(f"{cells[name] * 1e3:,.3f} ({cells[name] / peer:.2f})")
        table.add_row(str(mib), *row)
    console.print(table)


def plot(found: dict[str, Found], folder: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(5 * len(found), 4.5), squeeze=False)
    for axis, (section, sizes) in zip(axes[0], found.items(), strict=True):
        axis.set_title(section)
        axis.set_xlabel("MiB")
        axis.set_ylabel("seconds")
        if section == "flat":
            for name in next(iter(sizes.values())):
                taken = [cells[name] for cells in sizes.values()]
                axis.semilogx([nbytes / MIB for nbytes in sizes], taken, "o-", base=2, label=name)
            axis.set_ylabel("ns an append")
            axis.set_ylim(bottom=0)
            axis.legend(fontsize=7)
            continue
        lines: dict[str, list[tuple[int, float]]] = {}
        for mib, cells in sizes.items():
            for name, one in cells.items():
                value = one.seconds if isinstance(one, Cost) else one
                value = value["longest pause"] if isinstance(value, dict) else value
                if not isinstance(value, str):
                    lines.setdefault(name, []).append((mib, value))
        for name, points in lines.items():
            axis.loglog(*zip(*points, strict=True), "o-", label=name)
        if section == "freezing":
            axis.set_ylabel("longest pause of a writer, seconds")
        axis.legend(fontsize=7)
    figure.tight_layout()
    for kind in ("svg", "png"):
        figure.savefig(folder / f"arrays.{kind}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections")
    parser.add_argument("--mib", type=int, nargs="+", default=[64, 256, 1024], help="sizes")
    parser.add_argument("--stitch-mib", type=int, nargs="+", default=[64, 512, 4096])
    parser.add_argument("--allocate-mib", type=int, nargs="+", default=[1, 2, 4, 16, 64, 256, 1024])
    parser.add_argument("--flat-gib", type=int, default=8, help="how far rows of 1 KiB are appended")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    console = Console(width=150)
    found: dict[str, Found] = {}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("arrays", total=len(options.only))
        for name in options.only:
            found[name] = SECTIONS[name](
                options, lambda what: progress.update(task, description=what, refresh=True)
            )
            progress.advance(task)
    tables: dict[str, Callable[[Found, Console], None]] = {
        "growing": lambda one, to: of_costs(f"grown in {BLOCKS} blocks", one, to),
        "in files": lambda one, to: of_costs(
            f"grown in a file, {FILE_BLOCKS} blocks, fsync at the end", one, to
        ),
        "flat": of_flatness,
        "stitching": lambda one, to: of_costs(f"{PARTS} parts as one array", one, to),
        "freezing": of_freezing,
        "allocating": of_allocating,
    }
    for name, one in found.items():
        tables[name](one, console)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "arrays.json").write_text(json.dumps(found, indent=1))
    plot(found, RESULTS)


if __name__ == "__main__":
    main()
