"""Other ways to hold the newest W items of a stream; each has append(block) and window()."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import mirrormap as mm

Array = np.ndarray[Any, Any]


class Mirrored:
    """mirrormap.Ring."""

    def __init__(self, block: int, window: int, capacity: int) -> None:
        self.ring = mm.Ring(capacity)
        self.append, latest = self.ring.extend, self.ring.latest
        self.window: Callable[[], Array] = lambda: latest(window)


class Compacting:
    """A linear buffer of twice the size: the newest W are moved to its front once it is full."""

    def __init__(self, block: int, window: int, capacity: int) -> None:
        self.data, self.end, self.size = np.zeros(2 * capacity, "f4"), 0, window

    def append(self, block: Array) -> None:
        count = len(block)
        if self.end + count > len(self.data):
            kept = min(self.end, max(0, self.size - count))
            self.data[:kept] = self.data[self.end - kept : self.end]
            self.end = kept
        self.data[self.end : self.end + count] = block
        self.end += count

    def window(self) -> Array:
        return self.data[self.end - self.size : self.end]


class TwoSlices:
    """A ring in two slices, put together where a window crosses the seam."""

    def __init__(self, block: int, window: int, capacity: int) -> None:
        self.data, self.end, self.size = np.zeros(capacity, "f4"), 0, window

    def append(self, block: Array) -> None:
        at, count, limit = self.end % len(self.data), len(block), len(self.data)
        first = min(count, limit - at)
        self.data[at : at + first] = block[:first]
        if first < count:
            self.data[: count - first] = block[first:]
        self.end += count

    def window(self) -> Array:
        start, stop = (self.end - self.size) % len(self.data), self.end % len(self.data)
        if start < stop or stop == 0:
            return self.data[start : stop or None]
        return np.concatenate((self.data[start:], self.data[:stop]))


class Shifted:
    """The newest W, moved forward in place."""

    def __init__(self, block: int, window: int, capacity: int) -> None:
        self.data = np.zeros(window, "f4")

    def append(self, block: Array) -> None:
        count, size = len(block), len(self.data)
        if count >= size:
            self.data[:] = block[-size:]
        else:
            self.data[:-count] = self.data[count:]
            self.data[-count:] = block

    def window(self) -> Array:
        return self.data


class Concatenated:
    """np.concatenate of the old window and the block."""

    def __init__(self, block: int, window: int, capacity: int) -> None:
        self.data = np.zeros(window, "f4")

    def append(self, block: Array) -> None:
        self.data = np.concatenate((self.data, block))[-len(self.data) :]

    def window(self) -> Array:
        return self.data


class NumPyRingBuffer:
    """numpy-ringbuffer and dvg-ringbuffer."""

    module = "numpy_ringbuffer"

    def __init__(self, block: int, window: int, capacity: int) -> None:
        ring = importlib.import_module(self.module).RingBuffer(capacity=max(block, window), dtype="f4")
        self.append = ring.extend
        self.window: Callable[[], Array] = lambda: np.asarray(ring)[-window:]


class Dvg(NumPyRingBuffer):
    """dvg-ringbuffer."""

    module = "dvg_ringbuffer"


class NumCircBuf:
    """NumCircBuf's overwriting buffer, unchecked."""

    def __init__(self, block: int, window: int, capacity: int) -> None:
        ring = importlib.import_module("numcircbuf").OverwriteCircBuffer(
            max(block, window), "never", dtype=np.float32
        )
        self.append = ring.extend
        self.window: Callable[[], Array] = lambda: ring.view()[-window:]


class Doppler:
    """doppler-dsp: complex64, so half as many; refuses to overwrite, so the oldest are released."""

    def __init__(self, block: int, window: int, capacity: int) -> None:
        if block < 2:
            raise ImportError("takes complex64 only")
        buffer = importlib.import_module("doppler.buffer").F32Buffer(capacity // 2)
        self.held = max(block, window) // 2
        buffer.write(np.zeros(self.held, "c8"))
        self.buffer, self.half, self.size = buffer, block // 2, window // 2

    def append(self, block: Array) -> None:
        buffer = self.buffer
        buffer.wait(self.half)
        buffer.consume(self.half)
        if not buffer.write(block.view("c8")):
            raise AssertionError("refused")

    def window(self) -> Array:
        return self.buffer.wait(self.held)[-self.size :].view("f4")


class PicoRing:
    """picoring: bytes."""

    def __init__(self, block: int, window: int, capacity: int) -> None:
        ring = importlib.import_module("picoring").PicoRingByte(capacity * 4)
        ring.push_bytes(bytes(max(block, window) * 4))
        self.ring, self.nbytes, self.size = ring, block * 4, window

    def append(self, block: Array) -> None:
        self.ring.advance_tail(self.nbytes)
        self.ring.push_bytes(block.tobytes())

    def window(self) -> Array:
        return np.frombuffer(self.ring.get_readable_view(), "f4")[-self.size :]


CONTENDERS: dict[str, Callable[[int, int, int], Any]] = {
    "mirrormap": Mirrored,
    "compacting buffer": Compacting,
    "two slices": TwoSlices,
    "shift in place": Shifted,
    "concatenate": Concatenated,
    "NumCircBuf": NumCircBuf,
    "doppler-dsp": Doppler,
    "picoring": PicoRing,
    "numpy-ringbuffer": NumPyRingBuffer,
    "dvg-ringbuffer": Dvg,
}

# doppler and picoring refuse to overwrite: they start with a window of zeros
FULL_AT_FIRST = ("doppler-dsp", "picoring", "shift in place", "concatenate")


def made(block: int, window: int, capacity: int) -> Iterator[tuple[str, Any]]:
    """Contenders with a full window, or the reason why one is left out."""
    for name, make in CONTENDERS.items():
        try:
            if (wrong := _wrong(make)) is not None:
                yield name, wrong
                continue
            ring = make(block, window, capacity)
        except (ImportError, TypeError, ValueError) as error:
            yield name, str(error)
            continue
        if name not in FULL_AT_FIRST:
            for _ in range(-(-window // (1 << 14))):
                ring.append(np.zeros(min(window, 1 << 14), "f4"))
        yield name, ring


def _wrong(make: Callable[[int, int, int], Any]) -> str | None:
    """Three laps of a small ring: are the newest items the newest?"""
    block, window, capacity = 96, 1024, 2048
    ring = make(block, window, capacity)
    steps = 3 * capacity // block
    for step in range(steps):
        ring.append(np.arange(step * block, (step + 1) * block, dtype="f4"))
        if (step + 1) * block >= window:
            newest = np.arange((step + 1) * block - window, (step + 1) * block, dtype="f4")
            if not np.array_equal(np.asarray(ring.window()), newest):
                return "gives wrong items"
    return None
