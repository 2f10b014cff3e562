"""Every system call of meshing made to fail in turn: mapping pages again, holding frames, filling and punching them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mirrormap as mm
from faults import arm, disarm, fault_hits, needs_faults
from pinned import Looks, entries
from support import PAGE

pytestmark = needs_faults


class Scene:
    """Few of many objects and values, under views, some of their pages meshed already."""

    def __init__(self) -> None:
        self.heap = mm.Heap(PAGE << 12, collector="manual")
        self.entries = entries()
        self.looks = [Looks(self.heap, owned, 1200, 8, seed) for seed in (1, 2) for owned in (False, True)]
        self.heap._mesh_most(60)
        self.heap.put(b"reason")
        while self.heap.step(1000):
            pass
        self.heap._mesh_most(1 << 20)

    def check(self) -> None:
        self.heap.verify()
        assert self.heap.stats().mappings == entries() - self.entries
        for each in self.looks:
            each.check()

    def close(self) -> None:
        disarm()
        self.check()
        for each in self.looks:
            each.clear()
        self.heap.collect()
        self.heap.collect()
        self.heap.verify()
        stats = self.heap.stats()
        assert (stats.committed, stats.mappings) == (0, 0), "what could not be done then is done now"
        self.heap.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.close()


def mesh(scene: Scene) -> None:
    mesh_in(scene.heap)


def mesh_in(heap: mm.Heap) -> None:
    heap.put(b"reason")
    while heap.step(0):
        pass


def overwrite(looks: Looks, every: int) -> None:
    for at, ref in list(looks.refs.items())[::every]:
        with ref.writable() as array:
            array[:] = at % 256
            looks.data[at] = array.tobytes()
            del array


def write(scene: Scene) -> None:
    for each in scene.looks:
        overwrite(each, 10)


def mesh_and_write(scene: Scene) -> None:
    """What was moved half-way is written to."""
    drop(scene)
    write(scene)


def drop(scene: Scene) -> None:
    for each in scene.looks:
        for at in list(each.views)[::2]:
            each.drop(at)
    mesh(scene)


def loosen(scene: Scene) -> None:
    for each in scene.looks[:2]:
        each.clear()
    mesh(scene)


ACTS: dict[str, Callable[[Scene], Any]] = {
    "mesh": mesh,
    "write": write,
    "drop": drop,
    "loosen": loosen,
    "mesh and write": mesh_and_write,
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("mmap", errno.ENOMEM),
        ("fallocate", errno.ENOMEM),
        ("fallocate", errno.EINTR),
        ("pwrite", errno.ENOMEM),
    ],
)
def test_whatever_fails_views_show_what_they_did(scene: Scene, act: str, call: str, error: int) -> None:
    nth, hits = 0, True
    while hits and nth < 150:
        nth += 1
        arm(call, nth, error, "msync" if nth % 2 else "")
        try:
            ACTS[act](scene)
        except MemoryError as refused:
            assert "shares its pages" in str(refused)
        hits = bool(fault_hits()[0])
        disarm()
        scene.check()
    assert nth > 1 or (act, call) in {("mesh", "pwrite"), ("drop", "pwrite"), ("loosen", "pwrite")}


@pytest.mark.parametrize("nth", [2, 3, 6])
def test_pages_that_were_to_move_together_are_where_they_can_stay(nth: int) -> None:
    """One mapping is refused among those of pages that share a frame and go to another."""
    with mm.Heap(PAGE << 14, collector="manual") as heap:
        looks = Looks(heap, False, 24_000, keep=3)
        heap.collect()
        for at in sorted(looks.views)[::3] + sorted(looks.views)[1::3]:
            looks.drop(at)
        heap._mesh_most(0)  # what nothing lives in goes first, or one of its mappings would be refused
        mesh_in(heap)
        emptier = heap.stats().committed
        heap._mesh_most(1 << 20)
        heap.put(b"reason")
        arm("mmap", nth, errno.ENOMEM)
        while not fault_hits()[0]:
            assert heap.step(0)
        disarm()
        heap.verify()
        looks.check()
        overwrite(looks, 1)
        heap.verify()
        looks.check()
        mesh_in(heap)
        assert heap.stats().committed < emptier / 2
        looks.clear()
