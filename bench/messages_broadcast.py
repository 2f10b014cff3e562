"""One sender and several receivers of frames: ours, and memory that all of them map, in which nothing is ours.

The sender gives back CPU seconds of its thread: of the whole message, and of all but filling it.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable

import numpy as np

import mirrormap as mm

Sent = Callable[[int], tuple[float, float]]
SLOTS = 2
add = np.add.reduce


class Framed:
    """mirrormap.Channel, written and read in place."""

    def __init__(self, nbytes: int) -> None:
        self.words = nbytes // 8
        self.channel = mm.Channel(SLOTS * (nbytes + 192), max_inflight=SLOTS)

    def sender(self) -> Sent:
        reserve, wish, clock = self.channel.sender().reserve, (self.words, "u8"), time.thread_time

        def send(number: int) -> tuple[float, float]:
            start = clock()
            with reserve(wish) as room:
                array, before = room.array, clock()
                array.fill(number)
                filled = clock()
                del array
            end = clock()
            return end - start, end - start - (filled - before)

        return send

    def receiver(self, index: int) -> Callable[[], None]:
        receiver = self.channel.receiver("oldest")

        def receive() -> None:
            with receiver.receive() as message:
                add(message.array)

        return receive

    def close(self) -> None:
        self.channel.close()


class Plain:
    """What the machine asks for so many readers: the same two slots in shared memory, a byte in a pipe for each reader."""

    def __init__(self, nbytes: int, receivers: int) -> None:
        self.memory = mmap.mmap(-1, SLOTS * nbytes)
        self.arrays = np.frombuffer(self.memory, "u8").reshape(SLOTS, -1)
        self.pipes = [os.pipe() for _ in range(receivers)]

    def sender(self) -> Sent:
        fills, writing = [array.fill for array in self.arrays], [pipe[1] for pipe in self.pipes]
        clock = time.thread_time

        def send(number: int) -> tuple[float, float]:
            start = clock()
            fills[number % SLOTS](number)
            filled = clock()
            for fd in writing:
                os.write(fd, b"m")
            end = clock()
            return end - start, end - filled

        return send

    def receiver(self, index: int) -> Callable[[], None]:
        reading, number = self.pipes[index][0], 0

        def receive() -> None:
            nonlocal number
            os.read(reading, 1)
            add(self.arrays[number % SLOTS])
            number += 1

        return receive

    def close(self) -> None:
        for fd in (fd for pipe in self.pipes for fd in pipe):
            os.close(fd)
