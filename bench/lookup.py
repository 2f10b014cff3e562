"""Finding one address among a process's mappings: PROCMAP_QUERY, the text of maps, all of smaps; in turns, one run.

The routes before Linux 6.11 are taken by a child whose newer calls are refused (tests/seccomp.py). What sets the
limit of theirs is the kernel, that writes the text: reading it alone is measured too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
TESTS = Path(__file__).parents[1] / "tests"

CHILD = """
import json, mmap, sys, time
from pathlib import Path
from statistics import median
import numpy as np
import mirrormap as mm
from mirrormap import procmaps
import seccomp

old, count, turns = sys.argv[1] == "old", int(sys.argv[2]), int(sys.argv[3])
if old:
    seccomp.act_like_an_old_kernel()
page = mmap.PAGESIZE
array = np.frombuffer(mmap.mmap(-1, page), "u1")  # not the package's own, whose mappings it knows without looking
address = array.ctypes.data
pages, held = mm.Pages(2 * page), []
while (short := count - procmaps.map_count()) > 0:
    held += [pages.arrange([(page, page), (0, page)]) for _ in range(max(1, short // 3))]
maps, smaps = Path("/proc/self/maps"), Path("/proc/self/smaps")

def looked_up():
    with procmaps.AddressSpace() as space:
        assert space.at(address).start <= address < space.at(address).end

def parsed():
    assert any(vma.start <= address < vma.end for vma in procmaps.parse_smaps(smaps.read_text()))

calls = {"lookup": looked_up, "mirror": lambda: mm.mirror(array), "is_mirror": lambda: mm.is_mirror(array, array)}
if old:
    calls |= {"maps, read only": maps.read_bytes, "smaps, read only": smaps.read_bytes, "smaps, all parsed": parsed}
seen = {name: [] for name in calls}
for _ in range(turns):
    for name, call in calls.items():
        begin = time.perf_counter()
        call()
        seen[name].append(time.perf_counter() - begin)
print(json.dumps({"entries": procmaps.map_count(), "median_s": {name: median(times) for name, times in seen.items()}}))
"""


def measured(route: str, count: int, turns: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, route, str(count), str(turns)],
        env={"PYTHONPATH": str(TESTS)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    told = json.loads(done.stdout)
    return {"entries": told["entries"], **told["median_s"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few turns: does it run?")
    turns = 3 if parser.parse_args().quick else 21
    table = Table("entries", "what", "query, ms", "before 6.11, ms", "µs an entry", "smaps parsed / this")
    kept = {}
    for count in (600, 20_000):
        new, old = measured("new", count, turns), measured("old", count, turns)
        kept[count] = {"query": new, "text": old}
        for what, seconds in old.items():
            if what != "entries":
                table.add_row(
                    f"{old['entries']:,}",
                    what,
                    f"{new[what] * 1e3:.3f}" if what in new else "",
                    f"{seconds * 1e3:.3f}",
                    f"{seconds / old['entries'] * 1e6:.2f}",
                    f"{old['smaps, all parsed'] / seconds:.1f}",
                )
    Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "lookup.json").write_text(json.dumps(kept, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
