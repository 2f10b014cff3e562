"""Mapping: closing, forks, threads, the end of the interpreter, and what it says of itself."""

from __future__ import annotations

import copy
import gc
import itertools
import mmap
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

import mirrormap as mm
from mirrormap import residency
from support import PAGE, protections, read, succeeds

# --- lifetime ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_views_close_in_any_order_and_the_last_one_keeps_the_pages(order: tuple[int, ...]) -> None:
    pages = mm.Pages(PAGE)
    views = [pages.map()]
    views += [views[0].mirror(), mm.mirror(views[0].array()[:0:-1]) is None or views[0].mirror(), pages.map()]
    views[0].array()[0] = 77
    inode = str(os.fstat(pages.fileno()).st_ino)
    pages.close()
    for index in order[:-1]:
        views[index].close()
        assert views[order[-1]].array()[0] == 77
    views[order[-1]].close()
    del views
    shared = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    assert inode not in [line[4] for line in shared if line[1].endswith("s")]


def test_closing_under_a_live_array_is_a_buffer_error_and_changes_nothing() -> None:
    with mm.Pages(PAGE) as pages:
        view = pages.map()
        array = view.array(shape=1)
        bytes_ = memoryview(view)
        with pytest.raises(BufferError, match="delete them first"):
            view.close()
        assert not view.closed
        del array
        with pytest.raises(BufferError):
            view.close()
        bytes_.release()
        view.close()
        view.close()
        assert view.closed


def test_an_exception_in_the_block_is_not_hidden_by_a_live_array() -> None:
    held = []
    with pytest.raises(RuntimeError, match="mine"):
        with mm.Pages(PAGE) as pages, pages.map() as view:
            held.append(view.array())
            raise RuntimeError("mine")
    assert view.closed
    held[0][0] = 1


def test_a_mapping_is_neither_pickled_nor_copied() -> None:
    with mm.Pages(PAGE) as pages, pages.map() as view:
        with pytest.raises(TypeError, match="pickle its Pages"):
            pickle.dumps(view)
        with pytest.raises(TypeError, match="pickle its Pages"):
            copy.copy(view)
    with pytest.raises(TypeError, match=r"Pages\.map"):
        mm.Mapping()


def test_a_forked_child_shares_by_default() -> None:
    with mm.Pages(PAGE) as pages, pages.map() as view:
        child = os.fork()
        if child == 0:
            view.array()[3] = 44
            os._exit(0)
        os.waitpid(child, 0)
        assert view.array()[3] == 44
        assert view.inherit == "share"


def test_a_view_that_is_not_inherited_counts_as_closed_in_the_child() -> None:
    with mm.Pages(PAGE) as pages, pages.map() as view:
        view.inherit = "none"
        address = view.address
        view.resize(3 * PAGE)
        assert view.inherit == "none"
        child = os.fork()
        if child == 0:
            ok = view.closed and "rw-s" not in protections(view._region.address, 3 * PAGE)
            try:
                view.array()
                ok = False
            except mm.ClosedError:
                pass
            stranger = mmap.mmap(-1, PAGE)  # may lie where the view was; closing must not unmap it
            view.close()
            del view
            gc.collect()
            stranger[0] = 1
            os._exit(0 if ok else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        view.array()[0] = 1
        view.inherit = "share"
        child = os.fork()
        if child == 0:
            view.array()[0] = 2
            os._exit(0)
        os.waitpid(child, 0)
        assert view.array()[0] == 2
        assert address != 0


def test_growth_in_place_is_not_inherited_either() -> None:
    with mm.Pages(PAGE) as pages, pages.map(reserve=64 * PAGE) as view:
        view.inherit = "none"
        view.resize(32 * PAGE)
        address = view.address
        child = os.fork()
        if child == 0:
            # the child's own memory may have come to lie there by the time it looks
            os._exit(1 if any(letters[3] == "s" for letters in protections(address, 64 * PAGE)) else 0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_child_has_none_of_the_entries() -> None:
    with mm.Pages(64 * PAGE) as pages, pages.map(populate=True) as view:
        child = os.fork()
        if child == 0:
            os._exit(1 if view.resident else 0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_threads_take_turns_on_one_mapping() -> None:
    with mm.Pages(PAGE) as pages, pages.map(reserve=256 * PAGE) as view:
        failures: list[BaseException] = []

        def work(seed: int) -> None:
            numbers = np.random.default_rng(seed)
            try:
                for _ in range(150):
                    act = numbers.integers(5)
                    if act == 0:
                        view.resize(int(numbers.integers(4, 256)) * PAGE)
                    elif act == 1:
                        view.protect("r", 0, PAGE)
                        view.protect("rw", 0, PAGE)
                    elif act == 2:
                        view.populate()
                    elif act == 3:
                        view.mirror(0, PAGE).close()
                    else:
                        view.array(shape=PAGE).sum()
            except BufferError:  # another thread's array was alive just then
                pass
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures


def test_the_end_of_the_interpreter_with_live_views_is_quiet() -> None:
    assert (
        succeeds(
            "import mirrormap as mm\n"
            "pages = mm.Pages('1MiB'); view = pages.map(); array = view.array(); other = mm.mirror(array)\n"
            "cycle = [view]; cycle.append(cycle)\nprint('end')"
        )
        == "end\n"
    )


def test_reprs_tell() -> None:
    with mm.Pages("64KiB", name="r") as pages, pages.map() as view:
        assert "64 KiB" in repr(view)
        assert hex(view.address) in repr(view)
        assert "'rw'" in repr(view)
        assert "64 KiB" in repr(pages)
    assert repr(view) == "<Mapping closed>"


def test_residency_is_of_this_view_alone() -> None:
    with mm.Pages(8 * PAGE) as pages, pages.map() as view:
        view.array()[3 * PAGE] = 1
        assert view.resident >= PAGE
        assert view.resident_huge == 0
        assert residency.nbytes_present(view.address + 3 * PAGE, 1) == PAGE
        assert read(view.address + 3 * PAGE, 1) == b"\x01"
