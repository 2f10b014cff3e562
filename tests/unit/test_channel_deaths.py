"""Channel: death of either side at any instant, and what a dead sender leaves behind."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mirrormap as mm
from channels import body, consume_for_ever, number_of, produce, produce_for_ever
from kin import FORK, killed, no_child_is_left, started
from support import PATIENCE_S, scaled

pytestmark = pytest.mark.leaks_by_nature  # the start methods keep a server process and its pipes
__all__ = ["no_child_is_left"]  # a fixture


# --- death -------------------------------------------------------------------------------------------


def test_nobody_waits_for_a_dead_receiver() -> None:
    with mm.Channel("16KiB") as channel, channel.sender() as sender:
        for hold in (False, True):
            child = started(consume_for_ever, channel)
            while len(channel.peers()) < 2:
                time.sleep(0.001)
            if hold:
                os.kill(child.pid, signal.SIGSTOP)
                with pytest.raises(TimeoutError):
                    for number in range(10_000):
                        sender.send(body(number), timeout=0.05)
            killed(child)
            for number in range(100):
                sender.send(body(number), timeout=10)
        assert len(channel.peers()) <= 2


def test_a_zombie_is_dead() -> None:
    with mm.Channel("64KiB") as channel:
        child = started(produce, channel, 0, 10)
        limit = time.monotonic() + 30
        while "Z" not in Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2]:
            assert time.monotonic() < limit
            time.sleep(0.005)
        with channel.sender() as sender:
            assert sender.sequence == 10
        child.join()
        child.close()


def hold_half(channel: mm.Channel) -> None:
    sender = channel.sender()
    sender.send(body(0))
    room = sender.reserve(1000)
    room.array[:500] = 1
    time.sleep(1000)


def test_a_message_being_written_by_a_dead_sender_is_never_seen() -> None:
    with mm.Channel("64KiB") as channel, channel.receiver() as receiver:
        child = started(hold_half, channel)
        assert number_of(receiver.receive(PATIENCE_S)) == 0
        time.sleep(0.05)
        killed(child)
        with pytest.raises(mm.SenderGone):
            receiver.receive(PATIENCE_S)
        with channel.sender() as sender:
            assert sender.sequence == 1
            sender.send(body(1))
            assert number_of(receiver.receive(0)) == 1


@pytest.mark.parametrize("inflight", [None, 2])
@pytest.mark.parametrize("overwrite", [False, True])
def test_kills_of_all_sides_lose_and_tear_nothing(overwrite: bool, inflight: int | None, soak: bool) -> None:
    """Random kill -9 of sender, busy receiver and idle receiver, a replacement each time; a soak has 2,000."""
    print(
        kill_all_sides(
            random.Random(overwrite), 170 if soak else scaled(9, 3), overwrite=overwrite, inflight=inflight
        )
    )


def kill_all_sides(rng: random.Random, rounds: int, *, overwrite: bool, inflight: int | None) -> str:
    with (
        mm.Channel("64KiB", overwrite=overwrite, max_inflight=inflight) as channel,
        channel.receiver() as receiver,
    ):
        seen = missed = 0
        for _ in range(rounds):
            others = [started(consume_for_ever, channel), started(consume_for_ever, channel)]
            if rng.random() < 0.5:
                os.kill(others[0].pid, signal.SIGSTOP)  # idle: waits, or holds the channel up
            begun = channel._end._owners()[1]
            sender = started(produce_for_ever, channel)
            while channel._end._owners()[1] == begun:  # one that never sends is not missed
                time.sleep(0.001)
            until = time.monotonic() + rng.uniform(0.01, 0.06)
            alive = True
            while True:
                if alive and time.monotonic() > until:
                    for process in rng.sample([sender, *others], 3):
                        killed(process)
                    alive = False
                try:
                    with receiver.receive(0.02 if alive else 30) as message:
                        assert message.sequence == seen + missed
                        data = bytes(message)
                        if message.intact:
                            assert data == body(message.sequence)
                    seen += 1
                except mm.Overrun as overrun:
                    assert overwrite
                    # one that was torn under our hands is told when it is released
                    missed += overrun.missed
                except TimeoutError:
                    assert alive
                except mm.SenderGone:
                    if alive:
                        continue  # the one before is gone, the new one has not begun
                    break
            assert receiver.sequence == channel.sequence
        assert seen + missed == channel.sequence
        assert seen
        assert overwrite or not missed
        return f"{3 * rounds} kills, {channel.sequence:,} messages, {seen:,} seen, {missed:,} missed"


def work(channel: mm.Channel, connection: Any, seed: int) -> None:
    """A worker that says what it finished, after it did."""
    rng = random.Random(seed)
    with channel.receiver("oldest", group="work") as receiver:
        while True:
            with contextlib.suppress(mm.SenderGone):
                if rng.random() < 0.3:
                    for message in receiver.receive_many(rng.randrange(1, 10), timeout=PATIENCE_S):
                        number = number_of(message)
                        message.release()
                        connection.send(number)
                else:
                    with receiver.receive(PATIENCE_S) as message:
                        number = number_of(message)
                    connection.send(number)


def test_a_dead_worker_s_messages_go_to_another(soak: bool) -> None:
    """Workers are killed at any instant while one lives; every message is finished, and only what a worker had in
    its hands when it died may be finished twice or go unreported."""
    print(kill_workers(random.Random(9), 500 if soak else scaled(25, 5)))


def kill_workers(rng: random.Random, kills: int) -> str:
    done: dict[int, int] = {}
    with mm.Channel("64KiB") as channel:
        first = channel.receiver("oldest", group="work")
        sender = started(produce_for_ever, channel, 300)
        number = 0
        workers: list[tuple[Any, Any]] = []

        def hire() -> None:
            nonlocal number
            ours, theirs = FORK.Pipe()
            workers.append((started(work, channel, theirs, number), ours))
            theirs.close()
            number += 1

        def collect(connection: Any) -> None:
            with contextlib.suppress(EOFError, OSError):
                while connection.poll():
                    got = connection.recv()
                    done[got] = done.get(got, 0) + 1

        lost_at_most = 0
        for _ in range(3):
            hire()
        for _ in range(kills):
            until = time.monotonic() + rng.uniform(0.005, 0.04)
            while time.monotonic() < until:
                for _, connection in workers:
                    collect(connection)
            process, connection = workers.pop(rng.randrange(len(workers)))
            killed(process)
            collect(connection)
            connection.close()
            lost_at_most += 1
            hire()
        killed(sender)
        deadline = time.monotonic() + 30
        last = channel.sequence
        # the workers finish what is left, and ours takes what the last of the dead had
        while time.monotonic() < deadline:
            for _, connection in workers:
                collect(connection)
            with contextlib.suppress(TimeoutError, mm.SenderGone):
                with first.receive(0) as message:
                    got = number_of(message)
                done[got] = done.get(got, 0) + 1
                continue
            if len(done) >= last - lost_at_most and first.available == 0:
                time.sleep(0.3)
                for _, connection in workers:
                    collect(connection)
                break
        for process, connection in workers:
            killed(process)
            connection.close()
        first.close()
    unreported = set(range(last)) - set(done)
    assert len(unreported) <= lost_at_most, sorted(unreported)[
        :10
    ]  # released, and killed before it could say so
    assert not set(done) - set(range(last))
    twice = [number for number, count in done.items() if count > 1]
    assert len(twice) <= lost_at_most
    return f"{kills} kills, {last:,} messages, {len(unreported)} finished unreported, {len(twice)} finished twice"


def test_what_was_sent_survives_kill_9_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "channel"
    with mm.Channel("1MiB", path=path) as channel:
        sender = started(produce_for_ever, channel)
        while channel.sequence < 3000:
            time.sleep(0.001)
        killed(sender)
    with mm.Channel.open(path) as again, again.receiver("oldest") as receiver:
        first = receiver.sequence
        for number in range(first, again.sequence):
            assert receiver.receive(0).sequence == number
        assert again.sequence - first > 100


# --- what was not committed ------------------------------------------------------------------------


def die_in_a_batch(channel: mm.Channel) -> None:
    def messages() -> Iterator[bytes]:
        yield b"a" * 1000
        yield b"b" * 1000
        os.kill(os.getpid(), signal.SIGKILL)

    with channel.sender() as sender:
        sender.send(b"0" * 20_000)
        sender.send_many(messages())


@pytest.mark.parametrize("nbytes", [19_000, 20_100, 20_400, 20_700, 21_900])
def test_what_a_dead_sender_did_not_commit_is_not_found_again(nbytes: int) -> None:
    """Its successor skips to the start of the data, over the very place where the sound header of "b" lies; the oldest
    byte that is intact then lies before, in and behind what was skipped."""
    with mm.Channel("64KiB", overwrite=True, max_inflight=2) as channel:
        child = multiprocessing.get_context("spawn").Process(target=die_in_a_batch, args=(channel,))
        child.start()
        child.join(PATIENCE_S)
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
