"""Ratios against C programs that make the same system calls, measured side by side in one run.

Every figure is the median of many rounds, the two sides taking turns, so that a machine whose speed
drifts drifts for both. See bench/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from multiprocessing import shared_memory
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import mirrormap as mm
from mirrormap import procmaps

HERE = Path(__file__).parent
RESULTS = HERE / "results"
MIB = 1 << 20
Row = tuple[str, float, str, float, bool]


class Bench:
    """Builds the C programs, runs comparisons, and keeps the rows."""

    def __init__(self, folder: Path, turns: int, progress: Progress) -> None:
        self.folder, self.turns, self.progress = folder, turns, progress
        self.rows: list[Row] = []
        self.task = progress.add_task("building", total=None)
        self.c_ring = self._built("c_ring", ctypes.c_size_t, ctypes.c_int)
        self.c_mirror = self._built("c_mirror", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_char)

    def _built(self, name: str, *arguments: Any) -> Callable[..., float]:
        """The function of that name in the C file of that name."""
        target = str(self.folder / f"{name}.so")
        command = ["cc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run([*command, str(HERE / f"{name}.c"), "-o", target], check=True)
        function = getattr(ctypes.CDLL(target), name)
        function.argtypes, function.restype = arguments, ctypes.c_double
        return function  # type: ignore[no-any-return]

    def compare(self, *sides: Callable[[], list[float]], turns: int = 1) -> list[float]:
        """Medians of the sides, which take turns: `turns` times as many as usual."""
        seen: list[list[float]] = [[] for _ in sides]
        for _ in range(self.turns * turns):
            for index, side in enumerate(sides):
                seen[index] += side()
            self.progress.advance(self.task)
        return [median(times) for times in seen]

    def row(self, what: str, ratio: float, limit: str, goal: float, *, at_least: bool = False) -> None:
        """Keep one result: `ratio` should be at most, or at least, `goal`."""
        self.rows.append((what, ratio, limit, goal, ratio >= goal if at_least else ratio <= goal))
        self.progress.console.print(f"{what}: {ratio:.2f}")


def timed(
    rounds: int, act: Callable[[], Any], undo: Callable[[Any], None] | None = None
) -> Callable[[], list[float]]:
    """Rounds of a Python call, in seconds; `undo` is not counted."""

    def run() -> list[float]:
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            made = act()
            times.append(time.perf_counter() - start)
            if undo is not None:
                undo(made)
        return times

    return run


def ring(nbytes: int, populate: bool) -> None:
    with mm.Pages(nbytes, name="bench") as pages:
        pages.arrange([(0, nbytes), (0, nbytes)], populate=populate).close()


def creation(bench: Bench) -> None:
    def against_c(nbytes: int, populate: bool, rounds: int, turns: int) -> float:
        ours, theirs = bench.compare(
            timed(rounds, lambda: ring(nbytes, populate)),
            lambda: [bench.c_ring(nbytes, populate) for _ in range(rounds)],
            turns=turns,
        )
        return ours / theirs

    bench.row("two views of 64 KiB, made and closed / C", against_c(64 << 10, False, 20, 20), "<=", 2.0)
    for nbytes, rounds, turns in ((2 * MIB, 1, 80), (32 * MIB, 1, 8), (256 * MIB, 1, 2)):
        ratio = against_c(nbytes, True, rounds, turns)
        bench.row(f"two populated views of {nbytes // MIB} MiB / C", ratio, "<=", 1.05)


@contextlib.contextmanager
def huge_pages(nbytes: int) -> Generator[int | None]:
    """Enough huge pages of the default size, given back afterwards; None where they cannot be had."""
    page = procmaps.default_huge_nbytes()
    if page is None:
        yield None
        return
    pool = procmaps.huge_pool(page)
    try:
        Path(pool.path).write_text(str(pool.total + nbytes // page))
        yield page if procmaps.huge_pool(page).available >= nbytes // page else None
    except PermissionError:
        yield None
    finally:
        with contextlib.suppress(OSError):
            Path(pool.path).write_text(str(pool.total))


def mirrors(bench: Bench) -> None:
    nbytes = 256 * MIB
    block = shared_memory.SharedMemory(create=True, size=nbytes)
    assert block.buf is not None
    sources: dict[str, Any] = {
        "mmap": mmap.mmap(-1, nbytes),
        "SharedMemory": block,
        "Pages": mm.Pages(nbytes).map(),
    }
    ratios = []
    for name, source in sources.items():
        filled = np.frombuffer(block.buf if name == "SharedMemory" else source, "u1")
        filled[:] = 1
        address = filled.ctypes.data
        del filled
        fd = descriptor(address)

        def c(route: bytes, address: int = address, fd: int = fd) -> Callable[[], list[float]]:
            return lambda: [bench.c_mirror(address, nbytes, fd, route) for _ in range(3)]

        ours, alias, mapped, touched = bench.compare(
            timed(3, lambda source=source: mm.mirror(source, populate=True), lambda view: view.close()),
            *(c(route) for route in (b"a", b"m", b"t")),
        )
        os.close(fd)
        bench.row(
            f"populated mirror of 256 MiB of {name} / C's best route", ours / min(alias, mapped), "<=", 1.1
        )
        ratios.append(touched / ours)
    bench.row(
        "touching 256 MiB for write, page by page / populated mirror", min(ratios), ">=", 5.0, at_least=True
    )
    block.close()
    block.unlink()
    with huge_pages(nbytes) as page:
        if page is None:
            bench.progress.console.print("[yellow]no huge pages can be reserved: their row is left out[/]")
            return
        with mm.Pages(nbytes, page_size=page) as pages, pages.map(populate=True) as view:
            small = sources["Pages"]
            huge, ordinary = bench.compare(
                timed(20, lambda: view.mirror(populate=True), lambda made: made.close()),
                timed(3, lambda: small.mirror(populate=True), lambda made: made.close()),
            )
        bench.row(
            "populated mirror of 256 MiB, 4 KiB pages / huge pages",
            ordinary / huge,
            ">=",
            50.0,
            at_least=True,
        )


def descriptor(address: int) -> int:
    """An open descriptor of the object mapped at an address, for C's mmap (root: map_files)."""
    with procmaps.AddressSpace() as space:
        vma = space.at(address)
    assert vma is not None
    return procmaps.map_file(vma, os.O_RDWR)


MANY = """
import mmap, sys, time, mirrormap as mm
from mirrormap import procmaps
pages = mm.Pages(2 * mmap.PAGESIZE)
page, held = mmap.PAGESIZE, []
while procmaps.map_count() < int(sys.argv[1]):
    held += [pages.arrange([(page, page), (0, page)]) for _ in range(max(1, (int(sys.argv[1]) - procmaps.map_count()) // 3))]
source = mmap.mmap(-1, 65536)
for _ in range(int(sys.argv[2])):
    start = time.perf_counter()
    view = mm.mirror(source)
    print(time.perf_counter() - start)
    view.close()
"""


def many_mappings(bench: Bench) -> None:
    def process(count: int) -> Callable[[], list[float]]:
        command = [sys.executable, "-c", MANY, str(count), "2000"]
        return lambda: [float(line) for line in subprocess.check_output(command, text=True).split()]

    crowded, roomy = bench.compare(process(50_000), process(100))
    bench.row("mirror of 64 KiB among 50,000 mappings / among 100", crowded / roomy, "<=", 1.2)


def imports(bench: Bench) -> None:
    def fresh(module: str) -> Callable[[], list[float]]:
        script = f"import time; s = time.perf_counter(); import {module}; print(time.perf_counter() - s)"
        command = [sys.executable, "-c", script]
        return lambda: [float(subprocess.check_output(command, text=True)) for _ in range(3)]

    ours, numpys = bench.compare(fresh("mirrormap"), fresh("numpy"))
    bench.row("import mirrormap beyond NumPy's own, ms", (ours - numpys) * 1e3, "<=", 30.0)


def report(rows: list[Row], console: Console) -> None:
    """The table on the terminal, and as JSON and Markdown under results/."""
    table = Table("what", "seen", "goal", "met")
    lines = ["| what | seen | goal | met |", "| --- | --- | --- | --- |"]
    for what, ratio, limit, goal, met in rows:
        cells = (what, f"{ratio:.2f}", f"{limit} {goal:g}", "yes" if met else "NO")
        table.add_row(*cells)
        lines.append(f"| {' | '.join(cells)} |")
    console.print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "core.md").write_text("\n".join(lines) + "\n")
    fields = ("what", "seen", "limit", "goal", "met")
    kernel = os.uname().release
    found = {"kernel": kernel, "rows": [dict(zip(fields, row, strict=True)) for row in rows]}
    (RESULTS / "core.json").write_text(json.dumps(found, indent=2))


def main() -> int:
    """Run every comparison. Exit status 0 unless something could not be run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few turns: does it run?")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder, Progress(console=console) as progress:
        bench = Bench(Path(folder), 3 if options.quick else 15, progress)
        for part in (creation, mirrors, many_mappings, imports):
            progress.update(bench.task, description=part.__name__)
            part(bench)
    report(bench.rows, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
