"""shares_memory, is_mirror and copyto against a byte-level model, on rings, mirrors and stitched runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import mirrormap as mm
from support import PAGE

Array = np.ndarray[Any, Any]


class World:
    """A ring, a plain view and a shuffled view of one object, and where each byte lies in it."""

    def __init__(self) -> None:
        pages = mm.Pages(2 * PAGE)
        layouts = [[0, 1, 0, 1], [0, 1], [1, 0, 0]]
        self.views = [pages.arrange([(page * PAGE, PAGE) for page in layout]).array() for layout in layouts]
        self.places = [
            np.concatenate([np.arange(PAGE) + page * PAGE for page in layout]) for layout in layouts
        ]
        self.other = mm.zeros(2 * PAGE, "u1")


WORLD = World()


@st.composite
def slices(draw: st.DrawFn) -> tuple[Array, Array]:
    """A strided, reversed or two-dimensional view, and the object offsets of its bytes."""
    which = draw(st.integers(0, 2))
    view, place = WORLD.views[which], WORLD.places[which]
    seams = st.sampled_from(range(0, view.size + 1, PAGE))
    start = min(max(0, draw(seams) + draw(st.integers(-40, 40))), view.size - 64)
    width = draw(st.integers(1, 60))
    step = draw(st.sampled_from([1, 2, 3, 7, -1, -2]))
    part = slice(start, start + width) if step > 0 else slice(start + width, start or None, step)
    part = slice(part.start, part.stop, step)
    mine, theirs = view[part], place[part]
    if mine.size % 2 == 0 and draw(st.booleans()):
        mine, theirs = mine.reshape(2, -1), theirs.reshape(2, -1)
        if draw(st.booleans()):
            mine, theirs = mine.T, theirs.T
    return mine, theirs


@given(slices(), slices())
def test_shares_memory_is_exact_through_mirrors(a: tuple[Array, Array], b: tuple[Array, Array]) -> None:
    assert mm.shares_memory(a[0], b[0]) == bool(np.intersect1d(a[1], b[1]).size)


@given(slices(), slices())
def test_is_mirror_is_about_pages(a: tuple[Array, Array], b: tuple[Array, Array]) -> None:
    pages = [set((places // PAGE).reshape(-1).tolist()) for places in (a[1], b[1])]
    assert mm.is_mirror(a[0], b[0]) == bool(pages[0] & pages[1])
    assert not mm.is_mirror(a[0], WORLD.other)


@given(slices(), slices(), st.integers(0, 1 << 30))
def test_copyto_is_right_where_numpy_is_not(
    a: tuple[Array, Array], b: tuple[Array, Array], seed: int
) -> None:
    count = min(a[0].size, b[0].size)
    dst, src = a[0].reshape(-1)[:count], b[0].reshape(-1)[:count]
    if not (np.shares_memory(dst, a[0]) and np.shares_memory(src, b[0])):
        return  # reshape had to copy: nothing overlaps then
    places = a[1].reshape(-1)[:count]
    if np.unique(places).size != places.size:
        return  # the target shows a byte twice: which value wins is not defined
    base = WORLD.views[1]
    base[:] = np.random.default_rng(seed).integers(0, 256, base.size)
    expected = base.copy()
    expected[places] = src.copy()
    mm.copyto(dst, src)
    assert np.array_equal(base, expected)


@st.composite
def grids(draw: st.DrawFn, shape: tuple[int, int], itemsize: int) -> tuple[Array, Array]:
    """Two dimensions with any strides, transposed ones too, of items that may be wide and unaligned;
    and the object offset of each of their bytes."""
    which = draw(st.integers(0, 2))
    view, place = WORLD.views[which], WORLD.places[which]
    row, column = (draw(st.integers(-24, 24)) for _ in shape)
    steps = [(shape[0] - 1) * row, (shape[1] - 1) * column]
    first = sum(min(0, step) for step in steps)
    last = sum(max(0, step) for step in steps) + itemsize
    seam = draw(st.sampled_from(range(0, view.size + 1, PAGE)))
    start = min(max(seam + draw(st.integers(-60, 60)), -first), view.size - last)
    grid: Array = np.ndarray(shape, f"<u{itemsize}", view, start, (row, column))
    index = start + np.arange(shape[0])[:, None, None] * row + np.arange(shape[1])[:, None] * column
    return grid, place[index + np.arange(itemsize)]


@given(st.data(), st.tuples(st.integers(1, 5), st.integers(1, 5)), st.sampled_from([1, 2, 4, 8]))
def test_copyto_in_two_dimensions_with_wide_items(data: Any, shape: tuple[int, int], itemsize: int) -> None:
    dst, written = data.draw(grids(shape, itemsize))
    src, read = data.draw(grids(shape, itemsize))
    assert mm.shares_memory(dst, src) == bool(np.intersect1d(written, read).size)
    if np.unique(written).size != written.size:
        return  # the target shows a byte twice: which value wins is not defined
    base = WORLD.views[1]
    base[:] = np.random.default_rng(shape[0]).integers(0, 256, base.size)
    expected = base.copy()
    expected[written] = base[read]
    mm.copyto(dst, src)
    assert np.array_equal(base, expected)


def test_items_wider_than_a_byte_and_items_across_the_seam() -> None:
    ring = WORLD.views[0]
    words = ring[2 * PAGE - 5 : 2 * PAGE + 11].view("<u8")
    assert mm.shares_memory(words[:1], ring[:3])
    assert not mm.shares_memory(words[:1], ring[3:8])
    assert mm.shares_memory(words[1:], ring[3:8])


def test_numpy_itself_is_wrong_here() -> None:
    ring = WORLD.views[0]
    left, right = ring[: 2 * PAGE], ring[2 * PAGE :]
    assert not np.shares_memory(left, right)
    assert mm.shares_memory(left, right)
    numbers = np.arange(PAGE) % 251
    shifted = [0, *numbers[: PAGE - 1].tolist()]
    left[:PAGE] = numbers
    np.add(left[: PAGE - 1], 0, out=right[1:PAGE])
    assert left[:PAGE].tolist() != shifted
    left[:PAGE] = numbers
    mm.copyto(right[1:PAGE], left[: PAGE - 1])
    assert left[:PAGE].tolist() == shifted


def test_private_memory_and_empty_arrays() -> None:
    private = np.zeros(PAGE * 4, "u1")
    assert mm.shares_memory(private[5:], private[:6])
    assert not mm.shares_memory(private[6:], private[:6])
    assert mm.is_mirror(private, private)
    assert not mm.is_mirror(private[:0], private)
    assert not mm.shares_memory(private[:0], private)
