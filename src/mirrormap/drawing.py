"""Small drawings of memory for notebooks: address ranges left, pages right, ribbons between.

Pure text from plain numbers, for whatever class wants a `_repr_html_`. Colours are those of the page round
it, so that light and dark both work, and nothing is loaded from anywhere.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

__all__ = ["COLOURS", "Mark", "Strip", "drawing", "ribbon"]

COLOURS: Final = ("#2563eb", "#059669", "#d97706", "#db2777", "#7c3aed", "#0891b2", "#65a30d", "#dc2626")
"""For views, in turn; each stands out on white and on black."""

_WIDTH, _LEFT, _RIGHT, _BAR = 620, 190, 430, 44
_HEIGHT, _GAP, _TOP = 150, 12, 22
_MOST_STRIPS, _MOST_RUNS, _LEAST = 6, 64, 16
_SEAM_ROOM = 40  # pixels that the two lines of text take


class Strip(NamedTuple):
    """A range of addresses.

    Attributes:
        title: its first line of text; note: its second.
        runs: (offset in the pages, nbytes), in order of address.
        resident: (byte in the strip, nbytes) with page-table entries.
    """

    title: str
    runs: Sequence[tuple[int, int]]
    note: str = ""
    resident: Sequence[tuple[int, int]] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of address space."""
        return sum(nbytes for _, nbytes in self.runs)

    @property
    def seams(self) -> list[int]:
        """Bytes of the strip where the pages do not go on."""
        found: list[int] = []
        at = 0
        for (offset, nbytes), (following, _) in zip(self.runs, self.runs[1:], strict=False):
            at += nbytes
            if following != offset + nbytes:
                found.append(at)
        return found


class Mark(NamedTuple):
    """A place in the pages with a name: a cursor."""

    name: str
    at: int


def ribbon(x0: float, top0: float, bottom0: float, x1: float, top1: float, bottom1: float) -> str:
    """The path of a band from an upright edge at x0 to one at x1."""
    middle = (x0 + x1) / 2
    return (
        f"M{x0:g} {top0:.1f}C{middle:g} {top0:.1f} {middle:g} {top1:.1f} {x1:g} {top1:.1f}V{bottom1:.1f}"
        f"C{middle:g} {bottom1:.1f} {middle:g} {bottom0:.1f} {x0:g} {bottom0:.1f}Z"
    )


def drawing(
    heading: str,
    facts: Mapping[str, str],
    strips: Sequence[Strip],
    nbytes: int,
    *,
    pages: str = "pages",
    marks: Sequence[Mark] = (),
) -> str:
    """A heading, facts, and a picture of strips that show `nbytes` of pages.

    Args: facts: shown by name. pages: what stands over the pages. marks: cursors beside them.
    Returns: HTML to stand inside a page, of fixed height however much there is.
    """
    told = " · ".join(f"{html.escape(name)} {html.escape(value)}" for name, value in facts.items())
    shown = [strip for strip in strips if strip.nbytes][:_MOST_STRIPS]
    picture = _picture(heading, shown, nbytes, pages, marks) if shown and nbytes else ""
    hidden = len(strips) - len(shown)
    more = f"<div style='opacity:.7'>and {hidden:,} more views</div>" if hidden > 0 and picture else ""
    return (
        f"<div style='font:13px system-ui,sans-serif;max-width:{_WIDTH}px'><b>{html.escape(heading)}</b>"
        f"<div style='opacity:.8'>{told}</div>{picture}{more}</div>"
    )


def _picture(heading: str, strips: Sequence[Strip], nbytes: int, pages: str, marks: Sequence[Mark]) -> str:
    total = sum(strip.nbytes for strip in strips)
    heights = [max(2.2 * _LEAST, _HEIGHT * strip.nbytes / total) for strip in strips]
    left = sum(heights) + _GAP * (len(strips) - 1)
    right = min(left, max(_HEIGHT * 0.6, 40.0))
    column = _Column(_TOP + (left - right) / 2, right, nbytes)
    height = _TOP + left + 12
    head = (
        f"<svg viewBox='0 0 {_WIDTH} {height:.0f}' width='{_WIDTH}' height='{height:.0f}' role='img' "
        f"aria-label='{html.escape(heading, quote=True)}' fill='currentColor' "
        "style='max-width:100%;height:auto' font-family='system-ui,sans-serif' font-size='12'>"
    )
    parts = [
        head,
        f"<text x='{_LEFT}' y='12' text-anchor='end' opacity='.7'>addresses</text>",
        f"<text x='{_RIGHT}' y='12' opacity='.7'>{html.escape(pages)}</text>",
    ]
    top = float(_TOP)
    for index, (strip, tall) in enumerate(zip(strips, heights, strict=True)):
        parts += _strip(strip, top, tall, COLOURS[index % len(COLOURS)], column)
        top += tall + _GAP
    parts.append(
        f"<rect x='{_RIGHT}' y='{column.top:.1f}' width='{_BAR}' height='{column.tall:.1f}' fill='none' "
        "stroke='currentColor' stroke-opacity='.6'/>"
    )
    parts += _marks(marks, column)
    return "".join([*parts, "</svg>"])


class _Column(NamedTuple):
    """The pages: `nbytes` over `tall` pixels from `top`."""

    top: float
    tall: float
    nbytes: int

    def y(self, offset: int) -> float:
        return self.top + self.tall * min(1.0, offset / self.nbytes)


def _strip(strip: Strip, top: float, tall: float, colour: str, column: _Column) -> Iterator[str]:
    x, scale = _LEFT - _BAR, tall / strip.nbytes
    yield f"<g fill='{colour}'>"
    at = 0
    for offset, nbytes in strip.runs if len(strip.runs) <= _MOST_RUNS else _outline(strip):
        first, last = top + at * scale, top + (at + nbytes) * scale
        path = ribbon(_LEFT, first, last, _RIGHT, column.y(offset), column.y(offset + nbytes))
        yield f"<path d='{path}' fill-opacity='.22'/>"
        at += nbytes
    yield f"<rect x='{x}' y='{top:.1f}' width='{_BAR}' height='{tall:.1f}' fill-opacity='.18'/>"
    for first, last in _merged(strip.resident, scale):
        where = f"y='{top + first:.1f}' height='{last - first:.1f}'"
        yield f"<rect x='{x}' {where} width='{_BAR}' fill-opacity='.75'/>"
    yield "</g>"
    yield (
        f"<rect x='{x}' y='{top:.1f}' width='{_BAR}' height='{tall:.1f}' fill='none' stroke='currentColor' "
        "stroke-opacity='.6'/>"
    )
    seams = strip.seams
    for seam in seams if len(seams) < _LEAST else ():
        y = top + seam * scale
        yield f"<path d='M{x - 5} {y:.1f}H{_LEFT + 5}' stroke='currentColor' stroke-dasharray='3 2'/>"
    if len(seams) == 1:
        y = top + seams[0] * scale
        if min(y - top, top + tall - y) > _SEAM_ROOM:
            yield f"<text x='{x - 9}' y='{y + 4:.1f}' text-anchor='end' opacity='.7'>seam</text>"
    text = f"<text x='{x - 9}' text-anchor='end' y="
    yield f"{text}'{top + 12:.1f}'>{html.escape(strip.title)}</text>"
    yield f"{text}'{top + 27:.1f}' opacity='.7'>{html.escape(strip.note)}</text>"


def _outline(strip: Strip) -> list[tuple[int, int]]:
    """In place of more runs than can be told apart: from the first page shown to the last."""
    low = min(offset for offset, _ in strip.runs)
    return [(low, strip.nbytes)]


def _merged(resident: Sequence[tuple[int, int]], scale: float) -> Iterator[tuple[float, float]]:
    """Stretches in pixels; those that cannot be told apart are one."""
    first = last = -2.0
    for at, nbytes in sorted(resident):
        start, end = at * scale, (at + nbytes) * scale
        if start - last > 1:
            if last > first:
                yield first, max(last, first + 0.5)
            first = start
        last = max(last, end)
    if last > first:
        yield first, max(last, first + 0.5)


def _marks(marks: Sequence[Mark], column: _Column) -> Iterator[str]:
    x = _RIGHT + _BAR
    below = 0.0  # so that no two names lie on one another
    for mark in sorted(marks, key=lambda mark: mark.at):
        y = column.y(mark.at)
        below = max(y, below)
        yield f"<path d='M{x} {y:.1f}l9 -4v8z'/><path d='M{_RIGHT} {y:.1f}H{x}' stroke='currentColor'/>"
        yield f"<text x='{x + 13}' y='{below + 4:.1f}'>{html.escape(mark.name)}</text>"
        below += 14
