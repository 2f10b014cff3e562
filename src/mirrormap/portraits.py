"""Drawings of what is placed: the arrangement a region shows, or every view of an object.

What has a region needs one line for its `_repr_html_`: `portraits.of_region(region, repr(self))`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mirrormap import residency
from mirrormap.backing import Backing
from mirrormap.drawing import Mark, Strip, drawing
from mirrormap.kernel import Region
from mirrormap.placement import Arrangement
from mirrormap.protections import protection_name
from mirrormap.units import format_nbytes, round_up

__all__ = ["Mark", "of_backing", "of_region", "of_sparse"]


def of_region(region: Region | None, heading: str, *, marks: Sequence[Mark] = ()) -> str:
    """HTML: a range of addresses, its seams and what is resident of it, and the pages behind it.

    Args: region: shows an Arrangement; None, or closed: the heading alone.
        marks: cursors, at bytes counted from the lowest one of the pages that the region shows.
    """
    title = heading.strip("<>")
    if region is None or region.closed:
        return drawing(title, {}, [], 0)
    arrangement: Arrangement = region.keep
    spans: dict[object, tuple[int, int]] = {}
    for run in arrangement.runs:
        low, high = spans.get(run.backing, (run.offset, 0))
        spans[run.backing] = min(low, run.offset), max(high, run.offset + run.nbytes)
    shift: dict[object, int] = {}
    total = 0
    for backing, (low, high) in spans.items():  # objects side by side
        shift[backing] = total - low
        total += high - low
    runs = [(run.offset + shift[run.backing], run.nbytes) for run in arrangement.runs]
    resident = _resident(region)
    facts = {"resident": format_nbytes(min(region.nbytes, sum(nbytes for _, nbytes in resident)))}
    strip = Strip(f"{region.address:#x}", runs, _note(region), resident)
    pages = f"pages of {len(spans)} objects" if len(spans) > 1 else "pages"
    return drawing(title, facts, [strip], total, pages=pages, marks=marks)


def of_backing(backing: Backing | None, heading: str) -> str:
    """HTML: the pages of an object, and every range of this process that shows them."""
    title = heading.strip("<>")
    if backing is None:
        return drawing(title, {}, [], 0)
    stretches: dict[Region, list[tuple[int, int, int]]] = {}
    for region, at, offset, nbytes in backing.shown():
        stretches.setdefault(region, []).append((at, offset, nbytes))
    strips: list[Strip] = []
    for region, runs in sorted(stretches.items(), key=lambda item: item[0].address):
        shown = [(offset, nbytes) for _, offset, nbytes in runs]
        mine = len(runs) == len(region.keep.runs)  # of a region that shows others too, residency is not told
        resident = _resident(region) if mine else []
        strips.append(Strip(f"{region.address:#x}", shown, _note(region), resident))
    return drawing(title, {"views": f"{len(strips):,}"}, strips, backing.nbytes)


def of_sparse(region: Region, heading: str, facts: Mapping[str, str]) -> str:
    """HTML: a range of addresses with few pages, drawn as far as there are any."""
    resident = _resident(region)
    end = max((at + nbytes for at, nbytes in resident), default=0)
    strip = Strip(f"{region.address:#x}", [(0, end)], _note(region), resident)
    return drawing(heading.strip("<>"), facts, [strip], end)


def _resident(region: Region) -> list[tuple[int, int]]:
    arrangement: Arrangement = region.keep
    return residency.present_stretches(region.address, round_up(region.nbytes, arrangement.page_nbytes))


def _note(region: Region) -> str:
    arrangement: Arrangement = region.keep
    bits = arrangement.protection
    return f"{'mixed' if bits is None else protection_name(bits)}, {format_nbytes(region.nbytes)}"
