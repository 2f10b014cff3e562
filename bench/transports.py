"""Ways from one process to another; each fills every message with its number and sums all of it.

A transport is made before its two processes are forked. In the one `sender()` gives produce(first, count), in the other
`receiver()` gives consume(count), which returns the sums. Whatever is copied on the way is the transport's own.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing import shared_memory
from typing import Any

import numpy as np

import mirrormap as mm

Produce = Callable[[int, int], None]
Consume = Callable[[int], Any]
FORK: Any = multiprocessing.get_context("fork")
MIB = 1 << 20
IN_PLACE = 32 << 10  # from here on a message is written where it is read, and not copied in
add = np.add.reduce


def unique(prefix: str) -> str:
    return f"{prefix}{os.getpid()}-{os.urandom(4).hex()}"


class Transport:
    """Bytes by two callables; what most packages offer. `nbytes` a message, room for `slots` of them."""

    def __init__(self, nbytes: int, slots: int, spin_us: float | None = None) -> None:
        self.nbytes, self.slots = nbytes, slots
        self.setup()

    kept: Any = None  # what shall live as long as its process

    def setup(self) -> None: ...

    def sending(self) -> Callable[[Any], Any]:
        raise NotImplementedError

    def receiving(self) -> Callable[[], Any]:
        raise NotImplementedError

    def payload(self, array: np.ndarray[Any, Any]) -> Any:
        """What is given to the package, which copies it before it returns."""
        return memoryview(array).cast("B")

    def sender(self) -> Produce:
        send, array = self.sending(), np.zeros(self.nbytes // 8, "u8")
        view, fill = self.payload(array), array.fill

        def produce(first: int, count: int) -> None:
            for number in range(first, first + count):
                fill(number)
                send(view)

        return produce

    def receiver(self) -> Consume:
        receive, show = self.receiving(), np.frombuffer

        def consume(count: int) -> list[Any]:
            return [add(show(receive(), "u8")) for _ in range(count)]

        return consume

    def leave(self) -> None:
        """In each of the processes, before it ends: packages keep names that must not stay behind."""

    def close(self) -> None: ...


class OfBytes(Transport):
    """Takes objects of type bytes: one more copy."""

    def sender(self) -> Produce:
        send, array = self.sending(), np.zeros(self.nbytes // 8, "u8")
        fill, made = array.fill, array.tobytes

        def produce(first: int, count: int) -> None:
            for number in range(first, first + count):
                fill(number)
                send(made())

        return produce


# --- ours ------------------------------------------------------------------------------------


class Messages(Transport):
    """mirrormap.Channel, one message at a time."""

    inflight: int | None = None

    def __init__(self, nbytes: int, slots: int, spin_us: float | None = None) -> None:
        self.nbytes = nbytes
        inflight = 2 if nbytes >= MIB else None
        self.channel = mm.Channel(
            max(slots * (nbytes + 192), 1 << 16), max_inflight=inflight, spin_us=spin_us
        )

    def sender(self) -> Produce:
        channel, nbytes = self.channel.sender(), self.nbytes
        if nbytes < IN_PLACE:
            array, send = np.zeros(nbytes // 8, "u8"), channel.send
            fill = array.fill

            def produce(first: int, count: int) -> None:
                for number in range(first, first + count):
                    fill(number)
                    send(array)

            return produce
        reserve, wish = channel.reserve, (nbytes // 8, "u8")

        def produce_in_place(first: int, count: int) -> None:
            for number in range(first, first + count):
                with reserve(wish) as room:
                    room.array.fill(number)

        return produce_in_place

    def receiver(self) -> Consume:
        receiver = self.channel.receiver("oldest")

        def consume(count: int) -> list[Any]:
            sums = []
            for message in receiver:
                sums.append(add(message.array))
                if len(sums) == count:
                    break
            return sums

        return consume

    def close(self) -> None:
        self.channel.close()


class Batches(Messages):
    """send_many and receive_many, lists of bytes."""

    def sender(self) -> Produce:
        channel, nbytes = self.channel.sender(), self.nbytes
        send, words = channel.send_many, nbytes // 8

        def produce(first: int, count: int) -> None:
            raw = np.arange(first, first + count, dtype="u8").repeat(words).tobytes()
            send([raw[at : at + nbytes] for at in range(0, len(raw), nbytes)])

        return produce

    def receiver(self) -> Consume:
        receive, words = self.channel.receiver("oldest").receive_many, self.nbytes // 8

        def consume(count: int) -> Any:
            parts: list[Any] = []
            left = count
            while left:
                messages = receive(left)
                left -= len(messages)
                parts.append(b"".join(messages))
            return add(np.frombuffer(b"".join(parts), "u8").reshape(-1, words), 1)

        return consume


class Records(Messages):
    """Many records in one message: a window of them, written and read in place."""

    def sender(self) -> Produce:
        reserve, words = self.channel.sender().reserve, self.nbytes // 8

        def produce(first: int, count: int) -> None:
            with reserve(((count, words), "u8")) as room:
                room.array[:] = np.arange(first, first + count, dtype="u8")[:, None]

        return produce

    def receiver(self) -> Consume:
        receive = self.channel.receiver("oldest").receive

        def consume(count: int) -> Any:
            with receive() as message:
                return add(message.array, 1)

        return consume


class RingRecords(Transport):
    """The same records through a lossless mirrormap.Ring."""

    def setup(self) -> None:
        self.words = self.nbytes // 8
        self.ring = mm.Ring(self.slots, "u8", (self.words,), overwrite=False)

    def sender(self) -> Produce:
        reserve, commit = self.ring.reserve, self.ring.commit

        def produce(first: int, count: int) -> None:
            reserve(count, 60)[:] = np.arange(first, first + count, dtype="u8")[:, None]
            commit()

        return produce

    def receiver(self) -> Consume:
        read = self.ring.reader("oldest").read
        return lambda count: add(read(count, 60), 1)


# --- the limit -------------------------------------------------------------------------------


class Limit(Transport):
    """The C ring, bound to NumPy's C API."""

    def __init__(self, nbytes: int, slots: int, spin_us: float | None = None) -> None:
        self.nbytes, count = nbytes, slots if nbytes < MIB else 2
        spin_ns = int((30 if spin_us is None else spin_us) * 1e3)
        self.ring = importlib.import_module("c_messages").Limit(count * (nbytes + 8), spin_ns)

    def sender(self) -> Produce:
        reserve, commit, nbytes = self.ring.reserve, self.ring.commit, self.nbytes

        def produce(first: int, count: int) -> None:
            for number in range(first, first + count):
                reserve(nbytes).fill(number)
                commit()

        return produce

    def receiver(self) -> Consume:
        peek, release = self.ring.peek, self.ring.release

        def consume(count: int) -> list[Any]:
            sums = []
            for _ in range(count):
                sums.append(add(peek()))
                release()
            return sums

        return consume


class InC(Limit):
    """The C ring, both loops in C too."""

    def sender(self) -> Produce:
        ring, nbytes = self.ring, self.nbytes
        return lambda first, count: ring.produce(first, count, nbytes)

    def receiver(self) -> Consume:
        return self.ring.consume


# --- the standard library --------------------------------------------------------------------


class Queue(OfBytes):
    """multiprocessing.Queue."""

    def setup(self) -> None:
        self.queue = FORK.Queue(self.slots)

    def sending(self) -> Callable[[Any], Any]:
        return self.queue.put

    def receiving(self) -> Callable[[], Any]:
        return self.queue.get


class SimpleQueue(OfBytes):
    """multiprocessing.SimpleQueue."""

    def setup(self) -> None:
        self.queue = FORK.SimpleQueue()

    def sending(self) -> Callable[[Any], Any]:
        return self.queue.put

    def receiving(self) -> Callable[[], Any]:
        return self.queue.get


class Pipe(Transport):
    """multiprocessing.Pipe, send_bytes and recv_bytes."""

    def setup(self) -> None:
        self.ends = FORK.Pipe(duplex=False)

    def sending(self) -> Callable[[Any], Any]:
        return self.ends[1].send_bytes

    def receiving(self) -> Callable[[], Any]:
        return self.ends[0].recv_bytes


class UnixSocket(Transport):
    """A Unix stream socket, recv_into a buffer of our own."""

    def setup(self) -> None:
        self.ends = socket.socketpair()
        for end in self.ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MIB)

    def sending(self) -> Callable[[Any], Any]:
        return self.ends[0].sendall

    def receiving(self) -> Callable[[], Any]:
        receive, target = self.ends[1].recv_into, memoryview(bytearray(self.nbytes))
        nbytes = self.nbytes

        def whole() -> memoryview:
            got = receive(target)
            while got < nbytes:
                got += receive(target[got:])
            return target

        return whole

    def close(self) -> None:
        for end in self.ends:
            end.close()


class Slots(Transport):
    """The recipe: SharedMemory, as many slots as there is room for, two semaphores; in place at both ends."""

    few = False

    def setup(self) -> None:
        if self.few and self.nbytes >= MIB:
            self.slots = 2
        self.memory = shared_memory.SharedMemory(create=True, size=self.slots * self.nbytes)
        self.rooms, self.filled = self.semaphores()

    def semaphores(self) -> tuple[Any, Any]:
        return FORK.Semaphore(self.slots), FORK.Semaphore(0)

    def arrays(self) -> list[np.ndarray[Any, Any]]:
        words = np.frombuffer(self.memory.buf, "u8", self.slots * self.nbytes // 8)
        return list(words.reshape(self.slots, -1))

    def sender(self) -> Produce:
        take, give, slots, at = self.rooms.acquire, self.filled.release, self.slots, 0
        fills = [array.fill for array in self.arrays()]

        def produce(first: int, count: int) -> None:
            nonlocal at
            for number in range(first, first + count):
                take()
                fills[at](number)
                give()
                at = (at + 1) % slots

        return produce

    def receiver(self) -> Consume:
        take, give, slots, arrays, at = self.filled.acquire, self.rooms.release, self.slots, self.arrays(), 0

        def consume(count: int) -> list[Any]:
            nonlocal at
            sums = []
            for _ in range(count):
                take()
                sums.append(add(arrays[at]))
                give()
                at = (at + 1) % slots
            return sums

        return consume

    def close(self) -> None:
        self.memory.unlink()
        with contextlib.suppress(BufferError):
            self.memory.close()


class FewSlots(Slots):
    """The same with two slots from 1 MiB on."""

    few = True


STANDARD: dict[str, Any] = {
    "mp.Queue": Queue,
    "mp.SimpleQueue": SimpleQueue,
    "mp.Pipe": Pipe,
    "Unix socket": UnixSocket,
    "SharedMemory + semaphores": Slots,
    "the same, 2 slots": FewSlots,
}
