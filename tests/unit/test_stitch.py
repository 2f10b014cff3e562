"""stitch(): several arrays as one, and why some cannot be."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mirrormap as mm
from mirrormap import procmaps
from support import PAGE, run_python, scaled

ROW = PAGE // 8


def pieces(*counts: int) -> list[np.ndarray[Any, Any]]:
    """Arrays of i8 with these many pages, each filled with its number."""
    return [mm.full(count * ROW, index, "i8") for index, count in enumerate(counts)]


def test_writes_go_both_ways() -> None:
    parts = pieces(1, 3, 2)
    whole = mm.stitch(parts)
    assert np.array_equal(whole, np.concatenate(parts))
    whole[ROW] = 77
    assert parts[1][0] == 77
    parts[2][-1] = 78
    assert whole[-1] == 78
    del parts
    assert whole[-1] == 78


def test_repeats_orders_windows_and_short_ends() -> None:
    a = mm.zeros((8 * ROW,), "i8")
    a[:] = np.arange(a.size)
    b = a[3 * ROW : 5 * ROW]
    whole = mm.stitch([a[ROW - 5 : ROW], b, a, b, b[:7]])
    assert np.array_equal(whole, np.concatenate([a[ROW - 5 : ROW], b, a, b, b[:7]]))
    whole[5] = -1
    assert a[3 * ROW] == -1
    assert whole[5 + 2 * ROW + 3 * ROW] == -1
    assert np.array_equal(mm.stitch([a[:3]]), a[:3])


def test_rows_of_several_dimensions_and_read_only_parts(tmp_path: Path) -> None:
    a = mm.full((PAGE, 2, 2), 3, "f4")
    b = np.memmap(tmp_path / "data", "f4", "w+", shape=(ROW, 2, 2))
    b[:] = 4
    whole = mm.stitch([b, a])
    assert whole.shape == (PAGE + ROW, 2, 2)
    whole[0] = 5
    assert (b[0] == 5).all()
    a.flags.writeable = False
    frozen = mm.stitch([a, b])
    assert not frozen.flags.writeable
    assert mm.stitch([a[:0], b[:0]]).shape == (0, 2, 2)


def test_memory_of_others() -> None:
    one, two = mmap.mmap(-1, 2 * PAGE), mmap.mmap(-1, PAGE)
    parts = [np.frombuffer(one, "u1"), np.frombuffer(two, "u1"), np.frombuffer(one, "u1")[:PAGE]]
    whole = mm.stitch(parts)
    whole[:] = np.arange(whole.size) % 251
    assert np.array_equal(parts[0][PAGE:], whole[PAGE : 2 * PAGE])
    assert np.array_equal(parts[0][:PAGE], whole[3 * PAGE :])
    del parts, whole


def test_huge_pages_side_by_side(huge: int) -> None:
    one, two = (mm.empty(huge, "u1", page_size=huge) for _ in range(2))
    whole = mm.stitch([one, two, one])
    two[0] = 9
    assert whole[huge] == 9
    small = mm.zeros(PAGE, "u1")
    assert mm.stitch([one, small])[huge] == 0
    with pytest.raises(
        ValueError, match=f"part 1 has pages of {huge:,} bytes and would start {PAGE:,} into one"
    ):
        mm.stitch([small, one])


def test_refusals_name_the_part_and_the_bytes() -> None:
    a, b = mm.zeros(2 * PAGE, "u1"), mm.zeros(PAGE, "u1")
    with pytest.raises(ValueError, match=rf"part 0 ends 10 bytes into a page of {PAGE:,}.*copy=True"):
        mm.stitch([a[: PAGE + 10], b])
    with pytest.raises(ValueError, match="part 2 starts 7 bytes into"):
        mm.stitch([a, b, a[7:]])
    with pytest.raises(ValueError, match="part 1 is not C-contiguous"):
        mm.stitch([a, b[::2]])
    with pytest.raises(mm.NotMirrorableError, match=r"share\(array\)"):
        mm.stitch([a, np.zeros(PAGE, "u1")])
    with pytest.raises(TypeError, match="part 1 has dtype int8"):
        mm.stitch([a, b.view("i1")])
    with pytest.raises(ValueError, match="rows of part 1"):
        mm.stitch([a.reshape(-1, 2), b.reshape(-1, 4)])
    with pytest.raises(ValueError, match="no axis"):
        mm.stitch([np.zeros(())])
    with pytest.raises(ValueError, match="at least one"):
        mm.stitch([])
    with pytest.raises(TypeError, match="part 0 must be an ndarray, not list"):
        mm.stitch([[1, 2]])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        mm.stitch([np.array([None])])


def test_copies_when_asked() -> None:
    a, b = mm.full(PAGE + 10, 1, "u1"), np.full(5, 2, "u1")
    copied = mm.stitch([a, b], copy=None)
    assert np.array_equal(copied, np.concatenate([a, b]))
    assert not mm.shares_memory(copied, a)
    assert mm.mirror(copied)[0] == 1
    whole = mm.full(PAGE, 1, "u1")
    assert mm.shares_memory(mm.stitch([whole, a], copy=None), whole)
    assert not mm.shares_memory(mm.stitch([whole, a], copy=True), whole)


def test_adjacent_runs_are_one_mapping() -> None:
    a = mm.zeros((4000, PAGE), "u1")
    before = procmaps.map_count()
    whole = mm.stitch(list(a))
    assert procmaps.map_count() <= before + 2
    assert mm.shares_memory(whole, a)


ROWS = scaled(1_000_000, 100_000)  # more than a process may have mappings
MANY = f"""
import mmap, resource, numpy as np, mirrormap as mm
rows = {ROWS}
a = mm.zeros((rows, mmap.PAGESIZE), "u1")
whole = mm.stitch(list(a))
assert whole.shape == (rows * mmap.PAGESIZE,), whole.shape
whole[-1] = 3
assert a[-1, -1] == 3
del whole
before = open("/proc/self/maps").read().count("\\n")
try:
    mm.stitch([a[row] for row in range(rows - 1, -1, -1)])
except mm.MapError as error:
    print(error)
after = open("/proc/self/maps").read().count("\\n")
assert after <= before + 50, (before, after)
"""


def test_a_million_rows_count_their_mappings_beforehand() -> None:
    done = run_python(MANY)
    assert done.returncode == 0, done.stderr
    assert f"needs {ROWS:,} mappings" in done.stdout
    assert "max_map_count" in done.stdout


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=12), st.integers(0, 99))
def test_any_windows_are_what_concatenate_gives(windows: list[tuple[int, int]], at: int) -> None:
    base = mm.zeros((8, PAGE), "u1")
    base[:] = np.random.default_rng(at).integers(0, 256, base.shape)
    plain = base.copy()
    parts = [(min(one, other), max(one, other) + 1) for one, other in windows]
    whole = mm.stitch([base[start:stop] for start, stop in parts])
    rows = np.concatenate([np.arange(start, stop) for start, stop in parts])
    assert np.array_equal(whole, plain[rows])
    whole[at % len(whole), at] ^= 255
    plain[rows[at % len(whole)], at] ^= 255
    assert np.array_equal(base, plain)
    assert np.array_equal(whole, plain[rows])
