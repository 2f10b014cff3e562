"""mirrormap maps on the terminal: the table, and the table again every second."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mirrormap.errors import MirrorError
from mirrormap.inspect import Footprint, MirrorGroup, Mirrors
from mirrormap.ribbons import title_of
from mirrormap.units import format_nbytes

_MOST_GROUPS = 24
_MOST_PLACES = 3
_MOST_PROCESSES = 12
_EVERY_S = 1.0


def rendered(found: Mirrors) -> Iterator[RenderableType]:
    """What the terminal shows, from top to bottom."""
    yield _costs(found)
    extra = found.overcounted
    if extra:
        yield Text(
            f"{format_nbytes(extra)} of RSS are second and later views of the same pages: "
            f"without them {format_nbytes(found.rss - extra)}.",
            style="bold",
        )
    if found.groups:
        yield Text()
        yield _groups(found)
    else:
        yield Text("No memory is shown more than once.")
    rest = found.groups[_MOST_GROUPS:]
    if rest:
        nbytes = sum(group.nbytes for group in rest)
        yield Text(f"and {len(rest):,} smaller ones, {format_nbytes(nbytes)} together", style="dim")
    for sentence in found.left_out:
        yield Text(f"Not shown: {sentence}.", style="yellow")


def _costs(found: Mirrors) -> RenderableType:
    if len(found.processes) == 1:
        (cost,) = found.processes
        figures = (f"{name} {_size(nbytes)}" for name, nbytes in _figures(cost).items() if nbytes != 0)
        used = f"{cost.vmas:,} of {cost.max_map_count:,} mappings"
        return Text.assemble(
            (f"{_printable(cost.name)} {cost.pid}", "bold"), ": ", ", ".join((*figures, used))
        )
    sums = _sums(found.processes)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("process", overflow="fold")
    shown = [name for name, nbytes in sums.items() if nbytes != 0]
    for name in (*shown, "mappings"):
        table.add_column(name, justify="right", no_wrap=True)

    def row(title: str, costs: Sequence[Footprint], style: str = "") -> None:
        figures = _sums(costs)
        cells = (_size(figures[name]) for name in shown)
        table.add_row(title, *cells, f"{sum(cost.vmas for cost in costs):,}", style=style)

    for cost in found.processes[:_MOST_PROCESSES]:
        row(f"{_printable(cost.name)} {cost.pid}", [cost])
    rest = found.processes[_MOST_PROCESSES:]
    if rest:
        row(f"and {len(rest)} more", rest)
    row("together", found.processes, "bold")
    return table


def _figures(cost: Footprint) -> dict[str, int | None]:
    return {
        "RSS": cost.rss, "PSS": cost.pss, "USS": cost.uss, "swap": cost.swap, "huge pages": cost.huge,
        "hugetlb": cost.hugetlb, "page tables": cost.page_tables,
    }  # fmt: skip


def _sums(costs: Sequence[Footprint]) -> dict[str, int | None]:
    """Each figure of several processes together; None where one of them is not known."""
    total: dict[str, int | None] = dict.fromkeys(_figures(costs[0]), 0)
    for cost in costs:
        for name, nbytes in _figures(cost).items():
            before = total[name]
            total[name] = None if before is None or nbytes is None else before + nbytes
    return total


def _size(nbytes: int | None) -> str:
    if nbytes is None:
        return "?"
    return "-" if nbytes == 0 else format_nbytes(nbytes)


def _groups(found: Mirrors) -> Table:
    several = len(found.processes) > 1
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("memory", overflow="fold", ratio=2)
    for heading in ("true size", "resident", "in RSS", "views"):
        table.add_column(heading, justify="right", no_wrap=True)
    if several:
        table.add_column("processes", justify="right", no_wrap=True)
    table.add_column("where", overflow="fold", ratio=3)
    for group in found.groups[:_MOST_GROUPS]:
        figures = [_size(group.nbytes), _size(group.resident), _size(group.rss), f"{len(group.views):,}"]
        if several:
            figures.append(f"{len({view.pid for view in group.views}):,}")
        table.add_row(Text(_printable(title_of(group))), *figures, _places(group, several))
    return table


def _places(group: MirrorGroup, several: bool) -> Text:
    """Where the first few views are, a line each."""
    lines: list[str] = []
    for view in group.views[:_MOST_PLACES]:
        whose = f" in {view.pid}" if several else ""
        pieces = f", {view.pieces:,} pieces" if view.pieces > 1 else ""
        private = "" if view.shared or group.kind != "object" else ", private"
        lines.append(f"{view.start:#x}-{view.end:x} {view.protection}{private}{pieces}{whose}")
    if len(group.views) > _MOST_PLACES:
        lines.append(f"and {len(group.views) - _MOST_PLACES:,} more")
    return Text("\n".join(lines), style="dim")


def _printable(name: str) -> str:
    """A name without what would move the cursor or cannot be printed."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


# --- live ----------------------------------------------------------------------------------


@contextmanager
def _keys() -> Generator[Callable[[float], str]]:
    """Single keys from the terminal, and the terminal as it was afterwards."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)

        def key(seconds: float) -> str:
            ready, _, _ = select.select([fd], [], [], seconds)
            if not ready:
                return ""
            return os.read(fd, 1).decode(errors="replace") or "q"  # the end of input is a wish to leave

        yield key
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def watch(look: Callable[[], Mirrors]) -> int:
    """Show `look()` every second until q is pressed.

    Raises: MirrorError without a terminal, and ProcessGone when the process ends.
    """
    console = Console(highlight=False)
    if not (sys.stdin.isatty() and console.is_terminal):
        raise MirrorError("--watch needs a terminal; --json prints what a program can read")
    found = look()  # what is wrong from the beginning is said on the ordinary screen
    with _keys() as key, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(Group(*rendered(found), Text("\nq: quit", style="dim")), refresh=True)
            if key(_EVERY_S) in ("q", "Q"):
                return 0
            found = look()
