"""Gaps between the values of containers: new values go there first, and never beside a view."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

import mirrormap as mm
from pinned import Looks
from support import BLOCK, PAGE, address_of, phase_of

HEADER = 16


@pytest.fixture
def heap() -> Iterator[mm.Heap]:
    with mm.Heap(PAGE << 14, collector="manual") as made:
        yield made
        made.verify()


def filled(heap: mm.Heap, count: int, nbytes: int) -> Any:
    """Values of one length, in blocks that are all closed but the last."""
    values = heap.map()
    for at in range(count):
        values[at] = bytes([at % 256]) * nbytes
    return values


def blocks() -> int:
    """The address where block 0 of the only heap begins."""
    found = re.search(r"^(\w+)-.*/memfd:mirrormap:heap", Path("/proc/self/maps").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1], 16)


@pytest.mark.parametrize("nbytes", [16, 100, 1000, 8000, 64000])
def test_a_new_value_goes_where_one_was(heap: mm.Heap, nbytes: int) -> None:
    count = (8 << 20) // nbytes
    values = filled(heap, count, nbytes)
    before = heap.stats()
    gone = range(0, count * 3 // 4, 40)
    for at in gone:
        del values[at]
    for at in gone:
        values[at] = bytes([at % 256]) * nbytes
    stats = heap.stats()
    assert (stats.committed, stats.copied) == (before.committed, before.copied)
    assert all(values[at] == bytes([at % 256]) * nbytes for at in range(count))


def test_gaps_beside_one_another_are_one(heap: mm.Heap) -> None:
    values = filled(heap, 80_000, 64)
    before = heap.stats().committed
    first, length = 10_000, 12  # the first block may be open still: a little is left at its end
    order = list(range(first, first + length))
    random.Random(1).shuffle(order)
    for at in order:
        del values[at]
    whole = length * (64 + HEADER) - HEADER
    values["whole"] = bytes([7]) * whole
    with values.view(first - 1) as left, values.view("whole") as view:
        assert address_of(view) == address_of(left) + 64 + HEADER
        assert view == bytes([7]) * whole
    assert heap.stats().committed == before


def test_what_is_left_of_a_gap_is_filled_too(heap: mm.Heap) -> None:
    values = filled(heap, 800, 10_000)
    before = heap.stats().committed
    for at in range(0, 600, 30):
        del values[at]
    for at in range(20 * 30):
        values[f"small {at}"] = bytes([at % 256]) * (10_000 // 31)
    stats = heap.stats()
    assert stats.committed == before
    assert stats.copied == 0
    assert all(values[f"small {at}"] == bytes([at % 256]) * (10_000 // 31) for at in range(600))


def test_nothing_new_lies_beside_a_view(heap: mm.Heap) -> None:
    values, base = filled(heap, 4000, 1000), blocks()
    with values.view(500) as view:
        pinned = (address_of(view) - base) // BLOCK
        for at in range(480, 520):
            if at != 500:
                del values[at]
        for at in range(39):
            values[f"new {at}"] = bytes(1000)
            with values.view(f"new {at}") as other:
                assert (address_of(other) - base) // BLOCK != pinned
        assert view == bytes([500 % 256]) * 1000
    values["later"] = bytes(1000)
    with values.view("later") as other:
        assert (address_of(other) - base) // BLOCK == pinned, "the view has ended"


def test_pages_given_back_are_no_gaps(heap: mm.Heap) -> None:
    beside = max(1, 2 * PAGE // (BLOCK // 16))  # neighbours that fill two pages
    values = filled(heap, 2000 * beside, 2 * PAGE // beside - HEADER)
    for at in range(0, 1900 * beside, 19 * beside):
        for neighbour in range(at, at + beside):
            del values[neighbour]
    before = heap.stats().committed
    heap.collect()
    assert heap.stats().committed < before, "whole pages were free"
    heap.verify()
    for at in range(0, 1900 * beside, 19 * beside):
        values[at] = bytes([3]) * (PAGE // 2)
    heap.verify()
    assert all(values[at] == bytes([3]) * (PAGE // 2) for at in range(0, 1900 * beside, 19 * beside))


@pytest.mark.parametrize("collector", ["manual", "incremental", "background"])
def test_any_order(collector: Literal["manual", "incremental", "background"]) -> None:
    rng, truth = random.Random(3), dict[int, bytes]()
    with mm.Heap("64MiB", target=1.05, collector=collector) as heap:
        values = heap.map()
        for turn in range(30_000):
            key = rng.randrange(2000)
            if rng.random() < 0.4 and key in truth:
                del truth[key], values[key]
            else:
                truth[key] = values[key] = rng.randbytes(int(2 ** rng.uniform(0, 15)))
            if turn % 3000 == 0:
                heap.verify()
        heap.verify()
        assert dict(values.items()) == truth


def test_a_frame_that_meshing_has_seen_may_be_fuller_when_it_comes_back(heap: mm.Heap) -> None:
    """Between two steps of meshing the views of a block end, its gaps are filled, and there are views again."""
    values, truth = heap.map(), dict[int, bytes]()
    count, nbytes = 2 * BLOCK // (PAGE // 4), PAGE // 4 - HEADER

    for at in range(count + 1):
        values[at] = truth[at] = random.Random(at).randbytes(nbytes)
    # of the first block the first quarter of each page lives, of the second the second: a page of each fits together
    views = {at: values.view(at) for at in range(count) if at % 4 == at // (count // 2)}
    for at in range(count):
        if at not in views:
            del values[at], truth[at]
    heap.put(b"reason")
    turn = 0
    while heap.step(0):
        turn += phase_of(heap) == "mesh"
        if turn != BLOCK // PAGE + 1:
            continue
        turn += 1
        assert heap.stats().meshed == 0
        first = range(0, count // 2, 4)
        for at in first:
            views.pop(at).release()
        values[-1] = truth[-1] = random.Random(-1).randbytes(3 * PAGE // 4 - HEADER)
        views |= {at: values.view(at) for at in (-1, *first)}
        where = {address_of(views[at]) // BLOCK for at in (-1, count // 2 - 4)}
        assert len(where) == 1, "it went into a gap"
    assert turn > BLOCK // PAGE
    heap.verify()
    assert all(view == truth[at] for at, view in views.items())
    assert dict(values.items()) == truth


def test_blocks_that_offered_gaps_are_meshed(heap: mm.Heap) -> None:
    """Their views began after the last look at them."""
    looks = Looks(heap, True, 4000, 8)
    heap.put(b"reason")
    while heap.step(0) and phase_of(heap) != "mesh":
        pass
    for at in list(looks.views):
        looks.views.pop(at).release()
    looks.views = {at: looks.values.view(at) for at in looks.data}
    looks.where = {at: address_of(view) for at, view in looks.views.items()}
    while heap.step(0):
        heap.verify()
    assert heap.stats().meshed
    looks.check()
    looks.clear()
