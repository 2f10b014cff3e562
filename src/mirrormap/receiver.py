"""Receiver: a place in a channel's stream, or in a group that shares one."""

from __future__ import annotations

import operator
import os
from typing import Literal, Self, SupportsIndex

from mirrormap import members, procfs
from mirrormap.bell import Bell
from mirrormap.cursors import SLICE_SECONDS, Deadline, is_alive, own_token, understood
from mirrormap.errors import BusyError, CorruptError, Overrun, SenderGone
from mirrormap.kernel import Message, ReceiverBase, Region
from mirrormap.lifetime import SelfClosing

__all__ = ["Receiver", "Start"]

Start = Literal["now", "oldest"] | SupportsIndex

_FREE = (1 << 62) - 1  # a position that pins nothing
_DAMAGED = "the channel's count of messages is damaged"


class Receiver(ReceiverBase, SelfClosing):
    """Receives the messages of a channel in order, where they lie; made by `Channel.receiver`.

    Every receiver sees every message, except that those of one group share them: each goes to one. For
    `for` and `async for`: a message is released at the next step, unless a view of it lives; the end of it
    is SenderGone.

    A context manager. Threads may share one, and then share its messages. In a forked child it counts as
    closed.
    """

    __slots__ = ("__weakref__", "_bell", "_grouped", "_here", "_lossless", "_process")
    _bell: Bell | None
    _grouped: bool
    _here: int  # our network namespace
    _lossless: bool
    _process: int

    def __init__(self) -> None:
        raise TypeError("make a Receiver with Channel.receiver()")

    @classmethod
    def _of(
        cls,
        control: Region,
        data: Region,
        nbytes: int,
        start: Start,
        group: str | None,
        *,
        overwrite: bool,
        spin_ns: int,
    ) -> Self:
        receiver = cls.__new__(cls)
        receiver._grouped = group is not None
        receiver._bell, receiver._here = None, procfs.network_namespace()
        receiver._lossless, receiver._process = not overwrite, os.getpid()
        receiver._attach(False, control, data, nbytes, overwrite)
        slot = -1
        try:
            if group is not None:
                receiver._join_group(group)
            slot, position, sequence = receiver._stand(start, needed=group is not None)
            receiver._begin(slot, position, sequence, spin_ns)
            if group is not None:
                receiver._found(slot, position, sequence)
        except BaseException:
            if slot >= 0:
                receiver._advance(slot, -1)
            receiver.close()
            raise
        return receiver

    # --- where it begins -----------------------------------------------------------------

    def _where(self, start: Start) -> tuple[int, int]:
        """Position and number of the message that `start` names."""
        newest = self._newest()
        if newest is None:
            raise CorruptError(_DAMAGED)
        if isinstance(start, str):
            if start not in ("now", "oldest"):
                raise ValueError(f"start {start!r} must be 'now', 'oldest' or a number of a message")
            return newest if start == "now" else self._oldest_from(0)
        number = operator.index(start)
        if number > newest[1]:
            raise IndexError(f"message {number:,} is not sent yet: {newest[1]:,} are")
        found = self._find(0, -number if number < 0 else newest[1] - number)
        if found is None:
            raise CorruptError(_DAMAGED)
        if 0 <= number < found[1]:
            raise Overrun(found[1] - number)
        return found

    def _oldest_from(self, position: int) -> tuple[int, int]:
        found = self._find(position, -1)
        if found is None:
            raise CorruptError(_DAMAGED)
        return found

    def _stand(self, start: Start, *, needed: bool) -> tuple[int, int, int]:
        """Take a slot there. Returns: slot, position, number of the message."""
        position, sequence = self._where(start)
        place = self._arrive(own_token(), position)
        if place is None:
            members.evict(self)
            place = self._arrive(own_token(), position)
        if place is None:
            if self._lossless or needed:
                raise BusyError("all places for receivers of this channel are taken")
            return -1, position, sequence
        slot, got = place
        try:
            if got > _FREE:
                raise CorruptError("the channel's cursors are damaged: they do not fit together")
            if got > position:  # the sender was here meanwhile; from `got` on it waits for us
                wanted = sequence
                position, sequence = self._oldest_from(got)
                if not isinstance(start, str) and operator.index(start) >= 0 and sequence > wanted:
                    raise Overrun(sequence - wanted)
                self._advance(slot, position)
        except BaseException:
            self._advance(slot, -1)
            raise
        return slot, position, sequence

    # --- waiting -------------------------------------------------------------------------

    @property
    def available(self) -> int:
        """Messages that can be received without waiting."""
        newest = self._newest()
        sequence = self.sequence
        if newest is None:
            return 0
        if not self._lossless and newest[1] > sequence:
            sequence = max(sequence, self._oldest_from(0)[1])
        return max(0, newest[1] - sequence)

    def _receive_slowly(self, timeout: float | None) -> Message:
        """Called from C when there was nothing."""
        deadline = Deadline(timeout)
        while (message := self._try()) is None:
            if not self._wait_data(deadline.slice_ms()):
                self._look_round()
                if deadline.is_over():
                    raise TimeoutError("no message came in time")
        return message

    def _look_round(self) -> None:
        """Nothing came for a while. Raises: SenderGone when nobody is left to send."""
        gone = members.is_sender_gone(self)
        if self._grouped:
            members.evict(self)  # what a dead worker had taken is for us
        # after the look at the sender: what it sent before it died is there by now
        if gone and not self._wait_data(0):
            raise SenderGone("the sender is gone, and all it sent was received")

    # --- asyncio -------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        self._done()
        deadline = Deadline(None)
        while (message := self._try()) is None:
            if not await self._arrival(deadline.slice_ms() / 1e3):
                self._look_round()
        return self._give(message)

    async def _arrival(self, seconds: float) -> bool:
        """Wait for a message for so long. Returns: whether there may be one."""
        import asyncio  # here: a third of what importing the package would cost

        loop = asyncio.get_running_loop()
        if self._slot < 0 or not self._here or self._network not in (0, self._here):
            # abstract sockets do not reach into another network namespace; the end of the loop waits for this
            return await loop.run_in_executor(None, self._wait_data, int(SLICE_SECONDS * 1e3))
        if self._bell is None:
            self._bell = Bell()
        self._bell.watch(loop)
        return self._want_bell(self._bell.address) or await self._bell.rung(seconds)

    # --- groups: called from C -----------------------------------------------------------

    def _join_group(self, name: str) -> None:
        text = name.encode()
        if not text:
            raise ValueError("a group needs a name")
        import hashlib  # here: it brings OpenSSL, and most receivers are in no group

        key = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True) or 1
        if not self._join(key, text):
            members.forget_groups(self)
            if not self._join(key, text):
                raise BusyError("this channel has as many groups as fit")

    def _another_slot(self) -> int:
        """One more, for a worker that takes a message while it holds another."""
        place = self._arrive(own_token(), _FREE)
        if place is None:
            members.evict(self)
            place = self._arrive(own_token(), _FREE)
        if place is None:
            raise BusyError("all places of this channel are taken: release() messages before taking more")
        return place[0]

    def _restart(self) -> None:
        """The group was dropped while nobody of it was alive: go on with the oldest that is left."""
        slot, position, sequence = self._stand("oldest", needed=True)
        try:
            self._found(slot, position, sequence)
        finally:
            self._advance(slot, -1)

    def _adopt_orphans(self) -> None:
        """Take over what dead workers of our group had taken; it is pending then."""
        ours = next(group for slot, _, group, *_ in self._peers() if slot == self._slot)
        missed = 0
        for slot, owner, group, *_ in self._peers():
            if group == ours and not is_alive(owner):
                overwritten = self._adopt(slot, owner, own_token())
                missed += max(0, overwritten)
                if overwritten < 0:
                    self._clear(slot, owner, own_token())
        if missed:
            self._missed(missed)

    def _overrun(self, missed: int) -> None:
        raise Overrun(missed)

    def _corrupt(self, what: str) -> None:
        raise CorruptError(f"the channel is damaged: {what}")

    def _understood(self, text: bytes) -> tuple[bytes, object, tuple[int, ...]]:
        """What a message says of its array."""
        return text, *understood(text, "a message")

    # --- the end -------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return not self._attached

    def __repr__(self) -> str:
        if self.closed:
            return "<Receiver closed>"
        return f"<Receiver at message {self.sequence:,}, {self.available:,} available>"

    def close(self) -> None:
        """Give up the place. Messages that are not released are, and what a group's worker had taken and
        not looked at goes to others.

        Raises: BufferError while an array or memoryview shows a message.
        """
        self._leave()
        if self._bell is not None:
            self._bell.close()
            self._bell = None

    @property
    def _live(self) -> int:
        return self.sequence  # which says so when there is none

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Receiver has a place of this process; send the Channel and make a receiver there")
