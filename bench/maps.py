"""mappings() of a process with 60,000 entries against psutil, and the residency of 10 GiB: one run, in turns."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import mirrormap as mm

RESULTS = Path(__file__).parent / "results"

MANY = """
import mmap, sys, mirrormap as mm
from mirrormap import procmaps
page, held = mmap.PAGESIZE, []
pages = mm.Pages(2 * page)
while (short := int(sys.argv[1]) - procmaps.map_count()) > 0:
    held += [pages.arrange([(page, page), (0, page)], populate=True) for _ in range(max(1, short // 3))]
print("ready", flush=True)
sys.stdin.read()
"""

LARGE = """
import sys, mirrormap as mm
pages = mm.Pages("512MiB")
view = pages.arrange([(0, "512MiB")] * 20, populate=True)
print(view.address, flush=True)
sys.stdin.read()
"""


def started(script: str, *arguments: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline()
    return child


def timed(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few turns: does it run?")
    turns = 2 if parser.parse_args().quick else 7
    console = Console()
    seen: dict[str, list[float]] = {"mappings": [], "mirrors": [], "psutil": [], "residency": []}
    many = large = None
    with Progress(console=console) as progress:
        task = progress.add_task("reading", total=turns)
        try:
            many, large = started(MANY, "60000"), started(LARGE)
            peer, count = psutil.Process(many.pid), len(mm.mappings(many.pid))
            for _ in range(turns):
                seen["mappings"].append(timed(lambda: mm.mappings(many.pid)))
                seen["mirrors"].append(timed(lambda: mm.mirrors(many.pid)))
                seen["psutil"].append(timed(lambda: peer.memory_maps(grouped=False)))
                seen["residency"].append(timed(lambda: mm.mappings(large.pid)))
                progress.advance(task)
            resident = sum(vma.resident or 0 for vma in mm.mappings(large.pid))
        finally:
            for child in (many, large):
                if child is not None:
                    child.kill()
                    child.communicate()
    middle = {name: median(times) for name, times in seen.items()}
    rows = [
        (f"mappings() of {count:,} entries, s", middle["mappings"], "<= 0.5", middle["mappings"] <= 0.5),
        ("psutil memory_maps(grouped=False), s", middle["psutil"], "", None),
        (
            "psutil / mappings()",
            middle["psutil"] / middle["mappings"],
            ">= 5",
            middle["psutil"] >= 5 * middle["mappings"],
        ),
        ("mirrors() of the same, s", middle["mirrors"], "", None),
        (
            f"residency of {resident / 2**30:.1f} GiB, s",
            middle["residency"],
            "<= 0.2",
            middle["residency"] <= 0.2,
        ),
    ]
    table = Table("what", "seen", "goal", "met")
    for what, value, goal, met in rows:
        table.add_row(what, f"{value:.3f}", goal, "" if met is None else "yes" if met else "NO")
    console.print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "maps.json").write_text(json.dumps({"median_s": middle, "all_s": seen}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
