"""Reader: a place in a ring's stream, and the blocks that are read from there on."""

from __future__ import annotations

import operator
import os
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Self

from mirrormap import portraits
from mirrormap.cursors import Attached, Deadline, Geometry, evict_dead, is_alive, own_token
from mirrormap.errors import BusyError, ClosedError, Overrun, WriterGone
from mirrormap.lifetime import SelfClosing

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Reader"]


class Reader(SelfClosing):
    """Reads a ring in order, block by block, as read-only windows; made by `Ring.reader`.

    On a lossless ring what `read` and `blocks` return is pinned until the start of the next call on
    this reader, and the writer waits for it. On an overwriting ring the writer waits for nobody: a
    reader that falls behind gets `Overrun` and goes on at the oldest intact item.

    A context manager. One thread at a time. In a forked child it counts as closed.

    Attributes:
        position: absolute index of the next item.
    """

    __slots__ = ("__weakref__", "_base", "_geometry", "_held", "_next", "_process", "_slot")
    _base: Attached  # our own hold on the pages: the ring may be closed before us
    _geometry: Geometry
    _held: int  # items handed out last, released by the next call
    _next: int
    _process: int
    _slot: int  # among the readers a lossless writer waits for, or -1

    def __init__(self) -> None:
        raise TypeError("make a Reader with Ring.reader()")

    @classmethod
    def _of(cls, ring: Attached, geometry: Geometry, start: str | int) -> Self:
        reader = cls.__new__(cls)
        reader._base, reader._geometry = Attached(), geometry
        geometry.attach(reader._base, *ring._regions)
        reader._held, reader._slot, reader._process = 0, -1, os.getpid()
        reader._start(start, lossless=not geometry.overwrite)
        return reader

    def _start(self, start: str | int, *, lossless: bool) -> None:
        base = self._base
        if start == "now":
            wanted = base.written
        elif start == "oldest":
            wanted = base.oldest
        elif isinstance(start, str):
            raise ValueError(f"start {start!r} must be 'now', 'oldest' or an index")
        else:
            wanted = operator.index(start)
            if wanted < 0 or wanted > base.written:
                raise IndexError(f"item {wanted} is not written yet: {base.written:,} are")
            if not base.valid(wanted):
                raise Overrun(base.oldest - wanted)
        if lossless:
            place = self._arrive(wanted)
            if place is None:
                raise BusyError("all places for readers of this lossless ring are taken")
            self._slot, got = place
            if isinstance(start, int) and got > wanted:
                self.close()
                raise Overrun(got - wanted)
            wanted = got
        self._next = wanted

    def _arrive(self, wanted: int) -> tuple[int, int] | None:
        place = self._base._arrive(own_token(), wanted)
        if place is None:
            evict_dead(self._base)
            place = self._base._arrive(own_token(), wanted)
        return place

    @property
    def _live(self) -> Attached:
        if not self._base._attached:
            raise ClosedError("this reader is closed")
        if self._process != os.getpid():
            raise ClosedError("this reader belongs to the parent process; make one of your own")
        return self._base

    # --- what it is ----------------------------------------------------------------------

    @property
    def position(self) -> int:
        """Absolute index of the next item."""
        return self._next + self._held

    @property
    def available(self) -> int:
        """Items that can be read without waiting."""
        base = self._live
        return max(0, base.written - max(self.position, base.oldest))

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return not self._base._attached

    def __repr__(self) -> str:
        if self.closed:
            return "<Reader closed>"
        return f"<Reader at item {self.position:,}, {self.available:,} available>"

    def _repr_html_(self) -> str:
        if self.closed:
            return portraits.of_region(None, repr(self))
        marks = self._geometry.marks(written=self._base.written, reader=self.position)
        return portraits.of_region(self._base._regions[1], repr(self), marks=marks)

    # --- reading -------------------------------------------------------------------------

    def peek(self, n: int, timeout: float | None = None) -> NDArray[Any]:
        """The next n items, without moving on.

        Args: timeout: seconds to wait for them; None: for ever, 0: not at all.
        Returns: read-only, shape ``(n, *shape)``.
        Raises: Overrun (the reader has moved to the oldest intact item); TimeoutError; WriterGone
            when fewer are left and no writer; ValueError for more than the capacity.
        """
        count = self._count(n)
        self._settle()
        self._wait(self._next + count, Deadline(timeout))
        return self._window(count)

    def advance(self, n: int) -> None:
        """Skip n items, which must be written. Raises: ValueError."""
        count = operator.index(n)
        base = self._live
        if count < 0 or self.position + count > base.written:
            raise ValueError(f"cannot advance by {count}: {max(0, base.written - self.position)} are written")
        self._held += count
        self._settle()

    def read(self, n: int, timeout: float | None = None, copy: bool = False) -> NDArray[Any]:
        """The next n items, moving on.

        Args: copy: an array of your own, released at once and checked: never torn.
        Returns, Raises: as peek.
        """
        block = self.peek(n, timeout)
        if not copy:
            self._held = len(block)
        else:
            block = block.copy()
            if count := len(block):
                self._check(self._next)
                self._held = count
            self._settle()
        return block

    def blocks(self, n: int, step: int | None = None, timeout: float | None = None) -> Blocks:
        """Blocks of n items, `step` apart (n by default), for `for` and for `async for`.

        Each step first asks whether the block before was overwritten while it was held, and raises
        Overrun if so; iterating again goes on at the oldest intact item. Ends with WriterGone or
        TimeoutError, as peek.
        """
        count = self._count(n)
        stride = count if step is None else operator.index(step)
        if stride < 1:
            raise ValueError(f"step {stride} must be at least 1")
        return Blocks(self, count, stride, timeout)

    def _count(self, n: int) -> int:
        count = operator.index(n)
        if not 0 <= count <= self._live.capacity:
            raise ValueError(f"{count} items: a block has 0 to {self._base.capacity:,}")
        return count

    def _settle(self) -> None:
        """Release what was handed out last."""
        if self._held:
            self._next += self._held
            self._held = 0
            if self._slot >= 0:
                self._live._advance(self._slot, self._next)

    def _window(self, count: int) -> NDArray[Any]:
        try:
            window: NDArray[Any] = self._base.window(self._next, self._next + count)
            return window
        except Overrun as error:
            missed = self._catch_up()
            raise Overrun(missed or error.missed) from None

    def _check(self, start: int) -> None:
        """Raises: Overrun unless everything from `start` on is intact."""
        if not self._base.valid(start):
            self._held = 0
            raise Overrun(self._catch_up())

    def _catch_up(self) -> int:
        before, self._next = self._next, max(self._next, self._base.oldest)
        return self._next - before

    def _is_there(self, target: int, milliseconds: int) -> bool:
        """One slice of waiting. Raises: WriterGone when nobody is left to write it."""
        base = self._live
        if base.written >= target or base._wait_data(target, milliseconds):
            return True
        writer, taken, _ = base._owners()
        # one killed as it took the place may not have been counted
        if (taken or writer) and not (writer and is_alive(writer)):
            if base.written >= target:
                return True
            raise WriterGone(f"the writer is gone; {self.available:,} items are left to read")
        return False

    def _wait(self, target: int, deadline: Deadline) -> None:
        while not self._is_there(target, milliseconds := deadline.slice_ms()):
            if not milliseconds:
                raise TimeoutError(f"{target - self._base.written:,} more items were not written in time")

    async def _wait_async(self, target: int, deadline: Deadline) -> None:
        import asyncio  # here: a third of what importing the package would cost

        loop = asyncio.get_running_loop()
        while self._live.written < target:
            milliseconds = deadline.slice_ms()
            if await loop.run_in_executor(None, self._is_there, target, milliseconds):
                return
            if not milliseconds:
                raise TimeoutError(f"{target - self._base.written:,} more items were not written in time")

    # --- the end -------------------------------------------------------------------------

    def close(self) -> None:
        """Give up the place; windows keep their pages."""
        if self._base._attached and self._slot >= 0 and self._process == os.getpid():
            self._base._advance(self._slot, -1)
        self._slot = -1
        self._base._detach()

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Reader has a place of this process; send the Ring and make a reader there")


class Blocks(Iterator["NDArray[Any]"], AsyncIterator["NDArray[Any]"]):
    """The blocks of a reader, one after another; made by `Reader.blocks`."""

    def __init__(self, reader: Reader, count: int, step: int, timeout: float | None) -> None:
        self._reader, self._count, self._step, self._timeout = reader, count, step, timeout
        self._given: int | None = None  # where the block that is out begins

    def _begin(self) -> int:
        """Done with the block before. Returns: how many items must be written for the next."""
        reader, given = self._reader, self._given
        self._given = None
        if given is not None and given == reader._next:
            reader._check(given)
        reader._settle()
        return reader._next + self._count

    def _give(self) -> NDArray[Any]:
        reader = self._reader
        block = reader._window(self._count)
        reader._held = self._step
        self._given = reader._next
        return block

    def __next__(self) -> NDArray[Any]:
        self._reader._wait(self._begin(), Deadline(self._timeout))
        return self._give()

    async def __anext__(self) -> NDArray[Any]:
        await self._reader._wait_async(self._begin(), Deadline(self._timeout))
        return self._give()
