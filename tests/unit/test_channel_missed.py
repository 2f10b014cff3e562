"""Channel: what a group's workers missed when they could not keep up, told so that nothing is unaccounted for."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
from typing import Any

import pytest

import mirrormap as mm

FORK = multiprocessing.get_context("fork")
TOTAL = 30_000
WORKERS = 3


def work(channel: mm.Channel, number: int, ready: Any, writing: int) -> None:
    """Take what there is until the end; then say which messages, and how many were missed."""
    with channel.receiver("oldest", group="work") as worker:
        ready.release()
        taken: list[int] = []
        missed = 0
        while True:
            try:
                messages = worker.receive_many(1 + number, timeout=60)
                taken += [message.sequence for message in messages]
                for message in messages:
                    with contextlib.suppress(mm.Overrun):  # while it was held: it was taken all the same
                        message.release()
            except mm.Overrun as overrun:
                missed += overrun.missed
            except mm.SenderGone:
                break
        os.write(writing, json.dumps({"taken": taken, "missed": missed}).encode() + b"\n")


def test_workers_that_race_leave_no_message_unaccounted_for() -> None:
    """Each is taken by one or told as missed; a few may be both, never neither, and none twice."""
    reading, writing = os.pipe()
    ready = FORK.Semaphore(0)
    with mm.Channel("8KiB", overwrite=True) as channel:
        workers = [
            FORK.Process(target=work, args=(channel, number, ready, writing)) for number in range(WORKERS)
        ]
        for worker in workers:
            worker.start()
        for _ in workers:
            ready.acquire()
        with channel.sender() as sender:
            for number in range(TOTAL):
                sender.send(b"%d" % number)
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
    os.close(writing)
    with open(reading) as answers:
        said = [json.loads(line) for line in answers]
    assert len(said) == WORKERS
    taken = sorted(number for each in said for number in each["taken"])
    assert len(taken) == len(set(taken))
    missed = sum(each["missed"] for each in said)
    assert len(taken) + missed >= TOTAL
    assert missed <= TOTAL


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
