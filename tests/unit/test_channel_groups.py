"""Groups and asyncio: work queues, and loops that wake up for a message."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mirrormap as mm
from mirrormap import cursors
from mirrormap.receiver import Receiver
from support import PAGE, PATIENCE_S, checked, libc, scaled

CLONE_NEWNET = 0x40000000
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits looks round after a slice, and would find what it was not woken for: not within a test's patience."""
    for name in ("SLICE_SECONDS", "LONGEST_SLICE_SECONDS"):
        monkeypatch.setattr(cursors, name, 10 * PATIENCE_S)


def filled(channel: mm.Channel, count: int) -> None:
    with channel.sender() as sender:
        sender.send_many(b"%d" % i for i in range(count))


# --- groups ----------------------------------------------------------------------------------------


def test_each_message_goes_to_exactly_one() -> None:
    with mm.Channel("64KiB") as channel, channel.receiver() as witness:
        workers = [channel.receiver(group="work") for _ in range(3)]
        others = channel.receiver(group="other")
        filled(channel, 300)
        got = []
        for i in range(300):
            with workers[i % 3].receive(0) as message:
                got.append(bytes(message))
        assert got == [b"%d" % i for i in range(300)]
        for worker in workers:
            with pytest.raises(mm.SenderGone):
                worker.receive(0)
            worker.close()
        assert len(others.receive_many(1000)) == len(witness.receive_many(1000)) == 300
        others.close()


def test_a_group_goes_on_where_it_was() -> None:
    with mm.Channel("64KiB") as channel:
        filled(channel, 10)
        with channel.receiver("oldest", group="work") as worker:
            assert [bytes(m) for m in worker.receive_many(4)] == [b"0", b"1", b"2", b"3"]
        with channel.receiver("now", group="work") as worker:  # only the first says where it begins
            assert worker.sequence == 4
            assert bytes(worker.receive(0)) == b"4"


def test_what_was_taken_and_not_handed_out_goes_to_others() -> None:
    with mm.Channel("64KiB") as channel:
        filled(channel, 10)
        one = channel.receiver("oldest", group="work")
        two = channel.receiver(group="work")
        first = one.receive_many(6)
        assert len(first) == 6
        del first
        third = one.receive_many(3)
        with pytest.raises(mm.SenderGone):
            while True:
                two.receive(0).release()
        del third
        one.close()
        two.close()


def test_a_worker_may_hold_several() -> None:
    with mm.Channel(3 * PAGE) as channel, channel.sender() as sender:
        worker = channel.receiver(group="work")
        sender.send_many([bytes(PAGE // 4)] * 5)
        held = [worker.receive(0) for _ in range(5)]
        assert sum(peer.role == "receiver" for peer in channel.peers()) == 5
        for message in held[1:]:
            message.release()
        with pytest.raises(TimeoutError):
            for _ in range(50):
                sender.send(bytes(PAGE // 4), timeout=0)
        held[0].release()
        assert sum(peer.role == "receiver" for peer in channel.peers()) == 1
        sender.send(bytes(PAGE // 4), timeout=0)
        view = memoryview(worker.receive(0))
        with pytest.raises(BufferError):
            worker.close()
        view.release()
        worker.close()


def test_a_group_holds_the_sender_only_while_one_lives() -> None:
    with mm.Channel(3 * PAGE) as channel, channel.sender() as sender:
        worker = channel.receiver(group="work")
        with pytest.raises(TimeoutError):
            for _ in range(50):
                sender.send(bytes(PAGE // 4), timeout=0)
        worker.close()
        for number in range(50):
            sender.send(bytes([number]) * (PAGE // 4), timeout=1)
        with channel.receiver("oldest", group="work") as worker:
            last = worker.receive_many(99)[-1]
            assert bytes(last)[0] == 49
            del last


def test_an_overwriting_group_is_told_what_it_missed() -> None:
    with mm.Channel(3 * PAGE, overwrite=True) as channel, channel.sender() as sender:
        with channel.receiver(group="work") as one, channel.receiver(group="work") as two:
            for number in range(50):
                sender.send(b"%d" % number * (PAGE // 8))
            with pytest.raises(mm.Overrun) as overrun:
                one.receive(0)
            missed = overrun.value.missed
            for number in range(missed, 50):
                with (one, two)[number % 2].receive(0) as message:
                    assert bytes(message) == b"%d" % number * (PAGE // 8)


def test_groups_are_limited_and_forgotten() -> None:
    with mm.Channel("64KiB") as channel:
        receivers = [channel.receiver(group=f"group {i}") for i in range(32)]
        with pytest.raises(mm.BusyError, match="groups"):
            channel.receiver(group="one more")
        receivers.pop().close()
        receivers.append(channel.receiver(group="one more"))
        for receiver in receivers:
            receiver.close()
        with pytest.raises(ValueError, match="name"):
            channel.receiver(group="")


@pytest.mark.usefixtures("no_second_look")
def test_a_sender_that_waits_for_a_worker_is_woken() -> None:
    """Every message but the first lies behind a gap here, which a worker takes by itself before it takes the message."""
    count = 500
    with mm.Channel("64KiB", max_inflight=1, spin_us=0) as channel, channel.receiver(group="g") as worker:

        def send() -> None:
            with channel.sender() as sender:
                for number in range(count):
                    sender.send(b"%d" % number * 100, timeout=PATIENCE_S)

        thread = threading.Thread(target=send)
        thread.start()
        for number in range(count):
            with worker.receive(PATIENCE_S) as message:
                assert bytes(message) == b"%d" % number * 100
        thread.join()


# --- asyncio -----------------------------------------------------------------------------------------


def produce(channel: mm.Channel, count: int, pause: float) -> None:
    with channel.sender() as sender:
        for number in range(count):
            time.sleep(pause)
            sender.send(np.full(100, number))
        time.sleep(pause)


async def collect(receiver: mm.Receiver) -> list[int]:
    got: list[int] = []
    while True:
        try:
            got.append(int((await anext(receiver)).array[0]))
        except mm.SenderGone:
            return got


@pytest.mark.leaks_by_nature  # the start methods keep a server process and its pipes
@pytest.mark.parametrize("handed", ["inherited", "pickled", "by descriptor", "by path"])
def test_a_loop_wakes_up_for_messages(handed: str, tmp_path: Path) -> None:
    async def main(channel: mm.Channel) -> None:
        receivers = [channel.receiver() for _ in range(3)]
        child = FORK.Process(target=produce, args=(channel, 50, 0.002))
        child.start()
        late = asyncio.create_task(asyncio.sleep(0.02))
        results = await asyncio.wait_for(asyncio.gather(*map(collect, receivers)), 30)
        await late
        assert results == [list(range(50))] * 3
        assert all(receiver._bell is not None for receiver in receivers)  # by no thread
        for receiver in receivers:
            receiver.close()
        child.join()
        child.close()

    path = tmp_path / "channel" if handed == "by path" else None
    with mm.Channel("64KiB", path=path) as channel:
        if path is not None:
            with mm.Channel.open(path) as other:
                asyncio.run(main(other))
        elif handed == "inherited":
            asyncio.run(main(channel))
        elif handed == "pickled":
            with pickle.loads(pickle.dumps(channel)) as other:
                asyncio.run(main(other))
        else:
            with mm.Channel.from_fd(channel.fileno()) as other:
                asyncio.run(main(other))


def listen_elsewhere(channel: mm.Channel, connection: Any) -> None:
    """Receive in a network namespace of our own, where abstract sockets of the others are not."""
    try:
        checked(libc.unshare(CLONE_NEWNET))
    except PermissionError:
        connection.send("unshare(CLONE_NEWNET) is not permitted here")
        return
    connection.send("")
    with channel.receiver() as receiver:
        connection.send((asyncio.run(collect(receiver)), receiver._bell is None))


@pytest.mark.leaks_by_nature  # the start methods keep a server process and its pipes
def test_a_loop_in_another_network_namespace() -> None:
    ours, theirs = FORK.Pipe()
    with mm.Channel("64KiB") as channel, ours, theirs:
        child = FORK.Process(target=listen_elsewhere, args=(channel, theirs))
        with channel.sender() as sender:
            child.start()
            if refused := ours.recv():
                child.join()
                pytest.skip(refused)
            while len(channel.peers()) < 2:
                time.sleep(0.001)
            for number in range(50):
                sender.send(np.full(100, number))
                time.sleep(0.002)
        numbers, threaded = ours.recv()
        assert numbers == list(range(50))
        assert threaded
        child.join()
        assert child.exitcode == 0
        child.close()


@pytest.mark.leaks_by_nature  # the loop's executor
def test_another_network_namespace_is_waited_for_by_a_thread() -> None:
    with mm.Channel("64KiB") as channel:
        child = FORK.Process(target=produce, args=(channel, 10, 0.1))
        receiver = channel.receiver()
        child.start()
        while not receiver._network:  # the sender says it once it is one
            time.sleep(0.001)
        receiver._here += 1  # as if we were in another
        assert asyncio.run(collect(receiver)) == list(range(10))
        assert receiver._bell is None
        receiver.close()
        child.join()
        child.close()


@pytest.mark.usefixtures("no_second_look")
def test_a_loop_is_woken_at_once_and_by_no_thread() -> None:
    async def main(channel: mm.Channel, sender: mm.Sender, receiver: mm.Receiver) -> None:
        task = asyncio.ensure_future(anext(receiver))
        await asyncio.sleep(0.01)
        assert not task.done()
        sender.send(b"1")
        with await asyncio.wait_for(task, PATIENCE_S) as message:
            assert bytes(message) == b"1"
        task = asyncio.ensure_future(anext(receiver))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        sender.send(b"2")
        assert bytes(await anext(receiver)) == b"2"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(receiver), 0.25)

    for _ in range(2):  # a second loop
        with mm.Channel("64KiB") as channel, channel.sender() as sender, channel.receiver() as receiver:
            asyncio.run(main(channel, sender, receiver))
            asyncio.run(main(channel, sender, receiver))


@pytest.mark.usefixtures("no_second_look")
def test_no_wake_up_is_lost(soak: bool) -> None:
    """Ping-pong of two loops in threads of their own would need luck; one loop and a thread that sends suffice."""

    async def main(channel: mm.Channel) -> None:
        with (
            channel.sender() as sender,
            channel.receiver() as receiver,
            channel.receiver(group="g") as worker,
        ):
            count = 20_000 if soak else scaled(2000, 200)

            async def take(one: Any) -> None:
                for number in range(count):
                    message = await anext(one)
                    assert bytes(message) == b"%d" % number

            async def give() -> None:
                for number in range(count):
                    sender.send(b"%d" % number, timeout=PATIENCE_S)  # who was not woken lets the channel fill
                    await asyncio.sleep(0)

            await asyncio.wait_for(asyncio.gather(take(receiver), take(worker), give()), PATIENCE_S)

    with mm.Channel("64KiB") as channel:
        asyncio.run(main(channel))


@pytest.mark.usefixtures("no_second_look")
def test_a_bell_is_not_the_child_s() -> None:
    async def main(receiver: Receiver, sender: mm.Sender) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(receiver), 0.01)
        pid = os.fork()
        if not pid:
            receiver.close()
            os._exit(0)
        os.waitpid(pid, 0)
        sender.send(b"x")
        assert bytes(await asyncio.wait_for(anext(receiver), PATIENCE_S)) == b"x"

    with mm.Channel("64KiB") as channel, channel.sender() as sender, channel.receiver() as receiver:
        asyncio.run(main(receiver, sender))
