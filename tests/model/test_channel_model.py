"""Every method of Channel's ends against plain lists: both policies, groups, start positions, pins, close."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import mirrormap as mm
from support import PAGE, scaled


def content(number: int, nbytes: int) -> bytes:
    """Message `number`, told by every byte of it."""
    return bytes([number % 251]) * nbytes


class Messages(RuleBasedStateMachine):
    """The model: all that was ever sent, and for each receiver or group the number of its next message."""

    inflight: int | None = None

    @initialize(overwrite=st.booleans(), pages=st.integers(1, 3))
    def make(self, overwrite: bool, pages: int) -> None:
        self.channel = mm.Channel(pages * PAGE - 1024, overwrite=overwrite, max_inflight=self.inflight)
        self.overwrite = overwrite
        self.sender: mm.Sender | None = self.channel.sender()
        self.sent: list[bytes] = []
        self.receivers: dict[mm.Receiver, list[int]] = {}  # its next number
        self.workers: list[mm.Receiver] = []
        self.group: list[int] | None = None  # the same, shared
        self.held: list[tuple[mm.Message, int]] = []

    # --- sending -------------------------------------------------------------------------

    def added(self, data: bytes) -> bool:
        """After an attempt: was it sent?"""
        assert self.sender is not None
        if self.sender.sequence == len(self.sent):
            return False
        self.sent.append(data)
        assert self.sender.sequence == len(self.sent)
        return True

    def unread(self) -> int:
        """Messages that somebody has not read or released, and that a lossless sender must keep."""
        held = {number for message, number in self.held if not message.released}
        last = [place[0] for place in self.receivers.values()] + (
            [self.group[0]] if self.workers and self.group else []
        )
        return len(self.sent) - min([*last, *held, len(self.sent)])

    @precondition(lambda self: self.sender is not None)
    @rule(
        data=st.data(), way=st.sampled_from(["send", "array", "reserve", "less", "abandon", "raise", "view"])
    )
    def send(self, data: Any, way: str) -> None:
        assert self.sender is not None
        capacity = self.channel.capacity
        count = data.draw(st.integers(0, 200) | st.integers(0, capacity) | st.just(capacity))
        number, unread = len(self.sent), self.unread()
        body = content(number, count)
        try:
            if way == "send":
                self.sender.send(body, timeout=0)
            elif way == "array":
                count = min(count, capacity - 512)
                body = content(number, count)
                self.sender.send(np.frombuffer(body, "u1").reshape(1, -1), timeout=0)
            elif way in ("reserve", "less"):
                with self.sender.reserve(count, timeout=0) as room:
                    used = count // 2 if way == "less" else count
                    body = body[:used]
                    room.array[:used] = number % 251
                    room.commit(used)
            else:
                self.given_up(way, count)
                assert not self.added(b"")
                return
        except TimeoutError:
            assert not self.overwrite
            assert unread
            assert not self.added(b"")
        else:
            assert self.added(body)
            if not self.overwrite and self.inflight:
                assert self.unread() <= self.inflight

    def given_up(self, way: str, count: int) -> None:
        """A message that is begun and not sent."""
        assert self.sender is not None
        room = self.sender.reserve(count, timeout=0)
        if way == "abandon":
            room.abandon()
        elif way == "raise":
            with pytest.raises(KeyError):
                with room:
                    raise KeyError
        else:
            view = room.array
            with pytest.raises(BufferError):
                with room:
                    pass
            with pytest.raises(mm.BusyError):
                self.sender.send(b"", timeout=0)
            del view

    @precondition(lambda self: self.sender is not None)
    @rule(counts=st.lists(st.integers(0, 700), max_size=6))
    def send_many(self, counts: list[int]) -> None:
        assert self.sender is not None
        number, unread = len(self.sent), self.unread()
        bodies = [content(number + i, count) for i, count in enumerate(counts)]
        try:
            assert self.sender.send_many(iter(bodies), timeout=0) == len(bodies)
        except TimeoutError:
            assert not self.overwrite
            assert unread or self.receivers or self.workers
        self.sent += bodies[: self.sender.sequence - number]
        assert self.sender.sequence == len(self.sent)

    @rule()
    def another_sender(self) -> None:
        if self.sender is not None:
            with pytest.raises(mm.BusyError):
                self.channel.sender()
            self.sender.close()
            self.sender = None
        else:
            self.sender = self.channel.sender()
            assert self.sender.sequence == len(self.sent)

    # --- receiving -----------------------------------------------------------------------

    @precondition(lambda self: len(self.receivers) < 3)
    @rule(start=st.sampled_from(["now", "oldest"]) | st.integers(-4, 30))
    def join(self, start: Any) -> None:
        total = len(self.sent)
        if isinstance(start, int) and start > total:
            with pytest.raises(IndexError):
                self.channel.receiver(start)
            return
        try:
            receiver = self.channel.receiver(start)
        except mm.Overrun as overrun:
            assert isinstance(start, int)
            assert 0 < overrun.missed <= total - start
            return
        place = receiver.sequence
        if isinstance(start, int) and start >= 0:
            assert place == start
        elif start == "now":
            assert place == total
        elif start != "oldest":
            assert total + start <= place <= total
        assert 0 <= place <= total
        self.receivers[receiver] = [place]

    @precondition(lambda self: len(self.workers) < 3)
    @rule()
    def hire(self) -> None:
        worker = self.channel.receiver("oldest", group="work")
        if self.group is None or not self.workers:
            place = worker.sequence
            assert (self.group[0] if self.group else 0) <= place <= len(self.sent)
            self.group = [place]
        self.workers.append(worker)

    def took(self, receiver: mm.Receiver, place: list[int], message: mm.Message) -> None:
        number = place[0]
        assert message.sequence == number
        if message.intact:
            data = bytes(message)
            if message.intact:
                assert data == self.sent[number]
                assert message.array.size == len(data)
        place[0] += 1
        self.held.append((message, number))

    @precondition(lambda self: self.receivers or self.workers)
    @rule(data=st.data(), limit=st.integers(1, 4))
    def receive(self, data: Any, limit: int) -> None:
        receiver = data.draw(st.sampled_from([*self.receivers, *self.workers]))
        place = self.receivers.get(receiver, self.group)
        assert place is not None
        if place[0] == len(self.sent):
            # SenderGone only after everything is drained, and only where nobody sends
            with pytest.raises(TimeoutError if self.sender is not None else mm.SenderGone):
                receiver.receive(0)
            return
        try:
            if limit == 1:
                self.took(receiver, place, receiver.receive(0))
            else:
                messages = receiver.receive_many(limit, timeout=0)
                assert 1 <= len(messages) <= limit
                for message in messages:
                    self.took(receiver, place, message)
        except mm.Overrun as overrun:
            if receiver not in self.receivers:  # of a group only one of them is told
                assert self.overwrite or overrun.missed
            assert self.overwrite
            place[0] += overrun.missed
            assert place[0] <= len(self.sent)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), viewed=st.booleans())
    def release(self, data: Any, viewed: bool) -> None:
        index = data.draw(st.integers(0, len(self.held) - 1))
        message, number = self.held.pop(index)
        if message.released:
            with pytest.raises(mm.ClosedError):
                memoryview(message)
            return
        if viewed:
            view = memoryview(message)
            with pytest.raises(BufferError):
                message.release()
            if message.intact:
                assert bytes(view) == self.sent[number] or not message.intact
            view.release()
        intact = message.intact
        try:
            message.release()
        except mm.Overrun as overrun:
            assert overrun.missed == 1
            assert not intact
            assert self.overwrite
        else:
            assert intact
        assert message.released

    @precondition(lambda self: self.receivers or self.workers)
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        receiver = data.draw(st.sampled_from([*self.receivers, *self.workers]))
        receiver.close()
        with pytest.raises(mm.ClosedError):
            receiver.receive(0)
        if self.receivers.pop(receiver, None) is None:
            self.workers.remove(receiver)
        self.held = [(message, number) for message, number in self.held if not message.released]

    # --- what always holds ---------------------------------------------------------------

    @invariant()
    def all_agree(self) -> None:
        if not hasattr(self, "channel"):
            return
        assert self.channel.sequence == len(self.sent)
        for receiver, place in self.receivers.items():
            assert receiver.sequence == place[0]
            available = receiver.available
            assert available == len(self.sent) - place[0] or self.overwrite
        for worker in self.workers:
            assert self.group is not None
            assert worker.sequence == self.group[0]
        for message, number in self.held:
            if not message.released and message.intact:
                first = bytes(message)[:3]
                assert not message.intact or first == self.sent[number][:3]

    def teardown(self) -> None:
        if hasattr(self, "channel"):
            self.held.clear()
            for receiver in [*self.receivers, *self.workers]:
                receiver.close()
            if self.sender is not None:
                self.sender.close()
            self.channel.close()


@pytest.mark.parametrize("inflight", [None, 1, 2, 7])
def test_a_channel_is_a_list(inflight: int | None) -> None:
    machine = type("Messages", (Messages,), {"inflight": inflight})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=scaled(60, 10), stateful_step_count=30, deadline=None)
    )
