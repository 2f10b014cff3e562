"""Channel: what a group's workers missed when they could not keep up, told so that nothing is unaccounted for."""

from __future__ import annotations

import contextlib
import multiprocessing
from typing import Any

import pytest

import mirrormap as mm
from support import PATIENCE_S

FORK = multiprocessing.get_context("fork")
TOTAL = 30_000
WORKERS = 3


def work(channel: mm.Channel, number: int, ready: Any, answers: Any) -> None:
    """Take what there is until the end; then say which messages, and how many were missed."""
    with channel.receiver("oldest", group="work") as worker:
        ready.release()
        taken: list[int] = []
        missed = 0
        while True:
            try:
                messages = worker.receive_many(1 + number, timeout=PATIENCE_S)
                taken += [message.sequence for message in messages]
                for message in messages:
                    with contextlib.suppress(mm.Overrun):  # while it was held: it was taken all the same
                        message.release()
            except mm.Overrun as overrun:
                missed += overrun.missed
            except mm.SenderGone:
                break
        answers.put((taken, missed))


def test_workers_that_race_leave_no_message_unaccounted_for() -> None:
    """Each is taken by one or told as missed, once: never both, never neither."""
    ready, answers = FORK.Semaphore(0), FORK.SimpleQueue()
    with mm.Channel("8KiB", overwrite=True) as channel:
        workers = [
            FORK.Process(target=work, args=(channel, number, ready, answers)) for number in range(WORKERS)
        ]
        for worker in workers:
            worker.start()
        for _ in workers:
            ready.acquire()
        with channel.sender() as sender:
            for number in range(TOTAL):
                sender.send(b"%d" % number)
        # before they are waited for: what one took may be more than a pipe holds
        said = [answers.get() for _ in workers]
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
    assert answers.empty()
    answers.close()
    taken = sorted(number for each, _ in said for number in each)
    assert len(taken) == len(set(taken))
    missed = sum(count for _, count in said)
    assert len(taken) + missed == TOTAL


@pytest.mark.parametrize("limit", [1, 7])
def test_one_worker_at_a_time_is_told_exactly(limit: int) -> None:
    with (
        mm.Channel("8KiB", overwrite=True) as channel,
        channel.sender() as sender,
        channel.receiver("oldest", group="work") as one,
        channel.receiver("oldest", group="work") as two,
    ):
        taken, missed = 0, 0
        for turn in range(200):
            for _ in range(turn * 7 % 150):
                sender.send(bytes(turn % 90))
            worker = one if turn % 3 else two
            try:
                for message in worker.receive_many(limit, timeout=0):
                    taken += 1
                    message.release()
            except mm.Overrun as overrun:
                missed += overrun.missed
            except TimeoutError:
                pass
            assert taken + missed <= sender.sequence
        for worker in (one, two):
            with pytest.raises(TimeoutError):
                while True:
                    try:
                        for message in worker.receive_many(50, timeout=0):
                            taken += 1
                            message.release()
                    except mm.Overrun as overrun:
                        missed += overrun.missed
        assert taken + missed == sender.sequence


# --- of what the dead had taken ----------------------------------------------------------------------

NBYTES = 500
COUNT_AT = 16384 + 128 + 16  # in the control pages: of the first group, see frames.h


def take_and_die(channel: mm.Channel, connection: Any, released: int) -> None:
    """Take eight messages, release the first few of them, and be killed with the rest."""
    worker = channel.receiver("oldest", group="work")
    messages = worker.receive_many(8, timeout=60)
    for message in messages[:released]:
        message.release()
    connection.send([message.sequence for message in messages])
    connection.recv()


def taken_and_missed(worker: mm.Receiver) -> tuple[list[int], int]:
    """All there is for a worker when nobody sends."""
    taken: list[int] = []
    missed = 0
    while True:
        try:
            with worker.receive(0) as message:
                taken.append(message.sequence)
        except mm.Overrun as overrun:
            missed += overrun.missed
        except (TimeoutError, mm.SenderGone):
            return taken, missed


@pytest.mark.parametrize("released", [0, 3])
@pytest.mark.parametrize("later", [0, 2, 4, 9, 40, 1000])
def test_what_a_dead_worker_had_and_nobody_can_read_is_told(released: int, later: int) -> None:
    """After so many more messages all, some, or none of the dead one's are intact."""
    ours, theirs = FORK.Pipe()
    with mm.Channel("8KiB", overwrite=True) as channel, channel.sender() as sender, ours, theirs:
        sent = sender.send_many(bytes(NBYTES) for _ in range(10))
        with channel.receiver("oldest", group="work") as witness:
            child = FORK.Process(target=take_and_die, args=(channel, theirs, released))
            child.start()
            assert ours.recv() == list(range(8))
            child.kill()
            child.join()
            child.close()
            sent += sender.send_many(bytes(NBYTES) for _ in range(later))
            channel._end._orphan(0)  # as whoever finds it dead says
            taken, missed = taken_and_missed(witness)
            assert not set(taken) & set(range(released))
            assert len(taken) == len(set(taken))
            assert len(taken) + missed == sent - released
            assert sum(peer.missed for peer in channel.peers()) == missed
            if later == 0:
                assert taken == [8, 9, *range(released, 8)] or taken == list(range(released, 10))


def test_what_close_hands_over_is_told() -> None:
    with mm.Channel("8KiB", overwrite=True) as channel, channel.sender() as sender:
        sent = sender.send_many(bytes(NBYTES) for _ in range(12))
        one = channel.receiver("oldest", group="work")
        two = channel.receiver(group="work")
        iterator = one.receive_many(7, timeout=0)
        del iterator[1:]
        one.close()
        sent += sender.send_many(bytes(NBYTES) for _ in range(9))
        taken, missed = taken_and_missed(two)
        assert len(taken) + missed == sent - 7
        two.close()


def test_a_worker_killed_before_it_counted_leaves_the_count_right() -> None:
    """It moved the cursor and was killed there: the slot that the cursor names still says how far."""
    with mm.Channel("8KiB", overwrite=True) as channel, channel.sender() as sender:
        sent = sender.send_many(bytes(NBYTES) for _ in range(10))
        one = channel.receiver("oldest", group="work")
        two = channel.receiver(group="work")
        held = one.receive_many(4, timeout=0)
        assert channel._control is not None
        count = channel._control.array()[COUNT_AT : COUNT_AT + 8].view("u8")
        assert count[0] >> 8 == 4
        count[0] = 0
        sent += sender.send_many(bytes(NBYTES) for _ in range(100))
        taken, missed = taken_and_missed(two)
        assert len(taken) + missed == sent - 4
        del held, count
        one.close()
        two.close()
