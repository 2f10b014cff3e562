"""How a heap ends, whose it is, and who else shares it: closing, forks, threads, a memory cgroup."""

from __future__ import annotations

import gc

import pytest

import mirrormap as mm
from mirrormap import cgroups
from support import heaps_are_gone, succeeds


def test_a_full_memory_cgroup_is_a_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
    heap = mm.Heap("256MiB")
    monkeypatch.setattr(cgroups, "memory_left", lambda: (100 << 20) - heap.stats().committed)
    kept: list[mm.Ref] = []
    with pytest.raises(MemoryError, match="the memory cgroup does not allow"):
        kept.extend(heap.put(bytes(50_000)) for _ in range(10_000))
    assert 90 << 20 < heap.stats().committed <= 96 << 20
    heap.verify()
    del kept[::2]
    kept.append(heap.put(bytes(1 << 20)))
    heap.verify()
    kept.clear()
    heap.close()


def test_closing() -> None:
    heap = mm.Heap("1MiB")
    ref, node, roots = heap.put(b"bytes"), heap.new(1, 1), heap.roots
    weak, cache = heap.weak(ref), heap.map()
    cache["a"] = b"value"
    view = memoryview(ref)
    with pytest.raises(BufferError, match="1 arrays or memoryviews"):
        heap.close()
    assert bytes(ref) == b"bytes"
    view.release()
    heap.close()
    heap.close()
    calls = [
        lambda: heap.put(b""), lambda: heap.new(1), heap.collect, heap.stats, heap.verify, lambda: bytes(ref),
        lambda: memoryview(ref), lambda: ref.array, lambda: ref.nbytes, lambda: ref.nrefs, lambda: node[0],
        lambda: node.__setitem__(0, None), ref.writable, lambda: heap.weak(ref), weak,
        lambda: roots.__setitem__("a", ref), lambda: cache["a"], lambda: cache.view("a"), lambda: len(cache),
        lambda: cache.__setitem__("a", b""), lambda: cache.__delitem__("a"), lambda: list(cache), heap.__enter__,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(mm.ClosedError):
            call()
    assert [repr(each) for each in (heap, ref, weak)] == ["<Heap closed>", "<Ref closed>", "<Weak closed>"]
    assert ref == ref
    assert heap.closed


def test_a_heap_that_was_never_made_is_closed() -> None:
    heap = mm.Heap.__new__(mm.Heap)
    with pytest.raises(mm.ClosedError):
        heap.put(b"")
    with pytest.raises(TypeError):
        mm.Ref()


def test_a_heap_is_made_once() -> None:
    with mm.Heap("1MiB") as heap:
        ref = heap.put(b"kept")
        with pytest.raises(mm.MirrorError, match="already"):
            heap.__init__("2MiB")  # type: ignore[misc]
        assert bytes(ref) == b"kept"
        heap.verify()


def test_dropping_it_with_refs_and_views_alive() -> None:
    view = mm.Heap("1MiB").put(b"alive").array
    gc.collect()
    assert view.tobytes() == b"alive"
    del view
    heaps_are_gone()


def test_a_forked_child_is_refused_and_spoils_nothing() -> None:
    succeeds("""
import gc, os
import mirrormap as mm
heap = mm.Heap("8MiB")
refs = [heap.put(bytes([at % 256]) * 5000) for at in range(800)]
cache = heap.lru("1MiB")
cache["a"] = bytes(1000)
view, weak = refs[5].array, heap.weak(refs[6])
heap.roots["x"] = refs[7]
committed = heap.stats().committed
child = os.fork()
if not child:
    calls = [lambda: heap.put(b""), heap.collect, lambda: bytes(refs[0]), lambda: refs[0].array, lambda: cache["a"],
             lambda: cache.view("a"), lambda: cache.__setitem__("b", b""), weak, lambda: heap.roots["x"], lambda: len(cache),
             lambda: cache.__delitem__("a")]
    for call in calls:
        try:
            call()
        except mm.ClosedError:
            continue
        os._exit(1)
    try:
        heap.close()
        os._exit(2)
    except BufferError:
        assert view.tobytes() == bytes([5]) * 5000
    refs.clear()
    del view, weak, cache, calls, call
    heap.close()
    del heap
    gc.collect()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert heap.stats().committed == committed
heap.verify()
assert all(bytes(ref) == bytes([at % 256]) * 5000 for at, ref in enumerate(refs))
heap.collect()
heap.verify()
""")


def test_the_interpreter_ends_with_refs_views_and_containers_alive() -> None:
    assert not succeeds("""
import sys
import mirrormap as mm
heap = mm.Heap("8MiB")
node = heap.new(0, 2)
node[0] = heap.put(b"x")
sys.kept = [heap, node, node[0].array, heap.weak(node), heap.roots, heap.map(), heap.lru(100)]
sys.kept[-1]["a"] = b"value"
sys.kept += [sys.kept[-1].view("a"), node.writable()]
sys.kept.append(sys.kept)
""")
