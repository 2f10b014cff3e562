"""The last result of each whole cell, kept beside the cells, and the page of the documentation made of them."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from build import ROOT
from cells import CELLS

KEPT = Path(__file__).with_name("last.json")
PAGE = ROOT / "docs" / "explanation" / "matrix.md"
HEAD = """# The matrix

`make matrix` boots kernels of Debian in QEMU, without KVM, and runs the whole test-suite in each, as root and as an ordinary user. It writes this
page: the last result of every cell, with its date and versions. Loops whose length is only a matter of patience (Hypothesis' examples, kills,
messages, rounds of threads) are shorter there, by the factor of the column "effort" (MIRRORMAP_EFFORT; `scaled` in `tests/support.py` gives
each a least number). Every test runs but the two that measure processor time.

| kernel | processor | page, huge page | Python, NumPy | QEMU | date | effort | as | passed | failed | skipped | minutes |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def last() -> dict[str, dict[str, Any]]:
    """What is known of each cell, by its name and by who ran the tests."""
    return json.loads(KEPT.read_text()) if KEPT.exists() else {}


def size(nbytes: int) -> str:
    """4096 as 4 KiB."""
    return f"{nbytes >> 20} MiB" if nbytes >> 20 else f"{nbytes >> 10} KiB"


def rows(results: dict[str, dict[str, Any]]) -> list[str]:
    """One line a cell and user."""
    lines = []
    for cell in CELLS:
        if (known := results.get(cell.name)) is None:
            continue
        for user, run in known.items():
            pools = run["routes"].get("huge_pools", {})
            # of the sizes there are, the one that was reserved is the default
            huge = min((int(nbytes) for nbytes in pools if pools[nbytes]), default=0)
            figures = [
                run["kernel"], cell.arch, f"{size(run['routes']['page_size'])}, {size(huge) if huge else 'none'}",
                run["python"], run["qemu"], run["date"], f"{run['effort']:g}", user,
                *(str(run[what]) for what in ("passed", "failed", "skipped")), str(round(run["seconds"] / 60)),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(figures)} |")
    return lines


def escaped(text: str) -> str:
    """As it may stand in a cell of a table: one line, no bars, nothing that Markdown reads."""
    return re.sub(r"([|_*<>`\[\]])", r"\\\1", " ".join(text.split()))


def reasons(results: dict[str, dict[str, Any]], what: str) -> list[str]:
    """Every reason of a skip (or failure), where it was, and how often."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, known in results.items():
        for user, run in known.items():
            said = run[what] if isinstance(run[what], dict) else dict.fromkeys(run[what], 1)
            for reason, count in said.items():
                found[reason].append(f"{name} {user}{f' {count}' if count > 1 else ''}")
    return [f"| {escaped(reason)} | {'; '.join(places)} |" for reason, places in sorted(found.items())]


def page(results: dict[str, dict[str, Any]]) -> str:
    """The whole page."""
    text = HEAD + "\n".join(rows(results)) + "\n"
    if failures := reasons(results, "failures"):
        text += "\n## Failed\n\n| test | where |\n| --- | --- |\n" + "\n".join(failures) + "\n"
    skips = reasons(results, "skips")
    return (
        f"{text}\n## Skipped, and why\n\n| reason | where, how often |\n| --- | --- |\n"
        + "\n".join(skips)
        + "\n"
    )


def kept(result: dict[str, Any]) -> None:
    """Remember the runs of a cell that came to their end, beside those of others, and write the page anew."""
    how = {key: value for key, value in result.items() if key not in ("cell", "runs", "seconds")}
    how["routes"] = {name: result["routes"][name] for name in ("page_size", "huge_pools")}
    results = last()
    runs = results.get(result["cell"], {}) | {user: how | run for user, run in result["runs"].items()}
    results[result["cell"]] = dict(sorted(runs.items()))
    names = [cell.name for cell in CELLS]
    ordered = {name: results[name] for name in names if name in results}
    KEPT.write_text(json.dumps(ordered, indent=1) + "\n")
    PAGE.write_text(page(ordered))
