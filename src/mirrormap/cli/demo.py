"""mirrormap demo: choosing what to show."""

from __future__ import annotations

import argparse
from typing import Any

from mirrormap.cli import demo_arrays, demo_channel, demo_heap, demo_memory, demo_ring

HELP = "show mirrored memory at work on real input"


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo", help=HELP, description="Show mirrored memory at work; without a name: memory."
    )
    parser.set_defaults(run=demo_memory.run)
    shows = parser.add_subparsers(metavar="NAME")
    for show in (demo_memory, demo_ring, demo_channel, demo_arrays, demo_heap):
        show.add_parser(shows)
