"""mirrormap maps: which memory of a process is mirrored, and what it truly costs."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import Progress

from mirrormap import procfs, ribbons
from mirrormap.cli import maps_table
from mirrormap.errors import MirrorError, ProcessGone
from mirrormap.inspect import Mirrors, mirrors

HELP = "show which memory of a process is mirrored, and what it truly costs"
_PATIENCE_S = 0.2


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "maps",
        help=HELP,
        description=f"{HELP[0].upper()}{HELP[1:]}. Several processes are taken together.",
    )
    parser.add_argument(
        "target", nargs="+", metavar="PID|NAME|self", help="a process, every process of a name, or this one"
    )
    parser.add_argument("--children", action="store_true", help="and the processes they started, and so on")
    parser.add_argument("--watch", action="store_true", help="show it anew every second, until q is pressed")
    parser.add_argument("--json", action="store_true", help="print machine-readable JSON")
    parser.add_argument("--html", metavar="FILE", help="draw it on a page that needs nothing else")
    parser.add_argument("--svg", metavar="FILE", help="draw it as a picture")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Look, and print or draw."""
    written = [name for name in ("json", "html", "svg") if getattr(options, name)]
    if options.watch:
        if written:
            print(f"mirrormap maps: --watch goes without --{written[0]}", file=sys.stderr)
            return 2
        return maps_table.watch(lambda: _look(options, quiet=True))
    found = _look(options)
    try:
        if options.html:
            _write(options.html, ribbons.page(found))
        if options.svg:
            _write(options.svg, ribbons.picture(found))
    except OSError as error:
        raise MirrorError(f"{error.filename}: {error.strerror}") from None
    if options.json:
        print(json.dumps(_as_json(found)))
        for sentence in found.left_out:
            print(f"mirrormap maps: {sentence}", file=sys.stderr)
    elif not written:
        console = Console(highlight=False)
        for part in maps_table.rendered(found):
            console.print(part)
    return 0


def _write(name: str, text: str) -> None:
    if name == "-":
        print(text)
    else:
        Path(name).write_text(text, encoding="utf-8")
        print(f"drawn: {name}", file=sys.stderr)


def _look(options: argparse.Namespace, *, quiet: bool = False) -> Mirrors:
    found: list[int] = []
    for target in options.target:
        found += _processes(target)
    if options.children:
        found += [child for pid in found for child in procfs.descendants(pid)]
    if len(options.target) > 1 or options.children or len(found) > 1:
        with _Waiting(quiet=quiet) as waiting:
            return mirrors(found, progress=waiting)
    with _Waiting(quiet=quiet) as waiting:
        return mirrors(found[0], progress=waiting)


def _processes(target: str) -> list[int]:
    """Raises: ProcessGone where there is none of that name."""
    if target == "self":
        return [os.getpid()]
    if target.isascii() and target.isdecimal():
        if not 0 < int(target) < 1 << 31:
            raise ProcessGone(f"process {target}: there is none")
        return [int(target)]
    found = procfs.named(target)
    if not found:
        raise ProcessGone(f"no process is named {target!r}")
    return found


def _as_json(found: Mirrors) -> dict[str, Any]:
    """Addresses, offsets and sizes in bytes; who shows what only where there are several."""
    several = len(found.processes) > 1
    groups: list[dict[str, Any]] = []
    for group in found:
        views: list[dict[str, int]] = []
        for view in group.views:
            views.append({"start": view.start, "end": view.end, "offset": view.offset})
            if several:
                views[-1]["pid"] = view.pid
        groups.append({"name": group.name, "nbytes": group.nbytes, "views": views})
    return {"groups": groups, "rss": found.rss, "pss": found.pss}


class _Waiting:
    """Progress on the terminal, if reading takes long enough to be noticed."""

    def __init__(self, *, quiet: bool) -> None:
        console = Console(stderr=True)
        self._progress = Progress(console=console, transient=True, disable=quiet or not console.is_terminal)
        self._task = self._progress.add_task("reading page tables", total=None)
        self._begin = time.monotonic()
        self._shown = False

    def __enter__(self) -> Self:
        return self

    def __call__(self, found: int, expected: int) -> None:
        if not self._shown and time.monotonic() - self._begin > _PATIENCE_S:
            self._shown = True
            self._progress.start()
        self._progress.update(self._task, completed=found, total=expected)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._progress.stop()
