"""Frozen images: what is in them, what is not, who else maps them, and what that costs."""

from __future__ import annotations

import gc
import multiprocessing as mp
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mirrormap as mm
from mirrormap import Ref, cgroups, kernel
from support import PAGE, PATIENCE_S, address_of, is_mapped, succeeds


@pytest.fixture
def heap() -> Iterator[mm.Heap]:
    made = mm.Heap("64MiB")
    yield made
    gc.collect()
    made.close()


def test_everything_that_roots_reach(heap: mm.Heap) -> None:
    node: Any = heap.record("Node", key="i8", small="u1", weight="f4", left=Ref, right=Ref)
    array = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    general = heap.new(5, 3)
    with general.writable() as data:
        data[:] = [1, 2, 3, 4, 5]
    top = node(-5, 200, 0.25, heap.put(array), general)
    general[0], general[2] = top, heap.put(b"plain")
    large = heap.put(np.full(100_000, 7, "u4"))
    heap.roots["top"], heap.roots["large"], heap.roots["empty"] = top, large, heap.put(b"")
    heap.put(b"not reached")
    heap.map()["key"] = b"a container's"

    with heap.freeze() as frozen:
        assert list(frozen.roots) == ["top", "large", "empty"]
        assert len(frozen.roots) == 3
        assert "none" not in frozen.roots
        found: Any = frozen.roots["top"]
        assert (found.key, found.small, found.weight) == (-5, 200, 0.25)
        assert isinstance(found, frozen.records["Node"])
        assert isinstance(found, mm.FrozenRecord)
        assert found.left.array.dtype == array.dtype
        assert np.array_equal(found.left.array, array)
        assert np.asarray(found.left).dtype == np.uint8 or np.asarray(found.left).shape == array.shape
        assert (bytes(found.right), found.right.nbytes, found.right.nrefs) == (bytes([1, 2, 3, 4, 5]), 5, 3)
        assert found.right[0] == found == frozen.roots["top"]
        assert len({found, found.right[0], frozen.roots["top"]}) == 1
        assert found.right[1] is None
        assert bytes(found.right[-1]) == b"plain"
        assert frozen.roots["large"].array.sum() == 700_000
        assert bytes(frozen.roots["empty"]) == b""
        assert frozen.roots["empty"].array.shape == (0,)
        assert repr(found) == "Node(key=-5, small=200, weight=0.25, left=<FrozenRef>, right=<FrozenRef>)"
        assert repr(found.right) == "<FrozenRef 5 bytes, 3 references>"
        assert "3 roots" in repr(frozen)
        assert frozen.nbytes < 420_000
        del found


def test_it_is_read_only(heap: mm.Heap) -> None:
    node: Any = heap.record("Node", key="i8", left=Ref)
    heap.roots["node"], heap.roots["bytes"] = node(1), heap.put(b"bytes")
    with heap.freeze() as frozen:
        record, ref = frozen.roots["node"], frozen.roots["bytes"]
        with pytest.raises(AttributeError, match="read-only"):
            record.key = 2
        with pytest.raises(AttributeError, match="read-only"):
            del record.key
        with pytest.raises(TypeError):
            type(record)(key=1)
        with pytest.raises(TypeError):
            memoryview(record)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            ref[0] = None  # type: ignore[index]
        with pytest.raises(IndexError, match="0 references"):
            ref[0]
        with pytest.raises(TypeError):
            frozen.roots["new"] = ref  # type: ignore[index]
        with memoryview(ref) as view, pytest.raises(TypeError, match="read-only"):
            view[0] = 1  # type: ignore[index]
        with pytest.raises(ValueError, match="read-only"):
            ref.array[0] = 1
        with pytest.raises(TypeError):
            mm.Frozen()
        with pytest.raises(TypeError, match="a Ref"):
            heap.roots["frozen"] = ref
        with pytest.raises(OSError):
            os.pwrite(frozen.fileno(), b"x", 0)


def test_later_stores_do_not_show_and_the_heap_goes_on(heap: mm.Heap) -> None:
    node: Any = heap.record("Node", key="i8", left=Ref)
    top = node(1, node(2))
    data = heap.put(b"before")
    heap.roots["top"], heap.roots["data"] = top, data
    frozen = heap.freeze()
    top.key, top.left = 3, None
    with data.writable() as array:
        array[:] = 0
    heap.collect()
    again = heap.freeze()
    heap.verify()
    assert (frozen.roots["top"].key, frozen.roots["top"].left.key, bytes(frozen.roots["data"])) == (
        1,
        2,
        b"before",
    )
    assert (again.roots["top"].key, again.roots["top"].left, bytes(again.roots["data"])) == (
        3,
        None,
        bytes(6),
    )
    del top, data, array
    heap.close()
    assert frozen.roots["top"].key == 1
    frozen.close()
    again.close()


def test_after_a_collection_that_moved_things(heap: mm.Heap) -> None:
    """References of old colours lead to where things are now."""
    rng = random.Random(1)
    kept = [heap.new(8, 2) for _ in range(20_000)]
    for number, ref in enumerate(kept):
        with ref.writable() as array:
            array[:].view("i8")[0] = number
        ref[0], ref[1] = kept[3 * rng.randrange(6666)], kept[3 * rng.randrange(6666)]
    del array, ref
    kept = kept[::3]
    heap.roots["first"] = kept[0]
    edges = {}
    for ref in kept:
        edges[bytes(ref)] = [bytes(ref[0]), bytes(ref[1])]
    heap.collect()
    assert heap.stats().moved
    with heap.freeze() as frozen:
        seen, queue = set(), [frozen.roots["first"]]
        while queue:
            here = queue.pop()
            if here in seen:
                continue
            seen.add(here)
            if bytes(here) in edges:
                assert [bytes(here[0]), bytes(here[1])] == edges[bytes(here)]
            queue += [here[0], here[1]]
        assert len(seen) > 5_000
        del here, queue, seen
    heap.verify()


def test_nothing_named_is_an_empty_image(heap: mm.Heap) -> None:
    with heap.freeze() as frozen:
        assert list(frozen.roots) == []
        with pytest.raises(KeyError):
            frozen.roots["a"]


def test_closing(heap: mm.Heap) -> None:
    heap.roots["a"], heap.roots["n"] = heap.put(b"bytes"), heap.record("N", key="i8")(1)
    frozen = heap.freeze()
    ref, record, roots = frozen.roots["a"], frozen.roots["n"], frozen.roots
    view, array = memoryview(ref), ref.array
    address = address_of(view)
    with pytest.raises(BufferError):
        frozen.close()
    assert bytes(ref) == view == b"bytes"
    view.release()
    del array
    frozen.close()
    frozen.close()
    assert not is_mapped(address)
    calls = [
        lambda: bytes(ref), lambda: ref.array, lambda: memoryview(ref), lambda: ref.nbytes, lambda: ref.nrefs, lambda: ref[0],
        lambda: record.key, lambda: roots["a"], frozen.__enter__, frozen.fileno, lambda: pickle.dumps(frozen),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(mm.ClosedError):
            call()
    assert [repr(each) for each in (frozen, ref, record)] == [
        "<Frozen closed>",
        "<FrozenRef closed>",
        "<N closed>",
    ]


def test_an_array_keeps_the_image(heap: mm.Heap) -> None:
    heap.roots["a"] = heap.put(np.arange(5))
    array = heap.freeze().roots["a"].array
    gc.collect()
    assert array.tolist() == [0, 1, 2, 3, 4]


def test_a_dtype_that_cannot_be_carried(heap: mm.Heap) -> None:
    heap.roots["a"] = heap.put(np.zeros(3, "V0"))
    with pytest.raises(ValueError, match="no bytes"):
        heap.freeze()


def test_a_full_memory_cgroup_is_a_memory_error(heap: mm.Heap, monkeypatch: pytest.MonkeyPatch) -> None:
    heap.roots["a"] = heap.put(bytes(8 << 20))
    monkeypatch.setattr(cgroups, "memory_left", lambda: 10 << 20)
    with pytest.raises(MemoryError, match="an image of 8"):
        heap.freeze()
    monkeypatch.setattr(cgroups, "memory_left", lambda: 16 << 20)
    heap.freeze().close()


def test_closed_heaps_freeze_no_more() -> None:
    heap = mm.Heap("1MiB")
    heap.close()
    with pytest.raises(mm.ClosedError):
        heap.freeze()


# --- other processes --------------------------------------------------------------------------


def graph(heap: mm.Heap, count: int) -> None:
    node: Any = heap.record("Node", key="i8", left=Ref, right=Ref)
    made = [node(number) for number in range(count)]
    for number, each in enumerate(made):
        if 2 * number + 2 < count:
            each.left, each.right = made[2 * number + 1], made[2 * number + 2]
    heap.roots["top"], heap.roots["array"] = made[0], heap.put(np.arange(1000))


def total(frozen: mm.Frozen) -> int:
    count, queue = 0, [frozen.roots["top"]]
    while queue:
        here = queue.pop()
        count += here.key
        if here.left is not None:
            queue += [here.left, here.right]
    return count + int(frozen.roots["array"].array.sum())


def private_nbytes(frozen: mm.Frozen) -> int:
    """Of the image's mapping: pages that this process alone has written, or has a copy of."""
    start = address_of(memoryview(frozen.roots["array"])) // PAGE
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            low, high = (int(each, 16) for each in words[0].split("-"))
            inside = low <= start * PAGE < high
        elif inside and words[0] == "Private_Dirty:":
            return int(words[1]) << 10
    raise RuntimeError("the image is not mapped")


def reads(frozen: mm.Frozen, answers: Any) -> None:
    answers.put((total(frozen), private_nbytes(frozen)))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.leaks_by_nature  # the forkserver and the resource sharer's thread stay
def test_readers_of_every_kind_privatise_nothing(heap: mm.Heap, method: str) -> None:
    graph(heap, 20_000)
    frozen = heap.freeze()
    expected = total(frozen)
    context = mp.get_context(method)
    answers = context.Queue()
    readers = [context.Process(target=reads, args=(frozen, answers)) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in readers:
        count, private = answers.get(timeout=PATIENCE_S)
        assert count == expected
        assert private <= frozen.nbytes // 100
    for reader in readers:
        reader.join()
        assert reader.exitcode == 0
    answers.close()
    answers.join_thread()
    frozen.close()


def test_a_child_reads_what_it_inherited() -> None:
    succeeds("""
import os
import mirrormap as mm
heap = mm.Heap("8MiB")
node = heap.record("Node", key="i8", left=mm.Ref)
heap.roots["a"] = node(5, node(6))
frozen = heap.freeze()
child = os.fork()
if not child:
    assert frozen.roots["a"].left.key == 6
    frozen.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert frozen.roots["a"].left.key == 6
""")


def test_by_descriptor(heap: mm.Heap) -> None:
    heap.roots["a"] = heap.put(b"bytes")
    frozen = heap.freeze()
    again = mm.Frozen.from_fd(frozen.fileno())
    assert kernel.get_seals(again.fileno()) & kernel.F_SEAL_WRITE
    frozen.close()
    assert bytes(again.roots["a"]) == b"bytes"
    again.close()
