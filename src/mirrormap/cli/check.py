"""mirrormap check: what works on this machine, and what would make the rest work."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from mirrormap.capabilities import Capabilities, probe
from mirrormap.units import format_nbytes

HELP = "show what this kernel and this user can do, found by doing it"


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "check",
        help=HELP,
        description=f"{HELP[0].upper()}{HELP[1:]}. Exit status 0 when memory can be mirrored.",
    )
    parser.add_argument("--json", action="store_true", help="print machine-readable JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Probe and print."""
    found = probe()
    if options.json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        _print(found, Console())
    return 0 if found.works else 1


def _print(found: Capabilities, console: Console) -> None:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in found.checks:
        mark = "[green]yes[/]" if check.ok else "[yellow]no[/]"
        table.add_row(mark, check.name, check.detail)
    table.add_row("", "address space (RLIMIT_AS)", _limit(found.address_space))
    table.add_row("", "locked memory (RLIMIT_MEMLOCK)", _limit(found.locked_memory))
    table.add_row("", "refused system calls", ", ".join(found.refused) or "none")
    console.print(f"Linux {found.kernel}, {format_nbytes(found.page_size)} pages", highlight=False)
    console.print(table, highlight=False)
    missing = [check for check in found.checks if not check.ok and check.cure]
    if missing:
        console.print("\nTo get what is missing:", highlight=False)
        for check in missing:
            console.print(f"  {check.name}: {check.cure}", highlight=False, markup=False, soft_wrap=True)
    verdict = (
        "[green]Memory can be mirrored here.[/]" if found.works else "[red]Memory cannot be mirrored here.[/]"
    )
    console.print(f"\n{verdict}")


def _limit(nbytes: int | None) -> str:
    return "unlimited" if nbytes is None else format_nbytes(nbytes)
