"""The picture of what `mirrors()` found: addresses left, pages right, a ribbon from every view to its pages.

However many mappings there are, the picture stays readable: the biggest groups are drawn, many views of
one group are bundled, and a view of many pieces is one ribbon. What is not drawn is counted in words.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from mirrormap.drawing import COLOURS, ribbon
from mirrormap.inspect import MirrorGroup, Mirrors, MirrorView
from mirrormap.ribbons_page import SCRIPT, STYLE
from mirrormap.units import format_nbytes

__all__ = ["page", "picture", "title_of"]

_WIDTH, _LEFT, _RIGHT, _BAR = 1000, 330, 640, 60
_TOP, _GAP, _BOTTOM = 44, 9, 16
_MOST_GROUPS, _MOST_BUNDLES, _MOST_PIECES, _MOST_RIBBONS = 32, 12, 64, 3000
_LEAST, _TALLEST, _COLUMN = 15.0, 110.0, 700.0

_KINDS: Final = {"fork": " (shared since a fork)", "ksm": " (merged by KSM)", "object": ""}


def title_of(group: MirrorGroup) -> str:
    """What a group is, in words where the kernel's name says little."""
    name = group.name
    if name.startswith("/mirrormap:"):
        name = f"memory {name.removeprefix('/')}"
    elif name.startswith("/memfd:"):
        name = f"memfd {name.removeprefix('/memfd:')}"
    elif name == "/dev/zero":
        name = f"shared anonymous memory {group.inode}"
    elif name.startswith("/SYSV"):
        name = f"SysV segment {group.inode}"
    elif name == "/anon_hugepage":
        name = f"anonymous huge pages {group.inode}"
    elif not name:
        name = "private memory"
    return name + _KINDS[group.kind]


class _Box(NamedTuple):
    """One or more neighbouring views of a group in one process, as drawn on the left."""

    group: int
    first: MirrorView
    views: tuple[MirrorView, ...]

    @property
    def pid(self) -> int:
        return self.first.pid

    @property
    def start(self) -> int:
        return self.first.start

    @property
    def nbytes(self) -> int:
        return sum(view.nbytes for view in self.views)

    def pieces(self, most: int) -> list[tuple[float, float, int, int]]:
        """(from, to) as fractions of the box, (first, last) bytes of the object; one in place of too many."""
        runs = [run for view in self.views for run in view.runs]
        if len(runs) > most:
            low = min(offset for _, offset, _ in runs)
            return [(0.0, 1.0, low, max(offset + nbytes for _, offset, nbytes in runs))]
        total = sum(nbytes for _, _, nbytes in runs)
        ends = list(itertools.accumulate(nbytes for _, _, nbytes in runs))
        return [
            ((end - nbytes) / total, end / total, offset, offset + nbytes)
            for end, (_, offset, nbytes) in zip(ends, runs, strict=True)
        ]


class _Placed(NamedTuple):
    top: float
    tall: float


def _boxes(groups: Sequence[MirrorGroup]) -> list[_Box]:
    """Views by process and address; of more than can be told apart, bundles."""
    boxes: list[_Box] = []
    for index, group in enumerate(groups):
        for _, mine in itertools.groupby(group.views, key=lambda view: view.pid):
            views = tuple(mine)
            each = -(-len(views) // _MOST_BUNDLES)
            boxes += [_Box(index, views[at], views[at : at + each]) for at in range(0, len(views), each)]
    return sorted(boxes, key=lambda box: (box.pid, box.start))


def _tall(nbytes: int, most: int) -> float:
    """Pixels: not in proportion, or small things could not be seen beside large ones."""
    return max(_LEAST, _TALLEST * math.pow(nbytes / most, 0.4))


class _Layout:
    """Where everything stands."""

    def __init__(self, found: Mirrors) -> None:
        self.groups = found.groups[:_MOST_GROUPS]
        self.boxes = _boxes(self.groups)
        self.several = len(found.processes) > 1
        most = max((box.nbytes for box in self.boxes), default=1)
        together = sum(_tall(box.nbytes, most) for box in self.boxes)
        shrink = min(1.0, _COLUMN / max(together, 1.0))
        y, pid = float(_TOP), 0
        self.left: list[_Placed] = []
        self.headings: list[tuple[float, str]] = []
        names = {process.pid: process.name for process in found.processes}
        for box in self.boxes:
            if self.several and box.pid != pid:
                pid = box.pid
                self.headings.append((y + 14, f"{names.get(pid, '?')} {pid}"))
                y += 24
            tall = max(_LEAST, shrink * _tall(box.nbytes, most))
            self.left.append(_Placed(y, tall))
            y += tall + _GAP
        self.right = self._pages(most)
        ends = [placed.top + placed.tall for placed in (*self.left, *self.right.values())]
        self.height = max(ends, default=float(_TOP)) + _BOTTOM

    def _pages(self, most: int) -> dict[int, _Placed]:
        """Each group's pages beside the middle of its views, below the ones before."""
        middles: dict[int, list[float]] = {}
        for box, placed in zip(self.boxes, self.left, strict=True):
            middles.setdefault(box.group, []).append(placed.top + placed.tall / 2)
        wanted = sorted((sum(places) / len(places), index) for index, places in middles.items())
        found: dict[int, _Placed] = {}
        y = float(_TOP)
        for middle, index in wanted:
            tall = max(30.0, _tall(self.groups[index].nbytes, most))
            top = max(y, middle - tall / 2)
            found[index] = _Placed(top, tall)
            y = top + tall + _GAP
        return found


# --- the picture ---------------------------------------------------------------------------


def picture(found: Mirrors) -> str:
    """An SVG that needs nothing else and follows the reader's light or dark scheme."""
    layout = _Layout(found)
    inside = "".join(_drawn(layout))
    label = f"{len(found)} groups of mirrored memory: addresses left, pages right"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {layout.height:.0f}" '
        f'width="{_WIDTH}" height="{layout.height:.0f}" role="img" aria-label="{label}" '
        f'font-family="system-ui,sans-serif" font-size="13"><style>{STYLE}</style>{inside}</svg>\n'
    )


def _drawn(layout: _Layout) -> Iterator[str]:
    yield f'<text class="head" x="{_LEFT}" y="22" text-anchor="end">address space</text>'
    yield f'<text class="head" x="{_RIGHT}" y="22">pages</text>'
    if not layout.boxes:
        yield f'<text x="{_LEFT}" y="{_TOP}">No memory is shown more than once.</text>'
    for y, text in layout.headings:
        yield f'<text class="head" x="20" y="{y:.1f}">{_safe(text)}</text>'
    budget = max(1, _MOST_RIBBONS // max(1, len(layout.boxes)))
    for box, placed in zip(layout.boxes, layout.left, strict=True):
        yield from _box(layout, box, placed, budget)
    for index, placed in layout.right.items():
        yield from _group(layout.groups[index], index, placed)


def _box(layout: _Layout, box: _Box, placed: _Placed, budget: int) -> Iterator[str]:
    group, pages = layout.groups[box.group], layout.right[box.group]
    low = group.counts[0][0]
    span = group.counts[-1][0] + group.counts[-1][1] - low
    colour = COLOURS[box.group % len(COLOURS)]
    yield f'<g class="view" data-g="{box.group}" fill="{colour}"><title>{_safe(_told(group, box))}</title>'
    for start, end, first, last in box.pieces(min(budget, _MOST_PIECES)):
        path = ribbon(
            _LEFT,
            placed.top + start * placed.tall,
            placed.top + end * placed.tall,
            _RIGHT,
            pages.top + pages.tall * (first - low) / span,
            pages.top + pages.tall * min(1.0, (last - low) / span),
        )
        yield f'<path class="ribbon" d="{path}"/>'
    yield (
        f'<rect class="box" x="{_LEFT - _BAR}" y="{placed.top:.1f}" width="{_BAR}" '
        f'height="{placed.tall:.1f}" rx="2"/>'
    )
    many = f"{len(box.views):,} views from " if len(box.views) > 1 else ""
    right = "" if box.first.protection == "rw" or many else f" {box.first.protection}"
    yield (
        f'<text x="{_LEFT - _BAR - 8}" y="{placed.top + placed.tall / 2 + 4:.1f}" text-anchor="end">'
        f"{many}{box.start:#x}{right}</text></g>"
    )


def _group(group: MirrorGroup, index: int, placed: _Placed) -> Iterator[str]:
    colour = COLOURS[index % len(COLOURS)]
    middle = placed.top + placed.tall / 2
    views = f"{len(group.views):,} views"
    yield f'<g class="pages" data-g="{index}" fill="{colour}"><title>{_safe(_told(group))}</title>'
    yield (
        f'<rect class="box" x="{_RIGHT}" y="{placed.top:.1f}" width="{_BAR}" '
        f'height="{placed.tall:.1f}" rx="2"/>'
        f'<text x="{_RIGHT + _BAR + 10}" y="{middle - 1:.1f}">{_safe(_short(title_of(group)))}</text>'
        f'<text class="soft" x="{_RIGHT + _BAR + 10}" y="{middle + 13:.1f}">{format_nbytes(group.nbytes)}, '
        f"{views}</text></g>"
    )


def _told(group: MirrorGroup, box: _Box | None = None) -> str:
    """What hovering tells, a line each."""
    lines = [
        title_of(group),
        f"{format_nbytes(group.nbytes)}, each byte shown up to {group.most_views:,} times",
    ]
    if group.resident is not None and group.rss is not None:
        lines.append(
            f"{format_nbytes(group.resident)} resident, counted as {format_nbytes(group.rss)} in RSS"
        )
    if box is not None:
        lines.append(f"process {box.pid}")
        for view in box.views[:4]:
            pieces = f", {view.pieces:,} pieces" if view.pieces > 1 else ""
            lines.append(
                f"{view.start:#x}-{view.end:x} {view.protection}, {format_nbytes(view.nbytes)} from offset "
                f"{view.offset:#x}{pieces}"
            )
        if len(box.views) > 4:
            lines.append(f"and {len(box.views) - 4:,} more views")
    return "\n".join(lines)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:18]}…{text[-21:]}"


def _safe(text: str) -> str:
    """As text of the page: nothing that XML forbids, no markup."""
    return html.escape(
        "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text)
    )


# --- the page ------------------------------------------------------------------------------


def page(found: Mirrors) -> str:
    """An HTML page that needs nothing else: the numbers, the picture, and a table of all that was found."""
    whose = ", ".join(f"{process.name} {process.pid}" for process in found.processes[:4])
    if len(found.processes) > 4:
        whose += f" and {len(found.processes) - 4} more"
    title = _safe(f"Mirrored memory of {whose}")
    notes = "".join(f"<p class='note'>Not shown: {_safe(sentence)}.</p>" for sentence in found.left_out)
    hidden = len(found) - _MOST_GROUPS
    more = f"<p class='note'>{hidden:,} smaller groups are in the table only.</p>" if hidden > 0 else ""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>"
        f"<dl>{''.join(_numbers(found))}</dl>{notes}{more}"
        f"<div id='picture'>{picture(found)}</div><pre id='details' aria-live='polite'>"
        "Point at a ribbon, a range of addresses or pages.</pre>"
        f"{_table(found)}<script>{SCRIPT}</script></body></html>\n"
    )


def _numbers(found: Mirrors) -> Iterator[str]:
    extra = found.overcounted
    told: list[tuple[str, str]] = [("RSS says", format_nbytes(found.rss))]
    if extra is not None:
        told.append(("without second views", format_nbytes(found.rss - extra)))
    if found.pss is not None:
        told.append(("PSS", format_nbytes(found.pss)))
    uss = [process.uss for process in found.processes]
    if None not in uss:
        told.append(("USS", format_nbytes(sum(number or 0 for number in uss))))
    for name, nbytes in (
        ("swap", sum(process.swap for process in found.processes)),
        ("huge pages", sum(process.huge + process.hugetlb for process in found.processes)),
        ("page tables", sum(process.page_tables for process in found.processes)),
    ):
        if nbytes:
            told.append((name, format_nbytes(nbytes)))
    fullest = max(found.processes, key=lambda process: process.vmas)
    told.append(("mappings", f"{fullest.vmas:,} of {fullest.max_map_count:,}"))
    for name, value in told:
        yield f"<div><dt>{name}</dt><dd>{value}</dd></div>"


_MOST_ROWS: Final = 500


def _table(found: Mirrors) -> str:
    rows = "".join(
        f"<tr data-g='{index}'><td>{_safe(title_of(group))}</td><td>{format_nbytes(group.nbytes)}</td>"
        f"<td>{'?' if group.resident is None else format_nbytes(group.resident)}</td>"
        f"<td>{'?' if group.rss is None else format_nbytes(group.rss)}</td><td>{len(group.views):,}</td></tr>"
        for index, group in enumerate(found.groups[:_MOST_ROWS])
    )
    rest = len(found) - _MOST_ROWS
    foot = f"<p class='note'>and {rest:,} smaller groups</p>" if rest > 0 else ""
    return (
        "<table><thead><tr><th>memory<th>true size<th>resident<th>in RSS<th>views</tr></thead>"
        f"<tbody>{rows}</tbody></table>{foot}"
    )
