"""Channel: what gives way, who has a place where, threads, closing."""

from __future__ import annotations

import os
import random
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mirrormap as mm
from channels import SMALL, pair
from support import PAGE, PATIENCE_S, address_of, protections, scaled

REPEATS = PAGE // 40  # of three digits: a thousand messages fill four pages many times

# --- policies ------------------------------------------------------------------------------------------


def test_lossless_waits_and_times_out() -> None:
    channel, sender, receiver = pair(4 * PAGE)
    with channel, sender, receiver:
        count = 0
        with pytest.raises(TimeoutError, match="slowest receiver"):
            while True:
                sender.send(b"%d" % count * 100, timeout=0.02)
                count += 1
        for i in range(count):
            with receiver.receive(0) as message:
                assert bytes(message) == b"%d" % i * 100
        sender.send(bytes(channel.capacity), timeout=0)


def test_with_no_receiver_the_oldest_give_way() -> None:
    with mm.Channel(4 * PAGE) as channel, channel.sender() as sender:
        for i in range(1000):
            sender.send(b"%d" % i * REPEATS, timeout=0)
        with channel.receiver("oldest") as receiver:
            first = receiver.sequence
            assert 900 < first < 1000
            assert receiver.available == 1000 - first
            for i in range(first, 1000):
                with receiver.receive(0) as message:
                    assert bytes(message) == b"%d" % i * REPEATS
                    assert message.sequence == i


def test_overwriting_tells_what_was_missed() -> None:
    channel, sender, receiver = pair(4 * PAGE, overwrite=True)
    with channel, sender, receiver:
        for i in range(1000):
            sender.send(b"%d" % i * REPEATS, timeout=0)
        with pytest.raises(mm.Overrun) as overrun:
            receiver.receive(0)
        first = overrun.value.missed
        assert receiver.sequence == first
        assert channel.peers()[1].missed == first
        assert receiver.available == 1000 - first
        for i in range(first, 1000):
            with receiver.receive(0) as message:
                assert bytes(message) == b"%d" % i * REPEATS


def test_a_message_overwritten_while_it_was_held_is_told_at_its_release() -> None:
    channel, sender, receiver = pair(SMALL, overwrite=True)
    with channel, sender, receiver:
        sender.send(b"a")
        with receiver.receive() as message:
            assert message.intact
        sender.send(b"a")
        with pytest.raises(mm.Overrun):
            with receiver.receive() as message:
                sender.send(bytes(SMALL))
                sender.send(bytes(SMALL))
                assert not message.intact
        sender.send(b"b")
        with pytest.raises(mm.Overrun) as overrun:
            receiver.receive(0)
        assert overrun.value.missed == 1
        receiver.receive(0).release()
        with receiver.receive(0) as message:
            assert bytes(message) == b"b"
        sender.send(b"c")
        with pytest.raises(mm.Overrun):
            for _ in receiver:
                sender.send(bytes(SMALL))
                sender.send(bytes(SMALL))


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("inflight", [1, 2, 15])
def test_few_messages_in_flight_use_few_pages(inflight: int, overwrite: bool) -> None:
    """As many as the messages need, and at least 8 MiB."""
    channel, sender, receiver = pair("64MiB", max_inflight=inflight, overwrite=overwrite)
    with channel, sender, receiver:
        assert channel.max_inflight == inflight
        for i in range(100):
            sender.send(np.full(250_000, i, "u4"), timeout=0)
            with receiver.receive(0) as message:
                assert (message.array == i).all()
        used = channel._pages.allocated - channel._geometry.offset
        assert max(inflight * 1_000_000, 7 << 20) < used < max(inflight * 1_100_000, 8 << 20)
        if not overwrite:
            for _ in range(inflight):
                sender.send(b"", timeout=0)
            with pytest.raises(TimeoutError):
                sender.send(b"", timeout=0)


@pytest.mark.parametrize("overwrite", [False, True])
def test_few_messages_of_all_sizes_in_flight(overwrite: bool) -> None:
    rng = random.Random(3)
    channel, sender, receiver = pair("64KiB", max_inflight=3, overwrite=overwrite)
    with channel, sender, receiver:
        for i in range(3000):
            data = rng.randbytes(rng.choice([0, 10, 1000, rng.randrange(channel.capacity)]))
            sender.send(data, timeout=0)
            with receiver.receive(0) as message:
                assert bytes(message) == data
                assert message.sequence == i


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_million_messages_of_random_sizes(overwrite: bool, soak: bool) -> None:
    """Random lengths, checksums, one thread each side. The million is for soaks, and for the processes' test."""
    total = 1_000_000 if soak else scaled(30_000, 3000)
    channel, sender, receiver = pair("256KiB", overwrite=overwrite)
    pool = random.Random(0).randbytes(1 << 18)
    seen = missed = 0

    def write() -> None:
        rng = random.Random(1)
        for _ in range(total):
            start = rng.randrange(1 << 17)
            body = pool[
                start : start + (rng.randrange(1 << 17) if rng.random() < 0.02 else rng.randrange(500))
            ]
            sender.send(zlib.crc32(body).to_bytes(4, "little") + body)

    with channel, sender, receiver:
        thread = threading.Thread(target=write)
        thread.start()
        while seen + missed < total:
            try:
                with receiver.receive(PATIENCE_S) as message:
                    data = bytes(message)
                    assert message.sequence == seen + missed
                    sound = zlib.crc32(data[4:]).to_bytes(4, "little") == data[:4]
                    assert sound or not message.intact
                seen += 1
            except mm.Overrun as overrun:
                missed += overrun.missed
        thread.join()
    assert seen + missed == total
    assert seen
    assert overwrite or not missed


# --- places ------------------------------------------------------------------------------------------------


def test_one_sender_at_a_time() -> None:
    with mm.Channel("64KiB") as channel:
        first = channel.sender()
        with pytest.raises(mm.BusyError, match="one sender"):
            channel.sender()
        first.send(b"1")
        first.close()
        first.close()
        for use in (lambda: first.send(b""), lambda: first.reserve(1), first.__enter__):
            with pytest.raises(mm.ClosedError, match="closed"):
                use()
        with channel.sender() as second, channel.receiver("oldest") as receiver:
            second.send(b"2")
            assert [bytes(m) for m in receiver.receive_many(5)] == [b"1", b"2"]
            assert second.sequence == 2


def test_where_receivers_begin() -> None:
    with mm.Channel("64KiB") as channel, channel.sender() as sender:
        sender.send_many(b"%d" % i for i in range(100))
        for start, first in [
            ("now", 100),
            ("oldest", 0),
            (-1, 99),
            (-30, 70),
            (-500, 0),
            (42, 42),
            (100, 100),
            (np.int8(3), 3),
        ]:
            with channel.receiver(start) as receiver:
                assert receiver.sequence == first
                if first < 100:
                    assert bytes(receiver.receive(0)) == b"%d" % first
        with pytest.raises(IndexError, match="not sent yet"):
            channel.receiver(101)
        for wrong in ("never", "Now"):
            with pytest.raises(ValueError, match="start"):
                channel.receiver(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            channel.receiver(1.5)  # type: ignore[arg-type]
        for i in range(100, 3000):
            sender.send(b"%d" % i)
        with pytest.raises(mm.Overrun):
            channel.receiver(5)
        with channel.receiver("oldest") as oldest, channel.receiver(-100_000) as back:
            assert oldest.sequence == back.sequence > 1000


def test_every_receiver_sees_every_message() -> None:
    with mm.Channel("64KiB") as channel, channel.sender() as sender:
        receivers = [channel.receiver() for _ in range(64)]
        sender.send_many(b"%d" % i for i in range(100))
        for receiver in receivers:
            assert [bytes(m) for m in receiver.receive_many(100)] == [b"%d" % i for i in range(100)]
            receiver.close()


@pytest.mark.parametrize("overwrite", [True, False])
def test_places_are_limited_where_the_sender_waits(overwrite: bool) -> None:
    with mm.Channel("64KiB", overwrite=overwrite) as channel, channel.sender() as sender:
        receivers = [channel.receiver() for _ in range(184)]
        if overwrite:
            receivers.append(channel.receiver())
            sender.send(b"x")
            assert bytes(receivers[-1].receive()) == b"x"
        else:
            with pytest.raises(mm.BusyError, match="places"):
                channel.receiver()
        for receiver in receivers:
            receiver.close()
        channel.receiver().close()


def test_the_sender_is_gone_once_all_is_read() -> None:
    channel, sender, receiver = pair("64KiB")
    with channel, receiver:
        with pytest.raises(TimeoutError):
            receiver.receive(0.01)
        sender.send(b"1")
        sender.close()
        receiver.receive(0).release()
        for timeout in (0, 1, None):
            with pytest.raises(mm.SenderGone):
                receiver.receive(timeout)
        with pytest.raises(mm.SenderGone):
            list(receiver)
        with channel.sender() as again:
            again.send(b"2")
            assert bytes(receiver.receive(0)) == b"2"
    with mm.Channel("64KiB") as channel, channel.receiver() as receiver:
        with pytest.raises(TimeoutError):  # there has been none yet
            receiver.receive(0.15)


def test_peers_are_visible() -> None:
    channel, sender, receiver = pair("64KiB")
    with channel, sender, receiver, channel.receiver(group="work"):
        sender.send_many([b""] * 5)
        receiver.receive().release()
        one, two, three = channel.peers()
        assert (one.role, one.pid, one.alive) == ("sender", os.getpid(), True)
        assert (two.role, two.group, two.lag, two.missed) == ("receiver", None, 4, 0)
        assert (three.group, three.lag) == ("work", 5)
        assert "lossless, 64 KiB, 3 peers" in repr(channel)
        assert "4 available" in repr(receiver)


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((0,), {}, ValueError), ((-5,), {}, ValueError), (("64KB",), {}, ValueError), ((1.5,), {}, TypeError),
        ((1 << 62,), {}, ValueError), ((), {"max_inflight": 0}, ValueError), ((), {"max_inflight": 1 << 30}, ValueError),
        ((), {"max_inflight": 1.5}, TypeError), ((), {"spin_us": -1}, ValueError), ((), {"spin_us": 1e9}, ValueError),
        ((), {"spin_us": float("nan")}, ValueError), ((), {"page_size": 3}, ValueError),
        ((), {"page_size": "2MiB", "path": "x"}, ValueError),
    ],
)  # fmt: skip
def test_channels_that_cannot_be(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        mm.Channel(*arguments, **options)
    assert not Path("x").exists()


def test_a_closed_channel() -> None:
    channel, sender, receiver = pair("64KiB")
    channel.close()
    channel.close()
    for use in (
        channel.sender,
        channel.receiver,
        channel.peers,
        channel.__enter__,
        lambda: channel.sequence,
        channel.fileno,
    ):
        with pytest.raises(mm.ClosedError):
            use()
    assert repr(channel) == "<Channel closed>"
    sender.send(b"both ends live on")
    assert bytes(receiver.receive()) == b"both ends live on"
    sender.close()
    receiver.close()
    assert repr(receiver) == "<Receiver closed>"
    assert repr(sender) == "<Sender closed>"
    for use in (
        receiver.receive,
        lambda: receiver.receive_many(1),
        lambda: next(receiver),
        lambda: receiver.available,
    ):
        with pytest.raises(mm.ClosedError):
            use()
    with pytest.raises(TypeError, match="make a Sender"):
        mm.Sender()
    with pytest.raises(TypeError, match="make a Receiver"):
        mm.Receiver()


def test_huge_pages(huge: int) -> None:
    channel, sender, receiver = pair(2 * huge, page_size=huge)
    with channel, sender, receiver:
        for i in range(5):
            sender.send(np.full(huge // 4, i, "u4"), timeout=0)
            with receiver.receive(0) as message:
                assert (message.array == i).all()
                assert protections(address_of(message), PAGE) == ["r--s"]


def test_threads_wake_each_other() -> None:
    channel, sender, receiver = pair("64KiB", max_inflight=1, spin_us=0)
    with channel, sender, receiver:

        def write() -> None:
            for i in range(2000):
                sender.send(b"%d" % i, timeout=PATIENCE_S)

        thread = threading.Thread(target=write)
        thread.start()
        for i in range(2000):
            with receiver.receive(PATIENCE_S) as message:
                assert bytes(message) == b"%d" % i
        thread.join()


def test_another_thread_in_send_keeps_the_sender() -> None:
    channel, sender, receiver = pair(SMALL, max_inflight=1, spin_us=0)
    with channel, sender, receiver:
        sender.send(b"")
        thread = threading.Thread(target=lambda: sender.send(b"late", timeout=PATIENCE_S))
        thread.start()
        while not sender._waiting:
            time.sleep(0.001)
        for use in (sender.close, lambda: sender.send(b""), lambda: sender.reserve(1)):
            with pytest.raises(mm.BusyError, match="thread"):
                use()
        receiver.receive().release()
        thread.join()
        assert bytes(receiver.receive()) == b"late"


def test_close_under_a_thread_that_receives() -> None:
    channel, sender, receiver = pair(PAGE, spin_us=0)
    caught: list[BaseException] = []

    def read() -> None:
        try:
            receiver.receive(PATIENCE_S)
        except mm.ClosedError as error:
            caught.append(error)

    with channel, sender:
        thread = threading.Thread(target=read)
        thread.start()
        time.sleep(0.05)
        receiver.close()
        thread.join()
    assert len(caught) == 1
