"""Heap: objects in and out, references, roots, weak references, collection, limits."""

from __future__ import annotations

import gc
import random
from typing import Any

import numpy as np
import pytest

import mirrormap as mm
from support import BLOCK, PAGE, address_of


@pytest.fixture(params=["manual", "incremental", "background"])
def heap(request: pytest.FixtureRequest) -> Any:
    made = mm.Heap("16MiB", collector=request.param)
    yield made
    gc.collect()
    made.close()


def filled(heap: mm.Heap, count: int, seed: int = 0, largest: int = 3000) -> list[tuple[mm.Ref, bytes]]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        data = rng.randbytes(rng.randrange(largest))
        made.append((heap.put(data), data))
    return made


# --- bytes and arrays -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"", b"x", bytes(15), bytearray(b"abc"), memoryview(b"12345"), bytes(range(256)) * 2000]
)
def test_bytes_come_back(heap: mm.Heap, data: Any) -> None:
    ref = heap.put(data)
    assert bytes(ref) == bytes(data)
    assert ref.nbytes == len(data)
    assert ref.nrefs == 0
    assert ref.array.dtype == np.uint8
    assert ref.array.tobytes() == bytes(data)
    with memoryview(ref) as view:
        assert view.readonly
        assert view == bytes(data)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4),
        np.arange(24).reshape(2, 3, 4)[:, ::2, ::-1],
        np.array(7, ">i2"),
        np.zeros((0, 5), "c16"),
        np.zeros(3, [("a", "i1"), ("b", "f8")]),
        np.array(["x", "yz"]),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.ones((1,) * 30),
    ],
    ids=str,
)
def test_arrays_keep_dtype_and_shape(heap: mm.Heap, array: np.ndarray[Any, Any]) -> None:
    got = heap.put(array).array
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    assert np.array_equal(got, array)
    assert not got.flags.writeable
    assert got.flags.aligned
    with pytest.raises(ValueError):
        got.flags.writeable = True


@pytest.mark.parametrize(("data", "error"), [("text", TypeError), (5, TypeError), (None, TypeError), (np.array([object()]), TypeError), (memoryview(b"abcd")[::2], BufferError)])  # fmt: skip
def test_what_is_no_bytes_is_refused(heap: mm.Heap, data: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        heap.put(data)
    assert heap.verify().objects == 0


def test_a_view_keeps_its_address_and_its_bytes_while_everything_round_it_moves(heap: mm.Heap) -> None:
    made = filled(heap, 2000)
    views = [(made[at][0].array, made[at][1]) for at in range(0, 2000, 97)]
    addresses = [view.ctypes.data for view, _ in views]
    del made
    heap.collect()
    heap.verify()
    filled(heap, 2000, seed=1)
    heap.collect()
    assert [view.ctypes.data for view, _ in views] == addresses
    for view, data in views:
        assert view.tobytes() == data
    assert heap.stats().views == len(views)
    assert heap.stats().pinned >= sum(len(data) for _, data in views)
    assert heap.verify().objects == len(views)


def test_pages_between_pinned_objects_are_given_back(heap: mm.Heap) -> None:
    made = [heap.put(bytes([at % 251]) * 1000) for at in range(4000)]
    views = [memoryview(ref) for ref in made[::100]]
    full = heap.stats().committed
    del made
    heap.collect()
    assert heap.stats().committed <= full // 8 + BLOCK
    assert heap.stats().committed >= len(views) * 1000
    heap.verify()
    for at, view in enumerate(views):
        assert view == bytes([at * 100 % 251]) * 1000


def test_writable_writes_in_place(heap: mm.Heap) -> None:
    ref = heap.put(np.zeros(5))
    with ref.writable() as array:
        array[2] = 4
    del array
    assert ref.array.tolist() == [0, 0, 4, 0, 0]
    blank = heap.new(3)
    with blank.writable() as array:
        array[:] = 1
    assert bytes(blank) == b"\1\1\1"
    del array
    with pytest.raises(ValueError):
        np.frombuffer(blank, "u1").setflags(write=True)


# --- references ------------------------------------------------------------------------------


def test_references_are_stored_loaded_and_cleared(heap: mm.Heap) -> None:
    node = heap.new(8, 3)
    leaf = heap.put(b"leaf")
    assert [node[at] for at in range(3)] == [None] * 3
    node[1] = leaf
    node[-1] = node
    assert node[1] == leaf
    assert node[2] == node
    node[1] = None
    assert node[1] is None
    assert bytes(node) == bytes(8)


def test_references_that_are_none(heap: mm.Heap) -> None:
    node, leaf = heap.new(0, 2), heap.put(b"leaf")
    for index in (2, -3, 1 << 70):
        with pytest.raises(IndexError):
            node[index]
        with pytest.raises(IndexError):
            node[index] = leaf
    with pytest.raises(IndexError):
        leaf[0]
    with pytest.raises(TypeError):
        node["a"]  # type: ignore[index]
    with pytest.raises(TypeError):
        node[0] = b"bytes"  # type: ignore[assignment]
    with pytest.raises(TypeError):
        del node[0]  # type: ignore[attr-defined]
    with mm.Heap("1MiB") as other:
        stranger = other.put(b"")
        with pytest.raises(ValueError, match="another heap"):
            node[0] = stranger
        with pytest.raises(ValueError, match="another heap"):
            heap.roots["x"] = stranger
        with pytest.raises(ValueError, match="another heap"):
            heap.weak(stranger)
    assert [node[0], node[1]] == [None, None]


@pytest.mark.parametrize(("nbytes", "nrefs"), [(-1, 0), (1 << 40, 0), (0, -1), (0, 1 << 31)])
def test_objects_that_cannot_be(heap: mm.Heap, nbytes: int, nrefs: int) -> None:
    with pytest.raises(ValueError):
        heap.new(nbytes, nrefs)


def test_refs_of_one_object_are_equal_and_hash_alike_wherever_it_goes(heap: mm.Heap) -> None:
    made = filled(heap, 3000)
    node = heap.new(0, 1)
    node[0] = made[1500][0]
    kept = {made[1500][0]: "here"}
    before = heap.stats().moved
    del made
    heap.collect()
    assert heap.stats().moved > before
    again = node[0]
    assert again in kept
    assert again is not next(iter(kept))
    assert again != node
    assert again != 5


def test_cycles_die_and_chains_live(heap: mm.Heap) -> None:
    first = heap.new(0, 1)
    node = first
    for _ in range(5000):
        after = heap.new(0, 1)
        node[0] = after
        node = after
    node[0] = first
    del node, after
    heap.collect()
    assert heap.verify().objects == 5001
    assert heap.verify().references == 5001
    del first
    heap.collect()
    assert heap.verify().objects == 0
    assert heap.stats().live == 0
    assert heap.stats().committed == 0


def test_old_references_are_mended_when_they_are_loaded(heap: mm.Heap) -> None:
    """Between a collection and the next marking, slots hold references to where things were."""
    table = heap.new(0, 1000)
    wanted = []
    for at in range(4000):
        node = heap.new(64, 1)
        with node.writable() as array:
            array[:8] = np.frombuffer(at.to_bytes(8, "little"), "u1")
        del array
        if at % 4 == 0:
            table[at // 4] = node
            node[0] = table
            wanted.append(at)
    del node
    for _ in range(5):  # through all three colours, and round
        before = heap.stats().moved
        heap.collect()
        heap.verify()
        for at, number in enumerate(wanted):
            node = table[at]
            assert node is not None
            assert int.from_bytes(bytes(node)[:8], "little") == number
            assert node[0] == table
        del node
        heap.verify()
        for at in range(0, len(wanted), 2):
            table[at] = None
        wanted = wanted[1::2]
        for at, number in enumerate(wanted):
            table[at] = table[2 * at + 1]
            assert number % 4 == 0
        for at in range(len(wanted), 1000):
            table[at] = None
        assert heap.stats().moved >= before
    assert heap.stats().moved > 1000


# --- roots, weak references --------------------------------------------------------------------


def test_roots_are_a_mutable_mapping(heap: mm.Heap) -> None:
    roots = heap.roots
    roots["a"] = heap.put(b"first")
    roots["a"] = heap.put(b"second")
    roots["b"] = roots["a"]
    heap.collect()
    assert sorted(roots) == ["a", "b"]
    assert heap.roots["a"] == heap.roots["b"]
    assert bytes(roots["a"]) == b"second"
    assert heap.verify().objects == 1
    del roots["a"]
    assert "a" not in heap.roots
    assert len(roots) == 1
    with pytest.raises(KeyError):
        del roots["a"]
    with pytest.raises(KeyError):
        roots["a"]
    with pytest.raises(TypeError):
        roots[5] = roots["b"]  # type: ignore[index]
    with pytest.raises(TypeError):
        roots["c"] = b"bytes"  # type: ignore[assignment]
    roots.clear()
    heap.collect()
    assert heap.verify().objects == 0


def test_weak_references(heap: mm.Heap) -> None:
    made = filled(heap, 2000)
    weak = [heap.weak(ref) for ref, _ in made]
    del made[::2]
    heap.collect()
    assert [reference() is None for reference in weak] == [at % 2 == 0 for at in range(2000)]
    for at, (ref, data) in enumerate(made):
        found = weak[2 * at + 1]()
        assert found == ref
        assert found is not None
        assert bytes(found) == data
    del weak[::3]
    assert repr(heap.weak(made[0][0])) == f"<Weak to {made[0][0]!r}>"


def test_an_object_is_had_back_by_a_weak_reference(heap: mm.Heap) -> None:
    weak = heap.weak(heap.put(b"back"))
    ref = weak()
    heap.collect()
    assert ref is not None
    assert bytes(ref) == b"back"
    del ref
    heap.collect()
    assert weak() is None


# --- memory -----------------------------------------------------------------------------------


def test_scattered_survivors_are_moved_together(heap: mm.Heap) -> None:
    made = filled(heap, 6000)
    random.Random(3).shuffle(made)
    del made[400:]
    heap.collect()
    stats = heap.stats()
    assert stats.committed <= 1.1 * stats.live + BLOCK // 2
    assert stats.live == heap.verify().nbytes
    for ref, data in made:
        assert bytes(ref) == data


def test_large_values_never_move_and_go_back(heap: mm.Heap) -> None:
    large = [heap.put(np.full(1 << 20, at, "u1")) for at in range(8)]
    addresses = [address_of(ref) for ref in large]
    node = heap.new(100_000, 50_000)
    node[49_999] = large[3]
    del large[1:]
    heap.collect()
    assert address_of(large[0]) == addresses[0]
    found = node[49_999]
    assert found is not None
    assert address_of(found) == addresses[3]
    assert (found.array == 3).all()
    assert heap.stats().committed < 4 << 20
    del found, node, large
    heap.collect()
    assert heap.stats().committed == 0


def test_a_full_heap_is_a_collection_then_a_memory_error(heap: mm.Heap) -> None:
    for _ in range(200):
        heap.put(bytes(200_000))  # forty megabytes of garbage
    assert heap.stats().collections > 0
    kept = []
    with pytest.raises(MemoryError, match=r"no room for 30000 bytes.* of at most 16777216 bytes"):
        while True:
            kept.append(heap.put(bytes([len(kept) % 256]) * 30_000))
    assert 14 << 20 < heap.stats().committed <= 16 << 20
    heap.verify()
    for at, ref in enumerate(kept):
        assert bytes(ref) == bytes([at % 256]) * 30_000
    with pytest.raises(MemoryError):
        heap.put(bytes(17 << 20))
    del kept[::2]
    kept.append(heap.put(bytes(1 << 20)))
    heap.verify()


def test_a_full_heap_can_still_move_things(heap: mm.Heap) -> None:
    kept = []
    with pytest.raises(MemoryError):
        while True:
            kept.append((heap.put(bytes([len(kept) % 256]) * 3000), len(kept) % 256))
    del kept[::2]
    heap.collect()
    assert heap.stats().committed <= 1.1 * heap.stats().live + BLOCK
    heap.verify()
    assert all(bytes(ref) == bytes([value]) * 3000 for ref, value in kept)


@pytest.mark.parametrize(("options", "error"), [
    ({"max_bytes": 1000}, ValueError), ({"max_bytes": "2TiB"}, ValueError), ({"max_bytes": 2.5}, TypeError),
    ({"target": 1.0}, ValueError), ({"target": float("nan")}, ValueError), ({"collector": "sometimes"}, ValueError),
    ({"stress": -1}, ValueError), ({"stress": 1.5}, TypeError),
    ({"views": 2}, ValueError), ({"page_size": "2MiB"}, ValueError), ({"pages": 3}, TypeError),
])  # fmt: skip
def test_bad_arguments(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        mm.Heap(**options)


def test_stats_and_repr(heap: mm.Heap) -> None:
    ref = heap.put(bytes(100_000))
    stats = heap.stats()
    assert stats.live >= 100_000
    assert stats.committed % PAGE == 0
    assert stats.resident <= stats.committed * (1 + len(heap._colours))
    assert "of at most 16 MiB" in repr(heap)
    assert repr(ref) == "<Ref 100000 bytes, 0 references>"
    heap.roots["here"] = ref
    assert repr(heap.roots) == "<Roots here>"
