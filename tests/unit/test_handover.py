"""Pages in other processes: every way multiprocessing starts them, and both directions."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from typing import Any

import pytest

import mirrormap as mm
from support import PAGE, PATIENCE_S

METHODS = ["fork", "spawn", "forkserver"]


def answer(pages: mm.Pages, other: mm.Pages, results: Any) -> None:
    with pages.map() as view:
        view.array()[1] = view.array()[0] + 1
    results.put((pages.nbytes, other.nbytes, os.get_inheritable(pages.fileno())))


def take(pipe: Any) -> None:
    pages = pipe.recv()
    with pages.map() as view:
        view.array()[5] = 55
    pipe.send(pages.nbytes)
    pipe.close()


@pytest.mark.leaks_by_nature  # the start methods keep a server process and its pipes
@pytest.mark.parametrize("method", METHODS)
def test_children_get_the_same_pages(method: str) -> None:
    context = multiprocessing.get_context(method)
    results = context.Queue()
    with mm.Pages(10_000, name="handed") as pages, pages.map() as view:
        view.array()[0] = 41
        child = context.Process(target=answer, args=(pages, pages, results))
        child.start()
        first, second, inheritable = results.get(timeout=PATIENCE_S)
        child.join(PATIENCE_S)
        assert child.exitcode == 0
        assert (first, second, inheritable) == (pages.nbytes, pages.nbytes, False)
        assert view.array()[1] == 42
        child.close()


@pytest.mark.leaks_by_nature
def test_pages_travel_through_a_pipe() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=take, args=(theirs,))
    child.start()
    with mm.Pages(2 * PAGE) as pages, pages.map() as view:
        ours.send(pages)
        assert ours.recv() == pages.nbytes
        assert view.array()[5] == 55
    child.join(PATIENCE_S)
    child.close()


def worker(tasks: Any, results: Any) -> None:
    for pages in iter(tasks.get, None):
        with pages, pages.map() as view:
            results.put(int(view.array()[0]))


@pytest.mark.leaks_by_nature
def test_pages_travel_through_a_queue_the_same_ones_twice() -> None:
    context = multiprocessing.get_context("spawn")
    tasks, results = context.Queue(), context.Queue()
    child = context.Process(target=worker, args=(tasks, results))
    child.start()
    with mm.Pages(2 * PAGE) as one, mm.Pages(2 * PAGE) as other, one.map() as first, other.map() as second:
        first.array()[0], second.array()[0] = 1, 2
        for pages in (one, other, one):
            tasks.put(pages)
        assert [results.get(timeout=PATIENCE_S) for _ in range(3)] == [1, 2, 1]
    tasks.put(None)
    child.join(PATIENCE_S)
    assert child.exitcode == 0
    child.close()


@pytest.mark.leaks_by_nature
def test_the_logical_size_travels_not_the_object_s() -> None:
    with mm.Pages(16 * PAGE) as pages:
        pages.resize(2 * PAGE)
        with pickle.loads(pickle.dumps(pages)) as again:
            assert again.nbytes == 2 * PAGE
            again.resize(16 * PAGE)
            assert os.fstat(again.fileno()).st_size == 16 * PAGE
    with mm.Pages(1, page_size="thp") as pages, pickle.loads(pickle.dumps(pages)) as again:
        assert "transparent" in repr(again)
