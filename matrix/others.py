"""Other people's tests beside ours: the kernel's selftests here and in guests, CPython's and NumPy's on our memory.

    make others                                  everything
    make others KERNEL=6.1                       the guests of one kernel
    python matrix/others.py --only cpython numpy       some parts: here, guests, cpython, numpy

Needs root on a Debian machine for the guests. A failure that `explained.py` does not explain is an error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import build
import debian
import explained
import guest
import selftests
from cells import CELLS, Cell
from cells import SUITES as PYTHONS
from rich.console import Console
from rich.table import Table
from run import fetched
from selftests import Outcome

RESULTS = build.ROOT / "build" / "matrix" / "others"
PARTS = ("here", "guests", "cpython", "numpy")
SUITES = build.ROOT / "tests" / "others"
Said = dict[str, Outcome]


def here() -> Said:
    """The selftests that leave the machine alone, on its own kernel."""
    folder = selftests.built("amd64")
    command = ["bash", "-c", selftests.script(str(folder), here=True)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    (RESULTS / "here.log").write_text(done.stdout)
    return selftests.outcomes(done.stdout, folder)


def cells(kernel: str) -> list[Cell]:
    """One cell for each kernel and processor."""
    first: dict[tuple[str, str, str], Cell] = {}
    for cell in CELLS:
        if kernel in ("", cell.kernel):
            first.setdefault((cell.kernel, cell.arch, cell.pages), cell)
    return list(first.values())


def inside(cell: Cell) -> tuple[str, Said]:
    """The release of a guest's kernel, and what all the selftests said there, as root."""
    kernel, root, _ = fetched(cell)
    folder = selftests.built(cell.arch)
    huge = "" if cell.arch == "s390x" else "hugepages=" + ("8" if cell.pages == "16k" else "64")
    command = f"uname -r\nchmod -R a+rX /t\n{selftests.script('/t', here=False)}"
    outcome = guest.boot(kernel, root, cell.arch, folder, command, append=huge)
    (RESULTS / f"{cell.kernel}-{cell.arch}-{cell.pages}.log").write_text(outcome.output)
    if outcome.status is None:
        raise debian.UnavailableError(f"the guest did not end by itself: {outcome.output[-500:]}")
    return outcome.output.partition("\n")[0], selftests.outcomes(outcome.output, folder)


def tried(cell: Cell) -> tuple[str, Said | str]:
    """inside(), or why there is nothing."""
    try:
        return inside(cell)
    except (debian.UnavailableError, OSError) as error:
        return cell.kernel, str(error)


def python_tests() -> Path | None:
    """A folder with this Python's own tests, from Debian's package of the same release; None: they are installed.

    Raises: UnavailableError.
    """
    asked = subprocess.run([sys.executable, "-c", "import test.test_mmap"], capture_output=True)
    if asked.returncode == 0:
        return None
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = debian.CACHE / "testsuite" / version
    for suite in () if folder.is_dir() else PYTHONS.get(version, ()):
        with contextlib.suppress(debian.UnavailableError), tempfile.TemporaryDirectory() as scratch:
            environment = debian.apt_of(suite, "amd64")
            package = debian.download(f"libpython{version}-testsuite", environment, Path(scratch))
            folder.parent.mkdir(parents=True, exist_ok=True)
            debian.run("dpkg-deb", "--extract", package, folder)
            break
    if not folder.is_dir():
        raise debian.UnavailableError(
            f"Python {version} has no tests installed, and Debian no package of them"
        )
    return folder / f"usr/lib/python{version}"


def adapted(suite: str) -> Said:
    """What a suite of CPython or NumPy says on our memory, by the program that adapts it."""
    command = [sys.executable, SUITES / "suites.py", suite]
    environment = {**os.environ}
    if suite == "cpython" and (folder := python_tests()):
        environment["MIRRORMAP_TESTSUITE"] = str(folder)
    done = subprocess.run(command, capture_output=True, text=True, cwd=tempfile.gettempdir(), env=environment)
    (RESULTS / f"{suite}.log").write_text(done.stdout + done.stderr)
    try:
        return {name: Outcome(**fields) for name, fields in json.loads(done.stdout.splitlines()[-1]).items()}
    except (json.JSONDecodeError, IndexError):
        raise debian.UnavailableError(f"{suite}: {done.stderr[-1000:]}") from None


def figures(outcome: Outcome | None) -> str:
    """passed / failed / skipped, short."""
    if outcome is None:
        return ""
    if outcome.status is None:
        return "not built"
    counts = len(outcome.passed), len(outcome.failed), len(outcome.skipped)
    return (
        f"{counts[0]}"
        + (f", {counts[1]} failed" if counts[1] else "")
        + (f", {counts[2]} skipped" if counts[2] else "")
    )


def shown(columns: dict[str, Said]) -> Table:
    """A row for each program, a column for each kernel."""
    table = Table("program", *columns, title="passed, failed, skipped")
    for name in dict.fromkeys(name for said in columns.values() for name in said):
        table.add_row(name, *(figures(said.get(name)) for said in columns.values()))
    return table


def remarks(where: str, said: Said) -> tuple[list[str], bool]:
    """A line for every failure and skip with its reason, and whether one has none."""
    lines, unexplained = [], False
    for name, outcome in said.items():
        if outcome.status is None:
            lines.append(f"{where}: {name}: {outcome.reason}")
        known: list[str] = []
        for case in outcome.failed:
            why = outcome.explained.get(case) or explained.why(where, name, case)
            if why is None:
                unexplained = True
                lines.append(f"{where}: {name}: {case}: FAILED: {outcome.words.get(case, '')}")
            else:
                known.append(why)
        lines += [f"{where}: {name}: {count} failed: {why}" for why, count in Counter(known).items()]
        skips = Counter(outcome.skipped.values())
        lines += [f"{where}: {name}: {count} skipped: {reason}" for reason, count in skips.items()]
    return lines, unexplained


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--kernel", default=os.environ.get("KERNEL", ""))
    return parser.parse_args()


def gathered(options: argparse.Namespace, console: Console) -> tuple[dict[str, Said], list[str]]:
    """The columns of the table, and what could not be had."""
    columns: dict[str, Said] = {}
    troubles: list[str] = []
    wanted: dict[str, Any] = {
        "here": here,
        "cpython": lambda: adapted("cpython"),
        "numpy": lambda: adapted("numpy"),
    }
    for part, make in wanted.items():
        if part in options.only:
            with console.status(part):
                try:
                    columns[os.uname().release if part == "here" else part] = make()
                except debian.UnavailableError as error:
                    troubles.append(f"{part}: {error}")
    if "guests" in options.only:
        chosen = cells(options.kernel)
        for cell in chosen:  # one after another: they share caches
            try:
                fetched(cell)
                selftests.built(cell.arch)
            except debian.UnavailableError:
                pass
        with console.status("guests"), ThreadPoolExecutor(2) as pool:
            for cell, (release, said) in zip(chosen, pool.map(tried, chosen), strict=True):
                name = f"{release} {cell.arch} {cell.pages}"
                if isinstance(said, str):
                    troubles.append(f"{name}: {said}")
                else:
                    columns[name] = said
    return columns, troubles


def main() -> int:
    """Run the parts, print the tables. Returns: 1 if there is a failure without an explanation."""
    options = arguments()
    console = Console()
    RESULTS.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    columns, troubles = gathered(options, console)
    kernels = {name: said for name, said in columns.items() if name not in PARTS}
    if kernels:
        console.print(f"selftests of {selftests.release()}")
        console.print(shown(kernels))
    for part in ("cpython", "numpy"):
        if part in columns:
            console.print(shown({part: columns[part]}))
    failed = bool(troubles)
    for where, said in columns.items():
        lines, unexplained = remarks(where, said)
        failed |= unexplained
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    for line in troubles:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    told = {
        where: {name: asdict(outcome) for name, outcome in said.items()} for where, said in columns.items()
    }
    (RESULTS / "results.json").write_text(json.dumps(told, indent=1))
    console.print(f"{time.monotonic() - begun:.0f} s; logs in {Path(os.path.relpath(RESULTS, build.ROOT))}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
