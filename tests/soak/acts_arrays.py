"""Acts on what grows, is collected, or is made by NumPy: Growable, Heap, the allocator."""

from __future__ import annotations

import gc
import os
import struct
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from stage import FORK, Stage, child

import mirrormap as mm
from support import PAGE, in_threads


def rows(stage: Stage) -> None:
    """A Growable beside an array that is copied, in memory or in a file; refusals change nothing."""
    chance = stage.chance
    path = stage.folder / "rows" if chance.random() < 0.4 else None
    page_size = stage.page_size() if path is None else None
    shadow = np.zeros((0, 2), "i4")
    with stage.may_refuse(), mm.Growable("i4", 2, reserve="1GiB", page_size=page_size, path=path) as real:
        for _ in range(chance.randint(10, 80)):
            with stage.may_refuse():
                shadow = grown(stage, real, shadow)
            assert len(real) == len(shadow)
        assert np.array_equal(real.array, shadow)
    if path is not None:
        with mm.Growable.open(path, "r") as again:
            assert np.array_equal(again.array, shadow)
        path.unlink()


def grown(stage: Stage, real: mm.Growable, shadow: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """One operation. Returns: the rows there are now."""
    chance = stage.chance
    match chance.randrange(7):
        case 0 | 1 | 2:
            block = np.full((chance.choice([0, 1, 100, 5000, 100_000]), 2), chance.randrange(99), "i4")
            real.extend(block)
            return np.concatenate([shadow, block])
        case 3:
            real.append([1, 2])
            return np.concatenate([shadow, np.array([[1, 2]], "i4")])
        case 4:
            count = chance.randint(0, len(shadow) + 100)
            real.resize(count)
            return np.concatenate([shadow, np.zeros((max(0, count - len(shadow)), 2), "i4")])[:count]
        case 5:
            real.shrink_to_fit()
        case _:
            if real.path:
                real.flush()
            assert np.array_equal(real.array[-1000:], shadow[-1000:])
    return shadow


def append_for_ever(path: Path, told: Any, seed: int) -> None:
    """Rows that are their own number; each commit is told once it is made."""
    with mm.Growable("i8", path=path) as rows:
        count = len(rows)
        while True:
            count += seed % 977
            rows.extend(np.arange(len(rows), count))
            seed = seed * 69069 + 1
            if seed % 3 == 0:
                rows.flush()
                told.send_bytes(struct.pack("<Q", count))


def rows_killed(stage: Stage) -> None:
    """Writers of a file are killed at any moment: what they committed is there, and every row is right."""
    chance = stage.chance
    path = stage.folder / "killed"
    committed = 0
    for _ in range(chance.randint(2, 8)):
        ours, theirs = FORK.Pipe(duplex=False)
        with ours, child(append_for_ever, path, theirs, chance.randrange(1 << 30)) as process:
            theirs.close()
            time.sleep(chance.uniform(0.0, 0.3))
            process.kill()
            process.join(60)
            try:
                while True:
                    committed = struct.unpack("<Q", ours.recv_bytes())[0]
            except (EOFError, OSError):
                pass
        if path.exists():
            sound(path, committed)
    path.unlink(missing_ok=True)


def sound(path: Path, committed: int) -> None:
    """What a killed writer left: a file whose rows are right, or one that it had not finished making."""
    try:
        with mm.Growable.open(path) as again:
            assert len(again) >= committed
            assert np.array_equal(again.array, np.arange(len(again)))
    except mm.CorruptError:
        assert not committed, "a file with rows in it can always be opened"
        path.unlink()


def collected(stage: Stage) -> None:
    """A heap beside a dict: values, names, references, weak ones, views, until it is full and afterwards."""
    chance = stage.chance
    with (
        stage.may_refuse(),
        mm.Heap(f"{chance.choice([2, 8, 64])}MiB", target=chance.choice([1.02, 1.1, 2])) as heap,
    ):
        owned: dict[int, bytes] = {}
        named: dict[str, bytes] = {}
        values: mm.Map[int] = heap.map()
        for _ in range(chance.randint(50, 600)):
            try:
                put(stage, heap, values, owned, named)
            except MemoryError:
                stage.refused += 1
        heap.verify()
        assert {key: values[key] for key in values} == owned
        assert {name: bytes(ref) for name, ref in heap.roots.items()} == named
        values.clear()
        heap.roots.clear()
        heap.collect()
        assert heap.verify().objects == 0
        assert heap.stats().committed == 0


def put(
    stage: Stage, heap: mm.Heap, values: mm.Map[int], owned: dict[int, bytes], named: dict[str, bytes]
) -> None:
    """One operation on the heap."""
    chance = stage.chance
    data = chance.randbytes(chance.choice([0, 10, 300, 5000, 70_000, 400_000]))
    match chance.randrange(8):
        case 0 | 1 | 2 | 3:
            key = chance.randrange(200)
            values[key] = data
            owned[key] = data
        case 4 if owned:
            key = chance.choice(sorted(owned))
            assert values.pop(key) == owned.pop(key)
        case 5:
            name = chance.choice("abcdefgh")
            head = heap.new(16, 3)
            head[0] = heap.roots.get(name)
            heap.roots[name] = heap.put(data)
            named[name] = data
            weak = heap.weak(head)
            assert weak() == head
        case 6 if owned:
            key = chance.choice(sorted(owned))
            with values.view(key) as view:
                heap.collect()
                assert view == owned[key]
        case _:
            heap.collect()
            heap.verify()


def allocated(stage: Stage) -> None:
    """Arrays of NumPy's under the allocator, in threads that hand them on, and in a fork."""
    chance = stage.chance
    with mm.numpy_allocator(chance.choice(["4KiB", "64KiB", "1MiB"])) as allocator:
        handed: list[Any] = [np.zeros(1)] * 8
        seeds = [chance.randrange(1 << 30) for _ in range(chance.randint(1, 4))]
        in_threads(partial(make, stage, seed, handed) for seed in seeds)
        with stage.may_refuse(), child(look_at, handed) as process:
            process.join(60)
            assert process.exitcode == 0 or stage.pressed
        handed.clear()
        gc.collect()
        allocator.trim()
        assert allocator.state.arrays == 0


def make(stage: Stage, seed: int, handed: list[Any]) -> None:
    """Arrays of one number each, of many lengths, some of them given to other threads."""
    chance = type(stage.chance)(seed)
    for _ in range(chance.randint(5, 60)):
        with stage.may_refuse():
            value = chance.randrange(256)
            made = np.full(
                chance.choice([100, 5000, 70_000, 1 << 20, 3 << 20]) + chance.randrange(99), value, "u1"
            )
            if chance.random() < 0.3:
                made = np.concatenate([made, made])
            assert (made == value).all()
            handed[chance.randrange(8)] = made


def look_at(handed: list[Any]) -> None:
    for array in handed:
        assert (array == array[0]).all()
        array[:] = 1


def forked(stage: Stage) -> None:
    """Every object in a forked child that ends, or is killed, at any moment: the parent's are as they were."""
    chance = stage.chance
    with stage.may_refuse(), mm.Pages(16 * PAGE) as pages, pages.map() as view, mm.Heap("2MiB") as heap:
        grower, ref = mm.Growable("i8"), heap.put(b"before")
        grower.extend(np.arange(1000))
        view.array()[:] = 5
        view.inherit = chance.choice(["share", "none"])
        with child(in_child, view, heap, grower, ref) as process:
            if chance.random() < 0.5:
                time.sleep(chance.uniform(0, 0.02))
                process.kill()
            process.join(60)
            assert process.exitcode in (0, -9) or stage.pressed
        assert (view.array() == 5).all()
        assert bytes(ref) == b"before"
        assert np.array_equal(grower.array, np.arange(1000))
        heap.verify()
        grower.close()


def in_child(view: mm.Mapping, heap: mm.Heap, grower: mm.Growable, ref: mm.Ref) -> None:
    assert view.closed == (view.inherit == "none")
    if not view.closed:
        assert (view.array() == 5).all()
    assert np.array_equal(grower.array, np.arange(1000))
    for refused in (lambda: heap.put(b""), lambda: bytes(ref), heap.collect):
        try:
            refused()
        except mm.ClosedError:
            continue
        os._exit(3)
