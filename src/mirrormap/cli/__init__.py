"""The command line: `mirrormap COMMAND`. One file a command, parsing and printing only."""

from mirrormap.cli.main import main

__all__ = ["main"]
