"""Arrays of a heap that grow under the arrays and memoryviews that show them."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mirrormap as mm
from support import address_of, heaps_are_gone, succeeds


@pytest.fixture
def heap() -> Iterator[mm.Heap]:
    made = mm.Heap("16MiB")
    yield made
    gc.collect()
    made.close()


def test_it_grows_under_live_views(heap: mm.Heap) -> None:
    array = heap.array("f8")
    array.extend(np.arange(10.0))
    views = [(array.array, 10)]
    address = address_of(views[0][0])
    while array.nbytes < 8 << 20:
        array.extend(np.arange(len(array), 2 * len(array), dtype="f8"))
        views.append((array.array, len(array)))
    for view, count in views:
        assert view.size == count
        assert address_of(view) == address
        assert np.array_equal(view, np.arange(count))
    views[0][0][3] = -1
    assert array[3] == array.array[3] == -1
    array[3:5] = [5, 6]
    assert views[0][0][3:5].tolist() == [5, 6]
    assert heap.stats().arrays == array.nbytes
    heap.verify()


def test_what_it_is(heap: mm.Heap) -> None:
    array = heap.array([("a", "i2"), ("b", "S3")])
    array.append((1, b"x"))
    array.extend([(2, b"y"), (3, b"z")])
    assert (len(array), array.nbytes, array.dtype.names) == (3, 15, ("a", "b"))
    assert np.asarray(array)["a"].tolist() == [1, 2, 3]
    order = {"little": "<", "big": ">"}[sys.byteorder]
    assert repr(array) == f"<HeapArray 3 of [('a', '{order}i2'), ('b', 'S3')], 15 B>"
    assert heap.array().dtype == np.float64
    assert heap.array("i4").array.shape == (0,)


def test_of_itself(heap: mm.Heap) -> None:
    array = heap.array("i8")
    array.extend(range(5))
    array.extend(array)
    array.extend(array.array[::-1])
    assert array.array.tolist() == [*range(5), *range(5), *range(4, -1, -1), *range(4, -1, -1)]


def test_bad_input(heap: mm.Heap) -> None:
    array = heap.array("i4")
    array.append(1)
    for wrong in ([[1, 2]], 5, np.zeros((2, 2))):
        with pytest.raises(ValueError):
            array.extend(wrong)
    with pytest.raises(ValueError):
        array.append([1, 2])
    for dtype in ("O", "no such", "V0"):
        with pytest.raises((TypeError, ValueError)):
            heap.array(dtype)
    assert array.array.tolist() == [1]


def test_it_counts_against_the_heap(heap: mm.Heap) -> None:
    array, other = heap.array("u1"), heap.array("u1")
    kept = heap.put(bytes(8 << 20))
    array.extend(np.zeros(4 << 20, "u1"))
    view = array.array
    with pytest.raises(MemoryError, match=r"4,194,304 in arrays"):
        other.extend(np.zeros(5 << 20, "u1"))
    assert (len(other), len(array), kept.nbytes) == (0, 4 << 20, 8 << 20)
    del array, view
    gc.collect()
    other.extend(np.zeros(5 << 20, "u1"))
    assert heap.stats().arrays == 5 << 20


def test_closing() -> None:
    heap = mm.Heap("1MiB")
    array = heap.array("f8")
    array.extend([1, 2])
    ref = heap.put(b"bytes")
    view = array.array
    with pytest.raises(BufferError):
        heap.close()
    array.append(3)
    assert bytes(ref) == b"bytes"
    assert view.tolist() == [1, 2]
    del view
    held = memoryview(ref)
    with pytest.raises(BufferError):
        heap.close()
    assert len(array) == 3
    held.release()
    heap.close()
    heap.close()
    calls: list[Any] = [
        lambda: len(array), lambda: array.array, lambda: array.append(1), lambda: array.extend([1]), lambda: array[0],
        lambda: array.nbytes, lambda: np.asarray(array), heap.array,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(mm.ClosedError):
            call()
    assert repr(array) == "<HeapArray closed>"


def test_views_outlive_everything_else() -> None:
    view = mm.Heap("1MiB", collector="manual").array("i8").array
    array = mm.Heap("1MiB", collector="manual").array("i8")  # it holds its heap
    array.extend(range(3))
    view = array.array
    del array
    heaps_are_gone()
    assert view.tolist() == [0, 1, 2]


def test_a_forked_child_is_refused() -> None:
    succeeds("""
import os
import mirrormap as mm
heap = mm.Heap("8MiB")
array = heap.array("i8")
array.extend([1, 2])
child = os.fork()
if not child:
    for call in (lambda: len(array), lambda: array.append(3), lambda: array.array, heap.array):
        try:
            call()
        except mm.ClosedError:
            continue
        os._exit(1)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
array.append(3)
assert array.array.tolist() == [1, 2, 3]
""")


@given(
    st.lists(st.one_of(st.integers(-100, 100), st.lists(st.integers(-100, 100), max_size=3000)), max_size=12)
)
def test_as_a_list(steps: list[Any]) -> None:
    with mm.Heap("1MiB") as heap:
        array, model = heap.array("i2"), []
        views: list[Any] = []
        for step in steps:
            if isinstance(step, int):
                array.append(step)
                model.append(step)
            else:
                array.extend(step)
                model += step
            views.append(array.array)
            assert len(array) == len(model)
        for view in views:
            assert view.tolist() == model[: len(view)]
        view = None
        views.clear()
