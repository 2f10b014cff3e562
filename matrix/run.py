"""Boots kernels of other versions, page sizes and processors, and runs the tests inside, as root and as a user.

    make matrix                              every cell
    make matrix KERNEL=6.1 PAGES=16k PYTHON=3.13     those that fit
    make matrix KERNEL=6.1 AS=user           as root or as a user only: a whole suite takes an hour or more
    python matrix/run.py --short             those of every run of the checks, with the tests that ask the kernel most

A processor is emulated some ten times slower: rounds whose number is a matter of patience are fewer there, by --effort
(tests/support.py, `scaled`). What a cell's whole suite ended with goes into the documentation (record.py).
Needs root on a Debian machine: packages come from its own archive, and are cached outside the tree.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import build
import debian
import guest
import record
from cells import CELLS, SUITES, Cell
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

RESULTS = build.ROOT / "build" / "matrix" / "results"
WHOLE = "tests"
SYSCTL = "tests/unit/test_sysctl.py::test_"  # only a guest may set what they set; the others of that file take minutes
SHORT = (
    "tests/kernel tests/unit/test_mapping.py tests/unit/test_mapping_lifetime.py "
    f"{SYSCTL}strict_overcommit_counts_pages_as_they_come_and_mirrors_never "
    f"'{SYSCTL}no_scope_of_yama_hides_or_forbids_anything_here[3-1000]'"
)
EFFORT = 0.1
VERSIONS = "import platform, numpy; print(platform.python_version(), numpy.__version__, sep=', ')"
USERS = {"root": "", "user": "setpriv --reuid=1000 --regid=1000 --clear-groups --inh-caps=-all "}
IN_GUESTS = ["util-linux", "procps", "python3-psutil"]  # what tests run and compare with
FAILED = ("failure", "error")
PREPARING = threading.Lock()  # cells of one processor or Python build and unpack into the same folders


def script(tests: str, effort: float, users: list[str]) -> str:
    """What a guest runs: the routes it takes, and the tests as root, as somebody else, or both."""
    lines = [
        "export PYTHONPATH=/t/site PYTHONDONTWRITEBYTECODE= NO_COLOR=1 HYPOTHESIS_PROFILE=emulated MIRRORMAP_GUEST=1",
        f"export MIRRORMAP_EFFORT={effort}",
        "chmod -R a+rX /t",
        "cp -r /t/site/mirrormap-*.data/data/. /usr/",
    ]
    lines += [
        "echo @@ROUTES@@",
        "uname -r",
        f'python3 -c "{VERSIONS}"',
        "python3 -m mirrormap check --json",
        "echo @@END@@",
    ]
    for user in users:
        # in an unpacked root nobody has a name, and pytest would give both the same folder
        options = f"-q -p no:cacheprovider -m 'not timing' --timeout 900 --junitxml /tmp/{user}.xml"
        # faulthandler reads the frames of threads that run, and may crash there; pytest-timeout does not
        options += f" --basetemp /tmp/of-{user} -o faulthandler_timeout=0"
        lines += [f"echo @@RUN {user}@@", f"{USERS[user]}python3 -m pytest {options} {tests}"]
        lines += [f"echo; echo @@JUNIT {user}@@", f"cat /tmp/{user}.xml 2>/dev/null", "echo; echo @@END@@"]
    return "\n".join(lines)


def part(output: str, mark: str) -> str:
    """What stands between a mark and the next end."""
    found = re.search(rf"^@@{mark}@@\n(.*?)\n?^@@END@@$", output, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def counted(xml: str) -> dict[str, Any]:
    """passed, failed, skipped of one JUnit report, the reasons, and the names of what failed."""
    cases = list(ET.fromstring(xml).iter("testcase"))
    skips: dict[str, int] = {}
    failures = []
    for case in cases:
        skip = case.find("skipped")
        if skip is not None:
            reason = str(skip.get("message"))
            skips[reason] = skips.get(reason, 0) + 1
        # an element without children is false, so it is asked for by identity
        trouble = next((found for kind in FAILED if (found := case.find(kind)) is not None), None)
        if trouble is not None:
            failures.append(
                f"{case.get('classname')}::{case.get('name')}: {str(trouble.get('message'))[:300]}"
            )
    skipped = sum(skips.values())
    return {
        "passed": len(cases) - skipped - len(failures),
        "failed": len(failures),
        "skipped": skipped,
        "skips": skips,
        "failures": failures,
        "seconds": sum(float(suite.get("time", 0)) for suite in ET.fromstring(xml).iter("testsuite")),
    }


def first(of: tuple[str, ...], make: Any) -> Any:
    """The first of several suites that has it."""
    for number, suite in enumerate(of):
        try:
            return make(suite)
        except debian.UnavailableError:
            if number == len(of) - 1:
                raise
    raise AssertionError


def fetched(cell: Cell) -> tuple[Path, Path, str]:
    """The kernel, the root and the suite of the root."""
    kernel: Path = first(cell.suites, lambda suite: debian.kernel(suite, cell.pattern, cell.arch))
    with_numpy = [] if cell.arch in build.WHEELS else ["python3-numpy"]
    suite, root = first(
        SUITES[cell.python], lambda name: (name, debian.root(name, cell.arch, [*IN_GUESTS, *with_numpy]))
    )
    return kernel, root, suite


def boot(
    cell: Cell, source: tuple[Path, Path, str], wheel: Path, command: str, progress: Progress, bar: TaskID
) -> dict[str, Any]:
    """Run one cell. Returns: what is known of it."""
    kernel, root, suite = source

    def watch(text: str) -> None:
        percents = re.findall(r"\[ *(\d+)%\]", text)
        runs = text.count("@@RUN ")
        done = 50 * max(0, runs - 1) + (int(percents[-1]) / 2 if percents and runs else 0)
        progress.update(bar, completed=min(100, done))

    with tempfile.TemporaryDirectory() as scratch:
        with PREPARING:
            work = build.work(Path(scratch) / "work", cell.arch, suite, cell.python, wheel)
        huge = "" if cell.arch == "s390x" else "hugepages=" + ("8" if cell.pages == "16k" else "64")
        # tests make mappings by the ten thousand, of a page each
        memory = 6144 if cell.pages == "64k" else 3072
        outcome = guest.boot(
            kernel, root, cell.arch, work, command, memory_mib=memory, append=huge, watch=watch
        )
    (RESULTS / f"{cell.name}.log").write_text(outcome.output)
    result: dict[str, Any] = {"cell": cell.name, "seconds": round(outcome.seconds), "runs": {}}
    routes = part(outcome.output, "ROUTES")
    result["kernel"], result["python"], checks = (*routes.split("\n", 2), "", "")[:3]
    result["routes"] = json.loads(checks) if checks.startswith("{") else {}
    for user in USERS:
        if xml := part(outcome.output, f"JUNIT {user}"):
            (RESULTS / f"{cell.name}-{user}.xml").write_text(xml)
            result["runs"][user] = counted(xml)
    progress.update(bar, completed=100)
    return result


def tried(cell: Cell, source: tuple[Path, Path, str] | str, *rest: Any) -> dict[str, Any]:
    """boot(), or why there is nothing to boot, or what went wrong on the way to it."""
    nothing: dict[str, Any] = {"cell": cell.name, "seconds": 0, "runs": {}}
    if isinstance(source, str):
        return {**nothing, "unavailable": source}
    try:
        return boot(cell, source, *rest)
    except (debian.UnavailableError, OSError, ET.ParseError) as error:
        return {**nothing, "trouble": str(error)}


def table(results: list[tuple[Cell, dict[str, Any]]], effort: float, users: list[str]) -> Table:
    """Kernel, pages, Python, and what became of the tests as whom."""
    title = f"matrix, {datetime.now(UTC):%Y-%m-%d}, MIRRORMAP_EFFORT={effort:g}"
    shown = Table("kernel", "pages", "Python", "as", "passed", "failed", "skipped", "seconds", title=title)
    for cell, result in results:
        for user in users:
            run = result["runs"].get(user)
            figures = (
                [str(run[what]) for what in ("passed", "failed", "skipped")]
                if run
                else ["-", "no report", "-"]
            )
            shown.add_row(
                f"{result.get('kernel', cell.kernel)} {cell.arch}",
                cell.pages,
                cell.python,
                user,
                *figures,
                str(result["seconds"]),
            )
    return shown


def arguments() -> argparse.Namespace:
    """What was asked for, by option or by variable of make."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--needs", action="store_true", help="print the Debian packages that are missing")
    parser.add_argument("--short", action="store_true", help="the cells and tests of every run of the checks")
    parser.add_argument("--kernel", default=os.environ.get("KERNEL", ""))
    parser.add_argument("--pages", default=os.environ.get("PAGES", ""))
    parser.add_argument("--python", default=os.environ.get("PYTHON", ""))
    parser.add_argument("--as", dest="users", default=os.environ.get("AS") or ",".join(USERS))
    parser.add_argument("--tests", default="", help="paths of tests instead of the usual ones")
    parser.add_argument("--at-once", type=int, default=2, help="guests that run at a time")
    parser.add_argument("--effort", type=float, default=float(os.environ.get("EFFORT") or EFFORT))
    return parser.parse_args()


def chosen(options: argparse.Namespace) -> list[Cell]:
    """The cells that fit what was asked for."""
    return [
        cell
        for cell in CELLS
        if (cell.short or not options.short)
        and options.kernel in ("", cell.kernel)
        and options.pages in ("", cell.pages)
        and options.python in ("", cell.python)
    ]


def main() -> int:
    """Boot the chosen cells and print what became of their tests. Returns: 1 if any failed."""
    options = arguments()
    console = Console()
    if options.needs:
        print(*debian.missing_tools(set(debian.NEEDED)))
        return 0
    cells, users = chosen(options), options.users.split(",")
    if unknown := set(users) - USERS.keys():
        console.print(f"--as {', '.join(sorted(unknown))}: nobody of that name; there are {', '.join(USERS)}")
        return 2
    if not cells:
        console.print("no cell fits; there are:", *(cell.name for cell in CELLS), sep="\n  ")
        return 2
    if missing := debian.missing_tools(set(debian.NEEDED)):
        console.print(f"missing: apt-get install {' '.join(missing)}")
        return 2
    RESULTS.mkdir(parents=True, exist_ok=True)
    command = script(options.tests or (SHORT if options.short else WHOLE), options.effort, users)
    begun = time.monotonic()
    columns = TextColumn("{task.description:<32}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(options.at_once) as pool:
        setup = progress.add_task("kernels and roots", total=len(cells))
        sources: dict[Cell, tuple[Path, Path, str] | str] = {}
        for cell in cells:  # one after another: they share caches
            try:
                sources[cell] = fetched(cell)
            except debian.UnavailableError as error:
                sources[cell] = str(error)
            progress.advance(setup)
        wheel = build.wheel()
        jobs = {
            pool.submit(
                tried, cell, sources[cell], wheel, command, progress, progress.add_task(cell.name, total=100)
            ): cell
            for cell in cells
        }
        for job in as_completed(jobs):
            if job.result()["runs"] and not (options.tests or options.short):
                how = {"qemu": guest.version(jobs[job].arch), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
                record.kept({**job.result(), **how, "effort": options.effort})
        results = [(cell, job.result()) for job, cell in jobs.items()]
    console.print(table(results, options.effort, users))
    lines, failed = [], False
    for cell, result in results:
        for user in users:
            run = result["runs"].get(user, {"failed": 0, "skips": {}, "failures": []})
            failed |= bool(run["failed"])
            lines += [
                f"{cell.name} as {user}: {count} skipped: {why}"
                for why, count in sorted(run["skips"].items())
            ]
            lines += [f"{cell.name} as {user}: FAILED {name}" for name in run["failures"]]
        if "unavailable" in result:
            lines.append(f"{cell.name}: the archive has no such kernel or root: {result['unavailable']}")
        elif len(result["runs"]) < len(users):
            failed = True
            lines.append(
                f"{cell.name}: no report: {result.get('trouble', 'the guest did not end by itself')}"
            )
    for line in lines:
        console.print(line, markup=False, highlight=False)
    (RESULTS / "results.json").write_text(json.dumps([result for _, result in results], indent=1))
    console.print(f"{time.monotonic() - begun:.0f} s; reports and logs in {RESULTS.relative_to(build.ROOT)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
