"""Eight threads on one heap, its names and containers, and on the objects that test_threads.py leaves out."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pickle
import random
import sysconfig
import threading
from typing import Any

import numpy as np
import pytest

import mirrormap as mm
from support import PAGE, PATIENCE_S, scaled, succeeds
from together import ROUNDS, THREADS, often, together

__all__ = ["often"]  # a fixture


def test_one_heap_takes_the_objects_of_all() -> None:
    """Objects, references between them, names, weak ones, and collections in between."""
    with mm.Heap("64MiB") as heap:
        shared = heap.new(8, THREADS)
        heap.roots["shared"] = shared

        def work(chance: random.Random, number: int) -> None:
            data = bytes([number]) * chance.randint(1, 5000)
            ref = heap.put(data)
            head = heap.new(8, 2)
            head[0] = ref
            shared[number] = head
            weak = heap.weak(ref)
            heap.roots[f"{number}"] = head
            if chance.random() < 0.1:
                heap.collect()
            found = heap.roots[f"{number}"][0]
            assert found is not None
            assert bytes(found) == data
            assert weak() == found
            array = found.array
            assert (array == number).all()
            with head.writable() as writable:
                writable[:] = number
            other = shared[chance.randrange(THREADS)]
            if other is not None:
                mark = other.array[0]
                assert mark in (0, *range(THREADS))
            del found, array, other

        together(work)
        heap.verify()
        assert len(heap.roots) == THREADS + 1
        heap.roots.clear()
        for number in range(THREADS):
            shared[number] = None
        gc.collect()
        heap.collect()
        assert heap.verify().objects == 1


def test_each_thread_has_containers_in_one_heap() -> None:
    """A container is one thread's; the heap that holds the values of all of them, and moves them, is not."""
    with mm.Heap("32MiB") as heap:
        kept = [(heap.map(), heap.lru("1MiB")) for _ in range(THREADS)]
        expected: list[dict[int, bytes]] = [{} for _ in range(THREADS)]

        def work(chance: random.Random, number: int) -> None:
            values, cache = kept[number]
            key = chance.randrange(50)
            data = bytes([number]) * chance.randint(0, 20_000)
            values[key] = expected[number][key] = data
            cache[key] = np.full(chance.randint(1, 2000), number)
            key = chance.choice(sorted(expected[number]))
            with values.view(key) as view:
                assert view == expected[number][key]
            assert values[key] == expected[number][key]
            if key in cache:
                assert (cache[key] == number).all()
            if chance.random() < 0.3:
                assert values.pop(key) == expected[number].pop(key)
            if chance.random() < 0.02:
                heap.collect()

        together(work)
        for (values, _), wanted in zip(kept, expected, strict=True):
            assert dict(values) == wanted
        heap.verify()
        kept.clear()
        del values, _


def test_a_heap_is_closed_while_all_use_it() -> None:
    for _ in range(10):
        heap = mm.Heap("4MiB")

        def work(chance: random.Random, number: int, heap: mm.Heap = heap) -> None:
            try:
                ref = heap.put(bytes(100))
                assert len(bytes(ref)) == 100
                if chance.random() < 0.02:
                    heap.close()
            except (mm.ClosedError, BufferError):
                pass

        together(work, rounds=20)
        heap.close()


def look(channel: mm.Channel) -> None:
    """The oldest message is one thread's, all of it."""
    with channel.receiver("oldest") as receiver, contextlib.suppress(mm.Overrun, TimeoutError):
        with receiver.receive(0) as message:
            data = bytes(message)
            if message.intact:
                assert len(set(data)) <= 2


def test_one_sender_is_used_by_all() -> None:
    """Appends and sends through one object take turns; what each thread receives is whole."""
    with mm.Channel("64KiB", overwrite=True) as channel, channel.sender() as sender:

        def work(chance: random.Random, number: int) -> None:
            with contextlib.suppress(mm.BusyError):  # another thread's reservation is open
                match chance.randrange(4):
                    case 0:
                        sender.send(np.full(chance.randint(1, 200), number), timeout=5)
                    case 1:
                        sender.send_many([bytes([number]) * chance.randint(1, 300)] * 3, timeout=5)
                    case 2:
                        with sender.reserve(50, timeout=0) as room:
                            memoryview(room)[:] = bytes([number]) * 50
                    case _:
                        look(channel)
            assert channel.peers()

        together(work)


def test_a_message_is_released_by_whoever_comes_first() -> None:
    with mm.Channel("1MiB") as channel, channel.sender() as sender, channel.receiver() as receiver:
        for _ in range(30):
            sender.send_many([b"%d" % at for at in range(THREADS)])
            messages = receiver.receive_many(THREADS)

            def work(chance: random.Random, number: int, messages: Any = messages) -> None:
                message = messages[chance.randrange(THREADS)]
                try:
                    view = memoryview(message)
                    assert view.nbytes == 1
                    view.release()
                    message.release()
                except (mm.ClosedError, BufferError):
                    pass

            together(work, rounds=5)
            for message in messages:
                message.release()


def test_a_ring_is_written_through_one_object_by_all() -> None:
    with mm.Ring(10_000, "i8") as ring:

        def work(chance: random.Random, number: int) -> None:
            if chance.random() < 0.5:
                ring.append(number)
            else:
                ring.extend(np.full(chance.randint(1, 100), number))
            with contextlib.suppress(mm.Overrun, ValueError):
                window = ring.latest(min(10, ring.written))
                assert ((window >= 0) & (window < THREADS)).all()
            assert ring.windows(3).shape[1] == 3

        together(work)
        assert ring.written >= THREADS * ROUNDS


def test_handles_snapshots_and_mremap() -> None:
    array = mm.full((THREADS, 4 * PAGE), 1, "u1")
    handle = mm.handle(array)

    def work(chance: random.Random, number: int) -> None:
        assert (handle.open()[number] == 1).all()
        with mm.Pages(2 * PAGE) as pages, pages.map() as view:
            view.array()[:] = number
            made = mm.mremap(view.address, 0, PAGE, mm.MREMAP_MAYMOVE)
            with pages.map() as other:
                assert (other.array() == number).all()
            mm._core.munmap(made, PAGE)
        copy = mm.share(np.full(PAGE, number, "u1"))
        with mm.snapshot(copy) as still:
            copy[:] = 99
            assert (still == number).all()
        assert mm.probe() is not None

    together(work, rounds=scaled(30, 5))
    handle.close()


@pytest.mark.leaks_by_nature  # what multiprocessing hands descriptors over by
def test_pages_of_all_threads_are_pickled_and_listed() -> None:
    with mm.Ring(100, "i4") as ring:

        def work(chance: random.Random, number: int) -> None:
            with pickle.loads(pickle.dumps(ring)) as other:
                assert other.capacity == ring.capacity
            assert len(mm.mappings()) > 10

        together(work, rounds=5)


@pytest.mark.leaks_by_nature  # the loops' executors
def test_event_loops_in_all_threads() -> None:
    """Each thread has a loop of its own and one receiver; the sender is another thread's."""
    with mm.Channel("256KiB") as channel, channel.sender() as sender:
        receivers = [channel.receiver() for _ in range(THREADS)]

        async def take(receiver: Any) -> list[int]:
            return [int((await anext(receiver)).array[0]) for _ in range(200)]

        results: list[Any] = [None] * THREADS

        def listen(number: int) -> None:
            results[number] = asyncio.run(asyncio.wait_for(take(receivers[number]), 120))

        threads = [threading.Thread(target=listen, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for value in range(200):
            sender.send(np.full(3, value), timeout=PATIENCE_S)
        for thread in threads:
            thread.join()
        for receiver in receivers:
            receiver.close()
        assert results == [list(range(200))] * THREADS


def test_a_place_that_another_thread_has_just_taken_for_the_same_ring() -> None:
    """Two threads find it free; the second took the first for another writer, and was refused."""
    with mm.Ring(100, "i8") as ring, mm.Ring.from_fd(ring.fileno()) as stranger:
        room = ring.reserve(3)
        ring._take()  # what the slower of the two does then
        room[:] = 5
        del room
        ring.commit()
        assert ring.latest(3).tolist() == [5, 5, 5]
        with pytest.raises(mm.BusyError):
            stranger.append(1)


def test_the_first_appends_of_all_threads() -> None:
    for _ in range(20):
        with mm.Ring(100, "i8") as ring:
            together(lambda chance, number, ring=ring: ring.append(number), rounds=2)  # type: ignore[misc]
            assert ring.written == 2 * THREADS


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this interpreter has a lock")
def test_an_interpreter_without_a_lock_goes_on_without() -> None:
    succeeds("import sys, mirrormap; assert not sys._is_gil_enabled()")
