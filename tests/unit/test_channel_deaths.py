"""What a sender leaves behind that was killed with messages written and not committed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator

import pytest

import mirrormap as mm

FORK = multiprocessing.get_context("fork")
pytestmark = pytest.mark.leaks_by_nature  # multiprocessing keeps a pipe


def die_in_a_batch(channel: mm.Channel) -> None:
    def messages() -> Iterator[bytes]:
        yield b"a" * 1000
        yield b"b" * 1000
        os.kill(os.getpid(), signal.SIGKILL)

    with channel.sender() as sender:
        sender.send(b"0" * 20_000)
        sender.send_many(messages())


@pytest.mark.parametrize("nbytes", range(19_000, 22_000, 250))
def test_what_a_dead_sender_did_not_commit_is_not_found_again(nbytes: int) -> None:
    """Its successor skips to the start of the data, over the very place where the sound header of "b" lies; the oldest
    byte that is intact then lies before, in and behind what was skipped."""
    with mm.Channel("64KiB", overwrite=True, max_inflight=2) as channel:
        child = FORK.Process(target=die_in_a_batch, args=(channel,))
        child.start()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
        child.close()
        with channel.sender() as sender, channel.receiver() as late:
            assert sender.sequence == 1
            sender.send(b"1")
            sender.send(b"2" * nbytes)
            with channel.receiver("oldest") as receiver:
                messages = [
                    (message.sequence, bytes(message)[:1]) for message in receiver.receive_many(9, timeout=0)
                ]
            assert messages in ([(1, b"1"), (2, b"2")], [(0, b"0"), (1, b"1"), (2, b"2")])
            missed = 0
            while late.available:
                try:
                    late.receive(0).release()
                except mm.Overrun as overrun:
                    missed += overrun.missed
            assert (late.sequence, missed) == (3, 0)
