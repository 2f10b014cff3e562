"""Choosing the command."""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import sys
from collections.abc import Sequence

from mirrormap.cli import check, demo, maps
from mirrormap.errors import MirrorError


@functools.cache
def version() -> str:
    """As the package's metadata says."""
    return importlib.metadata.version("mirrormap")


def parser() -> argparse.ArgumentParser:
    """The whole command line, for the program and for the test that compares the manual with it."""
    top = argparse.ArgumentParser(
        prog="mirrormap",
        description="Mirrored memory: the same physical pages at two or more virtual addresses.",
    )
    top.add_argument("--version", action="version", version=f"mirrormap {version()}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (check, demo, maps):
        command.add_parser(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns: the exit status."""
    options = parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except MirrorError as error:
        print(f"mirrormap: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status
