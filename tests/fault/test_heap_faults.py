"""Every fallocate(2) of a heap made to fail in turn: to hold pages, and to give them back."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mirrormap as mm
from faults import arm, disarm, fault_hits, needs_faults
from support import phase_of

pytestmark = needs_faults


class Scene:
    """A heap with holes in every kind of block, and what must be in it whatever fails."""

    def __init__(self) -> None:
        rng = random.Random(1)
        self.heap = mm.Heap("16MiB", collector="manual")
        self.kept = [(self.heap.put(data), data) for data in (rng.randbytes(3000) for _ in range(600))]
        self.node = self.heap.new(0, 300)
        for at in range(300):
            self.node[at] = self.kept[2 * at][0]
        self.cache = self.heap.map()
        for at in range(600):
            self.cache[at] = self.kept[at][1]
        self.large = self.heap.put(bytes(1 << 20))
        self.view = memoryview(self.kept[300][0])
        self.kept = self.kept[::4]

    def check(self) -> None:
        self.heap.verify()
        for ref, data in self.kept:
            assert bytes(ref) == data
        for at, (ref, _) in enumerate(self.kept):
            assert self.node[2 * at] == ref
        for at in self.cache:
            assert len(self.cache[at]) == 3000

    def close(self) -> None:
        disarm()
        self.view.release()
        self.kept.clear()
        self.node, self.large = self.heap.put(b""), self.heap.put(b"")
        self.cache.clear()
        self.heap.collect()
        self.heap.verify()
        assert self.heap.stats().committed < 1 << 20, "what could not be given back then goes now"
        self.heap.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.close()


def own(scene: Scene) -> None:
    for at in range(600):
        scene.cache[at] = bytes(3000)


def disown(scene: Scene) -> None:
    own(scene)
    for at in range(600):
        if at % 8:
            del scene.cache[at]


def step(scene: Scene) -> None:
    """A collection in the smallest steps, with the heap looked through after each tenth."""
    while scene.heap.step(0):
        if phase_of(scene.heap) in ("choose", "move") or random.random() < 0.02:
            scene.heap.verify()
    scene.heap.verify()


def evacuate(scene: Scene) -> None:
    """Objects that have to leave their blocks, every time."""
    rng = random.Random(2)
    fresh = [scene.heap.put(rng.randbytes(rng.randrange(2000))) for _ in range(1200)]
    held = scene.heap.new(0, 400)
    for at in range(400):
        held[at] = fresh[3 * at]
    expected = [bytes(ref) for ref in fresh[::3]]
    fresh.clear()
    scene.heap.collect()
    scene.heap.verify()
    for at, data in enumerate(expected):
        found = held[at]
        assert found is not None
        assert bytes(found) == data


ACTS: dict[str, Callable[[Scene], Any]] = {
    "put": lambda scene: [scene.heap.put(bytes(30_000)) for _ in range(20)],
    "put large": lambda scene: scene.heap.put(bytes(5 << 20)),
    "own": own,
    "disown": disown,
    "collect": lambda scene: scene.heap.collect(),
    "step": step,
    "evacuate": evacuate,
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("error", [errno.ENOMEM, errno.ENOSPC, errno.EINTR, errno.EPERM])
def test_whatever_fails_the_heap_stays_intact(scene: Scene, act: str, error: int) -> None:
    nth = 0
    while True:
        nth += 1
        arm("fallocate", nth, error)
        try:
            ACTS[act](scene)
        except MemoryError as refused:
            assert "of at most 16777216 bytes" in str(refused)
        hits = fault_hits()[0]
        disarm()
        scene.check()
        if not hits:
            break
    assert nth > 1, "nothing was made to fail"
    if act == "evacuate":
        slid = scene.heap._slide(False)
        assert slid if error != errno.EINTR else not slid, "some failed while objects were moved"
