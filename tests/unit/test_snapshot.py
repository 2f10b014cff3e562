"""snapshot(): frozen at one moment while others write, and whole again afterwards."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mirrormap as mm
import seccomp
from mirrormap import procmaps, residency
from support import PAGE, run_python

MIB = 1 << 20
MOVES = mm.probe().move_shared
CUT = "moved" if MOVES else "overlaid"
ROW = PAGE // 8


@contextlib.contextmanager
def writing(array: np.ndarray[Any, Any]) -> Generator[None]:
    """Another thread that adds one to every item, front to back, without the interpreter's lock."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            np.add(array, 1, out=array)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def is_one_moment(array: np.ndarray[Any, Any]) -> bool:
    """The writer goes front to back: a front of one value, and behind it the value before."""
    steps = np.diff(array)
    return bool(array[0] - array[-1] in (0, 1) and np.count_nonzero(steps) <= 1)


def test_frozen_while_another_thread_writes() -> None:
    live = mm.zeros(16 * MIB // 8, "i8", populate=True)
    for _ in range(5):
        taken = mm.snapshot(live, copy=False)
        with writing(live):
            frozen = taken.__enter__()
            first = frozen.copy()
            while live[0] < first[0] + 3:
                pass
            assert np.array_equal(frozen, first)
        assert is_one_moment(first)
        last = live.copy()
        taken.close()  # no thread writes any more
        assert np.array_equal(live, last)
        assert np.array_equal(frozen, last)


def test_what_was_written_is_there_afterwards() -> None:
    with mm.Pages(8 * PAGE) as pages, pages.map() as view:
        live = view.array("i8")
        live[:] = np.arange(live.size)
        taken = mm.snapshot(live)
        with taken as frozen:
            assert taken.route == CUT
            assert not frozen.flags.writeable
            live[::ROW] = -1
            live[5] = -2
            assert (frozen == np.arange(live.size)).all()
            assert live[5] == -2
        assert (live[::ROW] == -1).all()
        assert np.array_equal(frozen, live)  # readable still, and frozen no more
        live[7] = -3
        assert frozen[7] == -3
        with view.mirror() as other:
            assert np.array_equal(other.array("i8"), live)
        again = np.frombuffer(os.pread(pages.fileno(), pages.nbytes, 0), "i8")
        assert np.array_equal(again, live)
        with pytest.raises(ValueError):
            frozen[0] = 1
        del frozen, live, again, taken


@pytest.mark.skipif(not MOVES, reason="this kernel moves no shared page tables (Linux 5.13)")
def test_page_tables_come_back() -> None:
    with mm.Pages(8 * MIB) as pages, pages.map(populate=True) as view:
        pmd = procmaps.pmd_nbytes()
        assert view.address % pmd == 0 or pmd > 8 * MIB
        live = view.array()
        with mm.snapshot(live) as frozen:
            assert residency.nbytes_present(frozen.__array_interface__["data"][0], 8 * MIB) == 8 * MIB
            assert view.resident < MIB
        assert view.resident == 8 * MIB
        del live, frozen


def test_parts_strides_and_what_else_lies_on_the_pages() -> None:
    base = mm.zeros((64, ROW), "i8")
    base[:] = np.arange(base.size).reshape(base.shape)
    part = base[10:40:3, ::-2].T
    expected = part.copy()
    with mm.snapshot(part, copy=False) as frozen:
        assert frozen.strides == part.strides
        base[:] = -1
        assert np.array_equal(frozen, expected)
    assert (base == -1).all()
    with mm.snapshot(base[0, 3:5], copy=False) as frozen:
        base[0] = 5
        assert frozen.tolist() == [-1, -1]
    assert (base[0] == 5).all()


def test_grown_arrays_and_files(tmp_path: Path) -> None:
    with mm.Growable("i8", path=tmp_path / "rows") as grown:
        for start in range(0, 10**6, 10**5):
            grown.extend(range(start, start + 10**5))
        rows = grown.array
        with mm.snapshot(rows, copy=False) as frozen:
            rows[:] = 0
            assert np.array_equal(frozen, np.arange(10**6))
            with pytest.raises(mm.MirrorError, match="snapshot"):
                grown.resize(10**9)
            assert len(grown) == 10**6
        del rows, frozen
        grown.flush()
        assert not np.fromfile(tmp_path / "rows", "i8")[ROW:].any()


def test_what_takes_the_copying_route_says_so(huge: int) -> None:
    with mm.Pages(4 * PAGE) as pages, pages.map() as view:
        live = view.array()
        other = view.mirror()
        cases: list[tuple[np.ndarray[Any, Any], str]] = [
            (live, "another live mirror"),
            (np.zeros(5), "not lie in a mapping of ours"),
            (mm.full(huge, 1, "u1", page_size=huge), "huge pages"),
            (mm.stitch([mm.zeros(PAGE, "u1"), mm.zeros(PAGE, "u1")]), "several runs"),
            (pages.map(protection="r").array(), "may not be written"),
        ]
        for array, reason in cases:
            taken = mm.snapshot(array)
            with pytest.warns(RuntimeWarning, match=reason):
                frozen = taken.__enter__()
            assert np.array_equal(frozen, array)
            assert not frozen.flags.writeable
            assert not mm.shares_memory(frozen, array)
            taken.close()
            assert taken.route == "copied"
            with pytest.raises(mm.MirrorError, match=reason):
                with mm.snapshot(array, copy=False):
                    pass
            with mm.snapshot(array, copy=True) as frozen:
                assert np.array_equal(frozen, array)
        del cases, array, frozen, taken
        other.close()
        with mm.snapshot(live, copy=False) as frozen:
            live[0] = 1
            with pytest.warns(RuntimeWarning, match="snapshot of it is open"):
                nested = mm.snapshot(live).__enter__()
            live[0] = 2
            assert (frozen[0], nested[0], live[0]) == (0, 1, 2)
        for _ in range(3):  # `frozen` of the round before is no mirror
            with mm.snapshot(live, copy=False) as frozen:
                live[0] += 1
        assert live[0] == 5
        del live, frozen, nested


def test_inside_the_block_the_range_stays_as_it_is() -> None:
    with mm.Pages(8 * PAGE) as pages, pages.map() as view:
        live = view.array()
        with mm.snapshot(live[: 2 * PAGE]) as frozen:
            refused: list[Callable[[], object]] = [
                view.mirror, partial(mm.mirror, live), partial(mm.mirror, frozen), partial(view.resize, 16 * PAGE),
                partial(view.resize, PAGE), partial(view.protect, "r"), view.discard, view.flush, pages.map,
                pages.discard, partial(pages.resize, PAGE), partial(mm.handle, live), partial(mm.stitch, [live, live]),
                partial(pages.views, 2), partial(pages.arrange, [(0, PAGE)]),
            ]  # fmt: skip
            for one in refused:
                with pytest.raises(mm.MirrorError, match="snapshot"):
                    one()
            del refused, one
            view.mirror(4 * PAGE).close()
            view.protect("r", 4 * PAGE)
            view.protect("rw", 4 * PAGE)
            with pytest.raises(BufferError):
                view.close()
        del live, frozen
        view.resize(PAGE)


def test_an_exception_inside_the_block_loses_nothing() -> None:
    live = mm.zeros(10)
    with pytest.raises(KeyError):
        with mm.snapshot(live) as frozen:
            live[3] = 3
            raise KeyError
    assert live[3] == frozen[3] == 3


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="not list"):
        mm.snapshot([1])  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        mm.snapshot(np.array([None]))
    live = mm.zeros(3)
    taken = mm.snapshot(live)
    assert "not taken" in repr(taken)
    with taken:
        assert CUT in repr(taken)
        with pytest.raises(mm.MirrorError, match="open already"):
            with taken:
                pass
    taken.close()
    with taken as frozen:  # a second time is another moment
        live[0] = 1
        assert frozen[0] == 0


def test_a_child_forked_inside_keeps_an_array_of_its_own() -> None:
    live = mm.zeros(2 * PAGE, "u1")
    with mm.snapshot(live) as frozen:
        live[0] = 1
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                seen = live[0] == 1 and frozen[0] == 0
                live[1] = 9
                os._exit(0 if seen else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert live[:2].tolist() == [1, 0]
    with mm.snapshot(live) as frozen:
        child = os.fork()
        if not child:
            os._exit(7)
        os.waitpid(child, 0)
        live[2] = 4
    assert live[2] == frozen[2] == 4


CHILD_EXITS = """
import os, mirrormap as mm
live = mm.zeros(10, "u1")
child = 1
reading, writing = os.pipe()
with mm.snapshot(live) as frozen:
    child = os.fork()
    live[0 if child else 1] = 5
    if child:
        os.read(reading, 1)  # until the child has a page of its own
    else:
        os.write(writing, b"x")
if not child:
    live[2] = 6
    assert live.tolist()[:3] == [0, 5, 6], live
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert live.tolist()[:3] == [5, 0, 0], live
"""


def test_the_end_of_the_block_in_a_child_changes_nothing_for_the_parent() -> None:
    done = run_python(CHILD_EXITS)
    assert done.returncode == 0, done.stderr


def test_a_consistent_copy_on_disk_under_a_writer(tmp_path: Path) -> None:
    """Every row carries the epoch that wrote it; the file holds one epoch's front and the last one's rest."""
    live = mm.zeros(64 * MIB // 8, "i8", populate=True)
    for _ in range(3):
        taken = mm.snapshot(live, copy=False)
        with writing(live):
            while not live[-1]:
                pass
            frozen = taken.__enter__()
            np.save(tmp_path / "saved.npy", frozen)
        taken.close()  # the writer has stopped
        saved = np.load(tmp_path / "saved.npy")
        assert is_one_moment(saved)
        assert (live >= saved).all()
        assert is_one_moment(live)


@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, ROW - 1), st.integers(1, 9)), max_size=20),
    st.integers(0, 3),
)
def test_any_stores_before_inside_and_after(stores: list[tuple[int, int, int]], cut: int) -> None:
    live, plain = mm.zeros((8, ROW), "i8"), np.zeros((8, ROW), "i8")
    third = len(stores) // 3

    def store(some: list[tuple[int, int, int]]) -> None:
        for row, column, value in some:
            live[row, column] = plain[row, column] = value

    store(stores[:third])
    with mm.snapshot(live[cut : cut + 4], copy=False) as frozen:
        moment = plain[cut : cut + 4].copy()
        store(stores[third : 2 * third])
        assert np.array_equal(frozen, moment)
        assert np.array_equal(live, plain)
    store(stores[2 * third :])
    assert np.array_equal(live, plain)
    assert np.array_equal(frozen, plain[cut : cut + 4])


REFUSED = """
import errno, os, threading, numpy as np, mirrormap as mm, seccomp
seccomp.refuse("mremap", errno.{name}, argument=3, value=7)  # MAYMOVE | FIXED | DONTUNMAP
pages = mm.Pages(4 << 20)
live = pages.map(populate=True).array("i8")
live[:] = np.arange(live.size)
for _ in range(2):
    stop = threading.Event()
    def work():
        while not stop.is_set():
            np.add(live, 1, out=live)
    expected = live.copy()
    taken = mm.snapshot(live, copy=False)
    with taken as frozen:
        assert taken.route == "overlaid" and "mremap" in taken.reason, (taken.route, taken.reason)
        writer = threading.Thread(target=work)
        writer.start()
        while live[-1] < expected[-1] + 2:
            pass
        assert np.array_equal(frozen, expected)
        stop.set()
        writer.join()
        last = live.copy()
    assert np.array_equal(live, last) and np.array_equal(frozen, last)
    live[5] = -5
    assert frozen[5] == -5  # shared again
    assert np.array_equal(np.frombuffer(os.pread(pages.fileno(), pages.nbytes, 0), "i8"), live)
    del frozen, taken
"""


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EPERM])
def test_where_page_tables_cannot_be_moved_the_view_is_overlaid(number: int) -> None:
    if not seccomp.numbers():
        pytest.skip("system call numbers of this architecture are not listed in tests/seccomp.py")
    done = run_python(REFUSED.format(name=errno.errorcode[number]))
    assert done.returncode == 0, done.stderr
