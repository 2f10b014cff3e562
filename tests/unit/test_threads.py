"""Eight threads on the same objects, on no lock but theirs: nothing crashes, tears, or is left behind.

What a free-threaded interpreter runs at once, one with a lock interleaves; small switch intervals make it
do so often. Exceptions that say what happened are allowed, wrong bytes are not.
"""

from __future__ import annotations

import gc
import random
import threading
import time
from typing import Any

import numpy as np

import mirrormap as mm
from support import PAGE, PATIENCE_S, scaled
from together import ROUNDS, THREADS, often, together

__all__ = ["often"]  # a fixture


def test_views_of_the_same_pages() -> None:
    with mm.Pages(THREADS * PAGE) as pages, pages.map() as shared:

        def work(chance: random.Random, number: int) -> None:
            with pages.map(populate=chance.random() < 0.5) as view:
                view.array()[number * PAGE] = number + 1
                with view.mirror(number * PAGE, PAGE) as other:
                    assert other.array()[0] == number + 1
                assert shared.array()[number * PAGE] == number + 1
                assert view.resident <= view.nbytes
            assert not mm.shares_memory(shared, view) if not view.closed else True

        together(work)


def test_one_mapping_is_closed_protected_and_resized_by_all() -> None:
    with mm.Pages(4 * PAGE) as pages:
        current = [pages.map(reserve=64 * PAGE)]

        def work(chance: random.Random, number: int) -> None:
            view = current[0]
            try:
                match chance.randrange(6):
                    case 0:
                        view.resize(chance.randint(1, 16) * PAGE)
                    case 1:
                        view.protect(chance.choice(["r", "rw"]))
                    case 2:
                        view.populate()
                    case 3:
                        array = view.array()
                        assert array.nbytes % PAGE == 0
                        assert int(array[0]) in range(256)
                        del array
                    case 4:
                        view.mirror().close()
                    case _:
                        current[0] = pages.map(reserve=64 * PAGE)
                        view.close()
            except (mm.ClosedError, BufferError, mm.MapError):
                pass

        together(work)
        current[0].close()


def test_a_ring_has_one_writer_and_readers_come_and_go() -> None:
    with mm.Ring(5000, "i8", overwrite=False) as ring:
        done = threading.Event()

        def write() -> None:
            written = 0
            while not done.is_set():
                try:
                    ring.extend(np.arange(written, written + 64), timeout=0.5)
                except TimeoutError:
                    continue
                written += 64
                time.sleep(0)

        writer = threading.Thread(target=write)
        writer.start()
        try:

            def work(chance: random.Random, number: int) -> None:
                with ring.reader(chance.choice(["now", "oldest"])) as reader:
                    window = reader.read(chance.randint(1, 200), timeout=PATIENCE_S)
                    assert (np.diff(window) == 1).all()
                    del window

            together(work, rounds=40)
        finally:
            done.set()
            writer.join()


def test_a_channel_s_work_is_shared_and_nothing_comes_twice() -> None:
    total = 3000
    with mm.Channel("256KiB", overwrite=False) as channel, channel.sender() as sender:
        seen: list[list[int]] = [[] for _ in range(THREADS)]
        workers = [channel.receiver(group="all") for _ in range(THREADS)]
        gate = threading.Barrier(THREADS + 1)

        def take(number: int) -> None:
            gate.wait()
            while True:
                try:
                    with workers[number].receive(timeout=PATIENCE_S) as message:
                        value = int(message.array[0])
                        assert (message.array == value).all()
                except mm.SenderGone:
                    return
                seen[number].append(value)

        threads = [threading.Thread(target=take, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        gate.wait()
        for value in range(total):
            sender.send(np.full(1 + value % 50, value), timeout=PATIENCE_S)
        sender.close()
        for thread in threads:
            thread.join()
        for worker in workers:
            worker.close()
        assert sorted(value for each in seen for value in each) == list(range(total))


def test_one_growable_takes_the_rows_of_all() -> None:
    with mm.Growable("i8") as rows:

        def work(chance: random.Random, number: int) -> None:
            block = np.full(chance.randint(1, 300), number)
            rows.extend(block)
            assert len(rows.array) <= len(rows)

        together(work)
        array = rows.array
        assert set(np.unique(array).tolist()) <= set(range(THREADS))
        counts = np.bincount(array, minlength=THREADS)
        expected = [
            sum(chance.randint(1, 300) for _ in range(ROUNDS))
            for chance in map(random.Random, range(THREADS))
        ]
        assert counts.tolist() == expected
        del array


def test_arrays_mirrored_stitched_frozen_and_handed_over() -> None:
    shared = mm.full((THREADS, PAGE), 1, "u1")

    def work(chance: random.Random, number: int) -> None:
        other = mm.mirror(shared)
        other[number, chance.randrange(PAGE)] = 1
        assert (shared[number] == 1).all()
        parts = mm.stitch([shared[number], shared[0], shared[number]])
        assert parts.shape == (3 * PAGE,)
        assert mm.shares_memory(parts, other)
        opened = mm.handle(shared[number]).open()
        assert opened[0] == 1
        mine = mm.full(PAGE * 4, number, "u1")
        with mm.snapshot(mine) as frozen:
            mine[:] = 255
            assert (frozen == number).all()

    together(work, rounds=scaled(40, 4))


def test_arrays_of_an_installed_allocator_cross_threads() -> None:
    with mm.numpy_allocator("16KiB") as allocator:
        handed: list[np.ndarray[Any, Any]] = [np.ones(1 << 15, "u1") for _ in range(THREADS)]

        def work(chance: random.Random, number: int) -> None:
            with mm.numpy_allocator("16KiB"):
                made = np.full(chance.randint(1 << 14, 1 << 17), number, "u1")
            slot = chance.randrange(THREADS)
            taken, handed[slot] = handed[slot], made
            value = int(taken[0])
            assert (taken == value).all()
            del taken

        together(work)
        handed.clear()
        gc.collect()
        assert allocator.state.arrays == 0
        allocator.trim()


def test_the_address_space_is_read_while_it_changes() -> None:
    with mm.Pages(2 * PAGE) as pages:

        def work(chance: random.Random, number: int) -> None:
            if number % 2:
                with pages.map(), pages.map():
                    time.sleep(0)
            else:
                found = mm.mirrors()
                assert found.processes[0].vmas > 10

        together(work, rounds=scaled(30, 3))
