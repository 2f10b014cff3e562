"""Collections nobody asks for: started by what has died, made by a thread or paid by allocation; how that ends."""

from __future__ import annotations

import ctypes
import gc
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import pytest

import mirrormap as mm
from support import PATIENCE_S, scaled, succeeds
from together import often, together


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


__all__ = ["often"]  # a fixture


def collectors() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mirrormap heap"]


def test_memory_goes_back_unasked() -> None:
    """Nothing is called, nothing is allocated: Refs die, and the thread sees to it."""
    with mm.Heap("64MiB") as heap:
        kept = [heap.put(bytes([at % 251]) * 1000) for at in range(20_000)]
        del kept[500:]
        wait_for(lambda: heap.stats().committed < 2 << 20)
        heap.verify()
        assert heap.stats().pauses["background"].steps > 0
        wait_for(lambda: heap.stats().collections >= 1)
        assert all(bytes(ref) == bytes([at % 251]) * 1000 for at, ref in enumerate(kept))


def test_a_graph_dies_with_its_one_root_unasked() -> None:
    """One Ref of sixteen bytes was dropped; what it led to is found because time has passed."""
    with mm.Heap("64MiB") as heap:
        heap.roots["tree"] = node = heap.new(8, 1)
        for _ in range(30_000):
            after = heap.new(8, 1)
            node[0] = after
            node = after
        del node, after
        wait_for(lambda: heap.stats().phase == "idle")
        del heap.roots["tree"]
        wait_for(lambda: heap.stats().committed == 0)
        assert heap.verify().objects == 0


def test_small_values_scattered_close_up_unasked() -> None:
    with mm.Heap("64MiB") as heap:
        values = heap.map()
        for at in range(40_000):
            values[at] = bytes(500)
        for at in range(40_000):
            if at % 16:
                del values[at]
        wait_for(lambda: heap.stats().committed < 1.1 * heap.stats().live + (1 << 19))
        values["large"] = bytes(16 << 20)
        del values["large"]
        wait_for(lambda: heap.stats().committed < 4 << 20)
        heap.verify()


def test_allocation_pays() -> None:
    """Garbage goes while it is made, in an incremental heap that is never full and never asked."""
    with mm.Heap("256MiB", collector="incremental") as heap:
        kept = [heap.put(bytes(1000)) for _ in range(10_000)]
        most = 0
        for at in range(scaled(150_000, 50_000)):
            kept[at % 10_000] = heap.put(bytes(1000))
            if at % 100 == 0:
                most = max(most, heap.stats().committed)
        stats = heap.stats()
        assert stats.collections > 5
        assert stats.pauses["allocation"].steps > 20
        assert set(stats.pauses) == {"allocation"}
        assert most < 2 * 10_000 * 1016, "50 MB were allocated, or 150"
        heap.verify()
        kept.clear()


def is_inside(thread: threading.Thread, function: str) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and any(at.f_code.co_name == function for at, _ in traceback.walk_stack(frame))


def test_a_collector_that_died_is_an_error_at_the_next_call() -> None:
    heap = mm.Heap("8MiB")
    ref = heap.put(b"bytes")
    (thread,) = collectors()
    assert thread.ident is not None
    wait_for(lambda: is_inside(thread, "_tend"))  # before, it would die in threading's own code
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(KeyError))
    heap.weak(heap.put(b"dropped"))
    wait_for(lambda: not thread.is_alive())
    for call in (lambda: heap.put(b""), lambda: bytes(ref), heap.collect, heap.stats, lambda: heap.step(5)):
        with pytest.raises(mm.MirrorError, match="thread that collects this heap died: KeyError"):
            call()
    assert repr(heap) == "<Heap failed>"
    heap.close()
    with pytest.raises(mm.ClosedError):
        heap.put(b"")


def test_the_thread_ends_with_its_heap() -> None:
    assert not collectors()
    heap = mm.Heap("8MiB")
    other = mm.Heap("8MiB")
    view = other.put(b"alive").array
    assert len(collectors()) == 2
    heap.close()
    assert len(collectors()) == 1
    del heap, other
    gc.collect()
    assert view.tobytes() == b"alive"
    assert len(collectors()) == 1, "a view keeps the heap"
    del view
    gc.collect()
    wait_for(lambda: not collectors())


def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="start new thread"):
        mm.Heap("8MiB")
    gc.collect()


def work(heap: mm.Heap, shared: mm.Ref, seed: int, count: int) -> None:
    """What one of several threads does: objects of its own, slots that all write, values, views, weak ones."""
    rng = random.Random(seed)
    mine: list[tuple[mm.Ref, bytes]] = []
    values = heap.map()
    for at in range(count):
        data = seed.to_bytes(2, "little") * rng.randrange(1, 400)
        mine.append((heap.put(data), data))
        shared[rng.randrange(64)] = rng.choice([None, rng.choice(mine)[0]])
        found = shared[rng.randrange(64)]
        if found is not None:
            other = bytes(found)
            assert other == other[:2] * (len(other) // 2)
        values[at % 40] = data
        assert values[at % 40] == data
        ref, data = rng.choice(mine)
        with memoryview(ref) as view:
            assert view == data
        if at % 7 == 0:
            weak = heap.weak(ref)
            assert weak() == ref
        if at % 50 == 0:
            rng.choice([heap.collect, heap.verify, lambda: heap.step(20), heap.stats])()
        if len(mine) > 60:
            del mine[rng.randrange(60)]


@pytest.mark.parametrize("collector", ["manual", "incremental", "background"])
def test_eight_threads(collector: Any) -> None:
    with mm.Heap("64MiB", collector=collector, stress=5000) as heap:
        heap.roots["shared"] = heap.new(0, 64)
        together(lambda _, number: work(heap, heap.roots["shared"], number, 250), rounds=1)
        heap.verify()
        del heap.roots["shared"]
        heap.collect()
        assert heap.verify().objects == 0


def test_one_thread_closes_while_others_collect() -> None:
    for _ in range(10):
        heap = mm.Heap("8MiB")
        kept = [heap.put(bytes(100)) for _ in range(3000)]
        seen: list[str] = []

        def collect(heap: mm.Heap = heap, seen: list[str] = seen) -> None:
            try:
                while True:
                    heap.collect()
            except mm.ClosedError:
                seen.append("closed")

        threads = [threading.Thread(target=collect) for _ in range(3)]
        for thread in threads:
            thread.start()
        del kept[::2]
        heap.close()
        for thread in threads:
            thread.join()
        assert seen == ["closed"] * 3


def test_signals_while_collecting() -> None:
    count = 0

    def handler(*_unused: object) -> None:
        nonlocal count
        count += 1
        heap.put(bytes(count % 1000))
        heap.step(0)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with mm.Heap("32MiB", stress=20_000) as heap:
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            kept: dict[int, mm.Ref] = {}
            for at in range(20_000):
                kept[at % 500] = heap.put(at.to_bytes(4, "little") * 50)
                if at % 1000 == 0:
                    heap.collect()
            signal.setitimer(signal.ITIMER_REAL, 0)
            heap.verify()
            assert all(bytes(kept[at % 500])[:4] == at.to_bytes(4, "little") for at in range(19_500, 20_000))
            kept.clear()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert count > 10


def test_forks_while_the_thread_collects() -> None:
    succeeds("""
import os, warnings
import mirrormap as mm
warnings.simplefilter("ignore")  # newer Pythons warn of any fork beside a thread
heap = mm.Heap("64MiB", stress=1000)
kept = {}
for at in range(40):
    for number in range(300):
        kept[number] = heap.put(bytes([at]) * (number * 10))
    child = os.fork()
    if not child:
        refused = 0
        for call in (heap.collect, lambda: heap.step(0), lambda: heap.put(b""), lambda: bytes(kept[5])):
            try:
                call()
            except mm.ClosedError:
                refused += 1
        kept.clear()
        with mm.Heap("8MiB") as own:
            ref = own.put(b"the child's own")
            own.collect()
            assert bytes(ref) == b"the child's own"
            refused += 1
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    heap.verify()
assert all(bytes(ref) == bytes([39]) * (number * 10) for number, ref in kept.items())
kept.clear()
heap.collect()
assert heap.verify().objects == 0
heap.close()
""")


@pytest.mark.parametrize(
    "end", ["", "import os, signal; os.kill(os.getpid(), signal.SIGINT)", "raise SystemExit(0)"]
)
def test_the_interpreter_ends_while_heaps_collect(end: str) -> None:
    done = f"""
import atexit, sys, threading
import mirrormap as mm
heaps = [mm.Heap("64MiB", stress=5000), mm.Heap("64MiB", collector="incremental")]
kept = [(heap, heap.put(bytes(300)), heap.new(0, 2)) for heap in heaps for at in range(5000)]
views = [ref.array for _, ref, _ in kept[::7]]
del kept[::3]
sys.kept = [kept, views, heaps[0].weak(kept[0][1])]
atexit.register(lambda: heaps[0].collect() or print("collected at exit"))
def work():
    while True:
        heaps[0].put(bytes(100))
threading.Thread(target=work, daemon=True).start()
try:
    {end or "pass"}
except KeyboardInterrupt:
    pass
"""
    assert succeeds(done) == "collected at exit\n"


def test_sub_interpreters_are_refused() -> None:
    pytest.importorskip("_xxsubinterpreters")
    assert succeeds("""
import _xxsubinterpreters as interpreters
import mirrormap
other = interpreters.create()
try:
    interpreters.run_string(other, "import mirrormap; mirrormap.Heap('1MiB')")
except interpreters.RunFailedError as error:
    print("ImportError" in str(error), error)
heap = mirrormap.Heap("1MiB")
assert bytes(heap.put(b"still here")) == b"still here"
heap.close()
""").startswith("True")


def test_an_idle_heap_uses_no_processor() -> None:
    """The thread sleeps on its bell, without a timeout, when nothing has died."""
    with mm.Heap("8MiB") as heap:
        kept = [heap.put(bytes(1000)) for _ in range(100)]
        heap.collect()
        wait_for(lambda: heap._tend(1) == -1)
        before = heap.stats().pauses["background"].steps if "background" in heap.stats().pauses else 0
        time.sleep(0.3)
        told = heap.stats().pauses.get("background")
        assert (told.steps if told else 0) == before
        assert len(kept) == 100


def test_descriptors_of_a_child_are_closed() -> None:
    succeeds("""
import os, warnings
import mirrormap as mm
warnings.simplefilter("ignore")
heap = mm.Heap("8MiB")
before = set(os.listdir("/proc/self/fd"))
child = os.fork()
if not child:
    os._exit(len(before - set(os.listdir("/proc/self/fd"))))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1, "the bell"
heap.close()
""")


def test_the_thread_is_not_kept_away_by_a_busy_program() -> None:
    """Python code that never touches the heap lets the thread in between."""
    with mm.Heap("64MiB") as heap:
        kept: list[Any] = [heap.put(bytes(1000)) for _ in range(20_000)]
        del kept[500:]
        end = time.monotonic() + PATIENCE_S
        while heap.stats().committed > 2 << 20:
            assert time.monotonic() < end
            sum(range(20_000))
