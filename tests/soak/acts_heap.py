"""Acts on heaps that are collected meanwhile: by their thread, in forks, under signals, in place."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from functools import partial
from typing import Any

from stage import Stage, child

import mirrormap as mm
from support import in_threads


@contextlib.contextmanager
def made(stage: Stage) -> Iterator[mm.Heap]:
    """A heap of any kind, verified at its end, when nothing may be left in it."""
    chance = stage.chance
    with mm.Heap(
        f"{chance.choice([16, 64])}MiB",
        target=chance.choice([1.02, 1.1, 2]),
        collector=chance.choice(["manual", "incremental", "background"]),
        stress=chance.choice([0, 0, 1000, 50_000]),
    ) as heap:
        heap._slide(chance.random() < 0.3)
        yield heap
        heap.roots.clear()
        heap.collect()
        assert heap.verify().objects == 0
        assert heap.stats().committed == 0


def sound(ref: mm.Ref) -> int:
    """The number that all bytes of a node repeat."""
    data = bytes(ref)
    assert data == data[:4] * (len(data) // 4)
    return int.from_bytes(data[:4], "little")


def node(heap: mm.Heap, chance: random.Random, number: int) -> mm.Ref:
    ref = heap.new(4 * chance.choice([1, 1, 2, 20, 500]), 3)
    with ref.writable() as array:
        array.view("u4")[:] = number
    return ref


def mutate(heap: mm.Heap, seed: int, steps: int) -> None:
    """A cyclic graph changed at random, with views and weak references, beside a plain copy of its edges."""
    chance = random.Random(seed)
    nodes = {at: node(heap, chance, at) for at in range(100)}
    edges = {at: [-1, -1, -1] for at in nodes}
    views: list[tuple[memoryview, int]] = []
    values = heap.map()
    for step in range(steps):
        source, other, slot = chance.choice(sorted(nodes)), chance.choice(sorted(nodes)), chance.randrange(3)
        found = nodes[source][slot]
        assert (-1 if found is None else sound(found)) == edges[source][slot]
        nodes[source][slot] = nodes[other]
        edges[source][slot] = other
        values[step % 50] = bytes(chance.randrange(3000))
        if step % 5 == 0:
            views.append((memoryview(nodes[other]), other))
        if len(views) > 10:
            view, number = views.pop(chance.randrange(len(views)))
            assert view[:4] == number.to_bytes(4, "little")
            view.release()
        if step % 7 == 0:  # one dies where nothing leads to it, and another takes its number
            nodes[other] = node(heap, chance, other)
            edges[other] = [-1, -1, -1]
        if step % 100 == 0:
            chance.choice([heap.collect, heap.verify, lambda: heap.step(20), heap.stats])()
    for view, _ in views:
        view.release()
    heap.verify()


def heap_in_threads(stage: Stage) -> None:
    """Threads change graphs of their own while the heap is collected."""
    with made(stage) as heap:
        seeds = [stage.chance.getrandbits(32) for _ in range(stage.chance.randint(1, 6))]
        in_threads(partial(mutate, heap, seed, 300) for seed in seeds)


def refused(heap: mm.Heap, ref: mm.Ref) -> None:
    """In a child: every call is refused, and what it drops spoils nothing."""
    for call in (heap.collect, lambda: heap.put(b""), lambda: bytes(ref), heap.verify, lambda: ref[0]):
        try:
            call()
        except mm.ClosedError:
            continue
        os._exit(1)
    heap.close()
    os._exit(0)


def heap_forked(stage: Stage) -> None:
    """Forks in the middle of collections; some children are killed."""
    with made(stage) as heap:
        kept = {at: node(heap, stage.chance, at) for at in range(500)}
        for _ in range(stage.chance.randint(3, 12)):
            for at in stage.chance.sample(sorted(kept), 100):
                kept[at] = node(heap, stage.chance, at)
            heap.step(stage.chance.choice([0, 0, 50]))
            with stage.may_refuse(), child(refused, heap, kept[0]) as process:
                if stage.chance.random() < 0.3:
                    process.kill()
                process.join(60)
                assert process.exitcode in (0, -signal.SIGKILL) or stage.pressed
            heap.verify()
        assert all(sound(ref) == at for at, ref in kept.items())
        kept.clear()


def read_all(frozen: mm.Frozen, count: int) -> None:
    """In a child: every node is there."""
    wide = frozen.roots["all"]
    numbers = [sound(wide[at]) for at in range(count)]
    os._exit(0 if numbers == list(range(count)) else 1)


def heap_frozen(stage: Stage) -> None:
    """Images of a heap that goes on, read by children."""
    with made(stage) as heap:
        count = stage.chance.randint(10, 2000)
        heap.roots["all"] = wide = heap.new(0, count)
        for at in range(count):
            wide[at] = node(heap, stage.chance, at)
        del wide
        heap.step(0)
        with stage.may_refuse(), heap.freeze() as frozen:
            heap.roots["all"][0] = None
            heap.collect()
            with child(read_all, frozen, count) as process:
                process.join(60)
                assert process.exitcode == 0 or stage.pressed


def heap_signalled(stage: Stage) -> None:
    """Handlers that use the heap, in the middle of whatever uses it."""
    with made(stage) as heap:
        refs: dict[int, Any] = {}

        def handle(number: int, frame: Any) -> None:
            refs[len(refs) % 50] = heap.put(bytes([len(refs) % 256]) * 500)
            heap.step(0)

        before = signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        try:
            mutate(heap, stage.chance.getrandbits(32), 400)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        heap.verify()
        refs.clear()


ACTS = [heap_in_threads, heap_forked, heap_frozen, heap_signalled]
