"""Every kernel call behind a heap, its images and its growing arrays made to fail in turn, in every way.

Whatever fails is the exception that is promised, leaves no mapping and no descriptor, and the heap as it was.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pytest
from test_injected import FAULTS, UNDOING

import mirrormap as mm
from faults import arm, disarm, fault_hits, needs_faults
from support import grown_since, held

pytestmark = needs_faults

SHORT = (errno.ENOMEM, errno.ENOSPC)


class Scene:
    """A heap with objects of every kind, an image of it and an array, and what must be in them whatever fails."""

    def __init__(self) -> None:
        self.heap = mm.Heap("128MiB", collector="manual")
        node: Any = self.heap.record("Node", key="i8", left=mm.Ref, right=mm.Ref)
        self.refs = [self.heap.put(bytes([at]) * 3000) for at in range(200)]
        self.heap.roots["tree"] = node(1, self.refs[0], self.refs[1])
        self.heap.roots["large"] = self.heap.put(bytes(300_000))
        self.view = self.refs[7].array
        del self.refs[100:]
        self.frozen = self.heap.freeze()
        self.array = self.heap.array("i4")
        self.array.extend(range(20_000))
        self.shown = self.array.array

    def check(self) -> None:
        self.heap.verify()
        assert all(bytes(ref) == bytes([at]) * 3000 for at, ref in enumerate(self.refs))
        assert bytes(self.view) == bytes([7]) * 3000
        for roots in (self.heap.roots, self.frozen.roots):
            assert roots["tree"].key == 1
            assert bytes(roots["tree"].right) == bytes([1]) * 3000
            assert len(bytes(roots["large"])) == 300_000
        assert np.array_equal(self.shown, np.arange(20_000))
        assert np.array_equal(self.array.array[:20_000], self.shown)
        self.array.append(len(self.array))
        assert np.array_equal(self.array.array, np.arange(len(self.array)))

    def close(self) -> None:
        del self.view, self.shown
        self.refs.clear()
        self.frozen.close()
        self.heap.close()


def freeze(scene: Scene) -> None:
    with scene.heap.freeze() as frozen:
        assert bytes(frozen.roots["tree"].left) == bytes(3000)


def freeze_after_moving(scene: Scene) -> None:
    del scene.heap.roots["large"]
    try:
        scene.heap.collect()
        freeze(scene)
    finally:
        disarm_later(lambda: scene.heap.roots.__setitem__("large", scene.heap.put(bytes(300_000))))


def disarm_later(call: Callable[[], None]) -> None:
    """What a scene needs again, and that was not what should fail; how often something did is kept."""
    kept.append(fault_hits())
    disarm()
    call()


kept: list[tuple[int, str]] = []


def open_again(scene: Scene) -> None:
    with mm.Frozen.from_fd(scene.frozen.fileno()) as again:
        assert again.roots["tree"].key == 1


def begin(scene: Scene) -> None:
    with mm.Heap("4MiB", collector="incremental") as heap:
        heap.roots["a"] = heap.put(b"a")
        heap.put(bytes(200_000))
        heap.collect()
        assert bytes(heap.roots["a"]) == b"a"


def array(scene: Scene) -> None:
    made = scene.heap.array("u2")
    made.append(3)
    made.extend([4] * 50)
    assert made.array[0] == 3


def extend(count: int) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        first = len(scene.array)
        scene.array.extend(range(first, first + count))

    return act


def append(scene: Scene) -> None:
    """The one element for which there is no memory yet."""
    first, room = len(scene.array), (scene.array._committed - scene.array.nbytes) // 4
    scene.array.extend(range(first, first + room))
    scene.array.append(first + room)


OPERATIONS: dict[str, Callable[[Scene], None]] = {
    "a heap": begin,
    "freeze": freeze,
    "freeze after moving": freeze_after_moving,
    "an image once more": open_again,
    "an array": array,
    "append": append,
    "extend a little": extend(30_000),
    "extend by write": extend(100_000),
}


@pytest.fixture
def scene() -> Generator[Scene]:
    made = Scene()
    yield made
    disarm()
    made.close()


def attempted(operation: Callable[[Scene], None], scene: Scene, number: int) -> tuple[int, str]:
    """Do it. Returns: how many calls failed, and which first. Anything but what is promised is an error."""
    kept.clear()
    hits = None
    try:
        operation(scene)
    except MemoryError as error:
        assert number != errno.EINTR, error
        assert "no memory" in str(error) or "no room" in str(error) or number in SHORT
    except mm.CorruptError as error:
        assert number == errno.EINVAL, error  # the kernel's answer for what cannot be sealed
        assert "not sealed" in str(error)
    except (mm.MapError, OSError) as error:
        assert number != errno.EINTR, f"not repeated: {error}"
        assert error.errno == number, error
    hits = kept[0] if kept else fault_hits()
    disarm()
    return hits


@pytest.mark.leaks_by_nature  # counted inside, where the reason is known
@pytest.mark.parametrize("name", OPERATIONS)
def test_whatever_fails_nothing_is_lost(scene: Scene, name: str) -> None:
    OPERATIONS[name](scene)  # warm: whatever is cached is there from now on
    failed = 0
    for nth in itertools.count(1):
        hit = ""
        for number, undoing in [*FAULTS, (errno.ENOSPC, "")]:
            before = held()
            arm("*", nth, number, undoing)
            hits, hit = attempted(OPERATIONS[name], scene, number)
            scene.check()
            failed += hits
            lost = (hit in UNDOING) + (hits == 2)
            grown = grown_since(before)
            if lost:  # what cannot be unmapped or closed stays
                assert all(now - then <= 2 * lost for then, now in grown.values()), (hit, grown)
            else:
                assert not grown, f"call {nth}, {hit}, answering {errno.errorcode[number]}: {grown}"
            if not hit:
                break
        if not hit:
            break
    assert failed, "nothing was made to fail"
