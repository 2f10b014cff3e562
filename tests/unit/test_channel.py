"""Channel within one process: messages in place, pins, reservations, both policies, bad input."""

from __future__ import annotations

import gc
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
from support import PAGE, PROT_READ, PROT_WRITE, address_of, libc, protections

SMALL = PAGE - 1024  # a channel of one page of data


def pair(*arguments: Any, **options: Any) -> tuple[mm.Channel, mm.Sender, mm.Receiver]:
    channel = mm.Channel(*arguments, **options)
    return channel, channel.sender(), channel.receiver()


# --- one message -----------------------------------------------------------------------------------


def test_bytes_arrive_as_they_were_sent() -> None:
    channel, sender, receiver = pair("64KiB")
    with channel, sender, receiver:
        for data in (
            b"hello",
            bytearray(b"x" * 1000),
            memoryview(b"abcdef")[::2],
            b"",
            memoryview(np.arange(5)),
        ):
            before = time.monotonic_ns()
            sender.send(data)
            with receiver.receive() as message:
                assert bytes(message) == bytes(data)
                assert message.nbytes == len(message) == len(bytes(data))
                view = memoryview(message)
                assert (view.format, view.ndim, view.readonly) == ("B", 1, True)
                assert message.array.dtype == np.uint8
                assert before <= message.time_ns <= time.monotonic_ns()
                view.release()
        assert message.sequence == 4
        assert sender.sequence == receiver.sequence == channel.sequence == 5


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12).reshape(3, 4), np.array(5.0), np.zeros((0, 3)), np.arange(6, dtype=">i2"),
        np.array([(1, 2.5, b"abc")], dtype=[("a", "i4"), ("b", "f8"), ("c", "S3", (2,))]),
        np.arange(24).reshape(2, 3, 4)[:, ::2, ::-1], np.array(["a", "longer"]), np.array([True, False]),
        np.array(["2020-01-01"], dtype="M8[D]"), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.float32(3),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)  # fmt: skip
def test_arrays_keep_dtype_and_shape(array: Any) -> None:
    channel, sender, receiver = pair("64KiB")
    with channel, sender, receiver:
        for _ in range(2):
            sender.send(array)
            with receiver.receive() as message:
                got = message.array
                assert got.dtype == array.dtype
                assert got.shape == array.shape
                assert np.array_equal(got, array)
                assert not got.flags.writeable
                with pytest.raises(ValueError, match="WRITEABLE"):
                    got.flags.writeable = True
                view = memoryview(message)
                assert view.format == "B"
                assert view.nbytes == array.nbytes
                view.release()
                del got


def test_what_cannot_be_sent() -> None:
    channel, sender, receiver = pair("64KiB")
    with channel, sender, receiver:
        for wrong in ("text", 5, None, [1, 2], object()):
            with pytest.raises(TypeError, match="bytes-like or an ndarray"):
                sender.send(wrong)
        for array in (np.array([None]), np.zeros(1, [("a", "O")])):
            with pytest.raises(TypeError, match="objects"):
                sender.send(array)
        for long in (bytes(channel.capacity + 2000), np.zeros(channel.capacity)):
            with pytest.raises(ValueError, match="longer than the channel's capacity"):
                sender.send(long, timeout=0)
        with pytest.raises(ValueError, match="timeout"):
            sender.reserve(1)
            sender.send(b"", timeout=-1)
        for call in (sender.send, sender.send_many, sender.reserve, receiver.receive_many):
            with pytest.raises(TypeError):
                call()
            with pytest.raises(TypeError):
                call(b"", wrong=1)
        with pytest.raises(TypeError):
            receiver.receive(1, 2)
        assert sender.sequence == 0


def test_a_message_of_the_capacity_fits_wherever_the_seam_lies() -> None:
    channel, sender, receiver = pair(3 * PAGE + 5)
    rng = random.Random(1)
    with channel, sender, receiver:
        for number in range(200):
            data = rng.randbytes(channel.capacity if number % 3 == 0 else rng.randrange(channel.capacity + 1))
            sender.send(data, timeout=0)
            with receiver.receive(0) as message:
                assert bytes(message) == data
                assert address_of(message) % 64 == 0 if data else True
        sender.send(np.frombuffer(rng.randbytes(channel.capacity), "u1"), timeout=0)
        receiver.receive().release()


def test_the_receiver_cannot_write_even_by_mprotect() -> None:
    channel, sender, receiver = pair("64KiB")
    with channel, sender, receiver:
        sender.send(b"secret")
        with receiver.receive() as message:
            address = address_of(message) // PAGE * PAGE
            assert protections(address, PAGE) == ["r--s"]
            assert libc.mprotect(address, PAGE, PROT_READ | PROT_WRITE) == -1
            with pytest.raises(TypeError):
                memoryview(message)[0] = 1


# --- pins --------------------------------------------------------------------------------------------


def test_release_under_a_view_is_refused_and_the_place_stays_pinned() -> None:
    channel, sender, receiver = pair(SMALL)
    with channel, sender, receiver:
        sender.send(bytes(2000))
        message = receiver.receive()
        for view in (memoryview(message), message.array, message.array[5:].view("u1").reshape(-1)[::2]):
            with pytest.raises(BufferError, match="still show"):
                message.release()
            with pytest.raises(TimeoutError):
                sender.send(bytes(SMALL), timeout=0)
            with pytest.raises(BufferError):
                receiver.close()
            del view
        message.release()
        message.release()
        assert message.released
        for use in (
            lambda: memoryview(message),
            lambda: message.array,
            lambda: message.intact,
            message.__enter__,
        ):
            with pytest.raises(mm.ClosedError, match="released"):
                use()
        assert message.nbytes == 2000
        sender.send(bytes(SMALL), timeout=0)


def test_the_last_view_releases() -> None:
    channel, sender, receiver = pair(SMALL)
    with channel, sender, receiver:
        sender.send(np.arange(300))
        array = receiver.receive().array[100:]
        with pytest.raises(TimeoutError):
            sender.send(bytes(SMALL), timeout=0)
        assert array[0] == 100
        del array
        sender.send(bytes(SMALL), timeout=0)


def test_messages_released_out_of_order_hold_the_oldest() -> None:
    channel, sender, receiver = pair(3 * PAGE + SMALL)
    with channel, sender, receiver:
        sender.send_many([bytes([i]) * 2900 for i in range(4)])
        one, two, three, four = receiver.receive_many(10)
        for message in (three, two):
            message.release()
            with pytest.raises(TimeoutError):
                sender.send(bytes(3 * PAGE + SMALL), timeout=0)
        one.release()
        with pytest.raises(TimeoutError):
            sender.send(bytes(3 * PAGE + SMALL), timeout=0)
        assert bytes(four) == b"\3" * 2900
        four.release()
        sender.send(bytes(3 * PAGE + SMALL), timeout=0)


def test_an_exception_in_the_block_is_what_comes_out() -> None:
    channel, sender, receiver = pair(SMALL)
    with channel, sender, receiver:
        sender.send(b"abc")
        with pytest.raises(ZeroDivisionError):
            with receiver.receive() as message:
                keep = message.array
                raise ZeroDivisionError
        assert not message.released
        assert bytes(keep) == b"abc"
        del keep
        message.release()


def test_iteration_releases_what_is_not_viewed() -> None:
    channel, sender, receiver = pair(SMALL, max_inflight=1)
    with channel, sender, receiver:
        views = []
        sender.send(b"0")
        for number, message in enumerate(receiver):
            assert bytes(message) == b"%d" % number
            if number == 20:
                views.append(memoryview(message))
                break
            with pytest.raises(TimeoutError):
                sender.send(b"", timeout=0)

            def later(number: int = number) -> None:
                sender.send(b"%d" % (number + 1), timeout=10)

            thread = threading.Thread(target=later)
            thread.start()
            threads = [thread]
        for thread in threads:
            thread.join()
        assert not message.released
        views.clear()


# --- reservations --------------------------------------------------------------------------------------


def test_a_reservation_is_written_where_it_is_read() -> None:
    channel, sender, receiver = pair("64KiB")
    with channel, sender, receiver:
        with sender.reserve(100) as room:
            view = memoryview(room)
            assert (view.format, view.ndim, view.readonly, len(room), room.nbytes) == (
                "B",
                1,
                False,
                100,
                100,
            )
            view[:] = b"a" * 100
            view.release()
        with sender.reserve(((3, 4), "f4")) as room:
            room.array[:] = 5
            assert room.array.shape == (3, 4)
        room = sender.reserve(50)
        room.array[:10] = 7
        room.commit(10)
        with sender.reserve((5, [("a", "i4"), ("b", "f8")])) as room:
            room.array["a"] = 3
        one, two, three, four = receiver.receive_many(9)
        assert bytes(one) == b"a" * 100
        assert two.array.dtype == np.float32
        assert (two.array == 5).all()
        assert bytes(three) == b"\7" * 10
        assert four.array["a"].tolist() == [3] * 5
        with sender.reserve(0):
            pass
        with receiver.receive() as message:
            assert bytes(message) == b""


def test_a_reservation_is_abandoned_by_an_exception_and_by_hand() -> None:
    channel, sender, receiver = pair("64KiB")
    with channel, sender, receiver:
        with pytest.raises(KeyError):
            with sender.reserve(10) as room:
                room.array[:] = 1
                raise KeyError
        room = sender.reserve(10)
        room.abandon()
        room.abandon()
        del room
        sender.reserve(10)  # and by being forgotten
        gc.collect()
        sender.send(b"next")
        with receiver.receive(0) as message:
            assert bytes(message) == b"next"
            assert message.sequence == 0


def test_after_commit_there_are_no_views() -> None:
    channel, sender, receiver = pair("64KiB")
    with channel, sender, receiver:
        with sender.reserve(10) as room:
            room.array[:] = 1
        for use in (lambda: memoryview(room), lambda: room.array, room.commit, room.__enter__):
            with pytest.raises(mm.ClosedError, match="committed"):
                use()


def test_a_view_alive_at_exit_abandons_the_message() -> None:
    channel, sender, receiver = pair("64KiB")
    with channel, sender, receiver:
        with pytest.raises(BufferError, match="abandoned"):
            with sender.reserve(10) as room:
                view = room.array
        with pytest.raises(mm.BusyError, match="delete them first"):
            sender.send(b"")
        with pytest.raises(BufferError):
            sender.close()
        view[:] = 5
        del view
        sender.send(b"ok")
        with receiver.receive(0) as message:
            assert bytes(message) == b"ok"


def test_one_reservation_at_a_time() -> None:
    channel, sender, receiver = pair("64KiB")
    with channel, sender, receiver:
        room = sender.reserve(10)
        for use in (lambda: sender.send(b""), lambda: sender.reserve(1), lambda: sender.send_many([b""])):
            with pytest.raises(mm.BusyError, match="open"):
                use()
        with pytest.raises(ValueError, match="commit 0 to 10"):
            room.commit(11)
        with pytest.raises(ValueError, match="commit 0 to 10"):
            room.commit(-1)
        room.commit(nbytes=5)
        room = sender.reserve((3, "i4"))
        with pytest.raises(ValueError, match="whole"):
            room.commit(4)
        sender.close()
        with pytest.raises(mm.ClosedError):
            room.commit()


@pytest.mark.parametrize(
    ("wish", "error"),
    [(-1, ValueError), (1 << 40, ValueError), ((-1, "i4"), ValueError), ((3,), TypeError), ((3, "O"), TypeError),
     ((3, "nonsense"), TypeError), ("12", TypeError), (1.5, TypeError), (((1 << 40, 1 << 40), "f8"), ValueError),
     ((1,) * 3, TypeError), ((np.zeros(0), "i4"), TypeError), (1 << 70, OverflowError)],
)  # fmt: skip
def test_reservations_that_cannot_be(wish: Any, error: type[Exception]) -> None:
    with mm.Channel("64KiB") as channel, channel.sender() as sender:
        with pytest.raises(error):
            sender.reserve(wish)
        sender.send(b"")


# --- batches ---------------------------------------------------------------------------------------------


def test_batches() -> None:
    channel, sender, receiver = pair("256KiB")
    with channel, sender, receiver:
        assert sender.send_many(b"%d" % i for i in range(1000)) == 1000
        assert receiver.available == 1000
        assert [bytes(m) for m in receiver.receive_many(10)] == [b"%d" % i for i in range(10)]
        assert [bytes(m) for m in receiver.receive_many(5000)] == [b"%d" % i for i in range(10, 1000)]
        assert sender.send_many([]) == 0
        with pytest.raises(TimeoutError):
            receiver.receive_many(5, timeout=0)
        for limit in (0, -1):
            with pytest.raises(ValueError, match="at least 1"):
                receiver.receive_many(limit)
        rows = np.arange(30).reshape(10, 3)
        sender.send_many(rows)
        assert [m.array.tolist() for m in receiver.receive_many(99)] == rows.tolist()


def test_a_batch_that_breaks_off_has_sent_what_came_before() -> None:
    channel, sender, receiver = pair("64KiB")

    def failing() -> Any:
        yield b"a"
        yield b"b"
        raise KeyError

    with channel, sender, receiver:
        with pytest.raises(KeyError):
            sender.send_many(failing())
        with pytest.raises(TypeError):
            sender.send_many([b"c", 5])
        assert [bytes(m) for m in receiver.receive_many(9)] == [b"a", b"b", b"c"]

        def closing() -> Any:
            yield b"d"
            sender.close()
            yield b"e"

        with pytest.raises(mm.ClosedError):
            sender.send_many(closing())


def test_a_batch_longer_than_the_channel_waits_for_its_receiver() -> None:
    channel, sender, receiver = pair(4 * PAGE)
    seen = []

    def read() -> None:
        for message in receiver:
            seen.append(bytes(message))
            if len(seen) == 3000:
                break

    with channel, sender, receiver:
        thread = threading.Thread(target=read)
        thread.start()
        sender.send_many((b"%d" % i * (i % 50) for i in range(3000)), timeout=30)
        thread.join()
    assert seen == [b"%d" % i * (i % 50) for i in range(3000)]


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
            sender.send(b"%d" % i * 100, timeout=0)
        with channel.receiver("oldest") as receiver:
            first = receiver.sequence
            assert 900 < first < 1000
            assert receiver.available == 1000 - first
            for i in range(first, 1000):
                with receiver.receive(0) as message:
                    assert bytes(message) == b"%d" % i * 100
                    assert message.sequence == i


def test_overwriting_tells_what_was_missed() -> None:
    channel, sender, receiver = pair(4 * PAGE, overwrite=True)
    with channel, sender, receiver:
        for i in range(1000):
            sender.send(b"%d" % i * 100, timeout=0)
        with pytest.raises(mm.Overrun) as overrun:
            receiver.receive(0)
        first = overrun.value.missed
        assert receiver.sequence == first
        assert channel.peers()[1].missed == first
        assert receiver.available == 1000 - first
        for i in range(first, 1000):
            with receiver.receive(0) as message:
                assert bytes(message) == b"%d" % i * 100


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
    total = 1_000_000 if soak else 30_000
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
                with receiver.receive(30) as message:
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
                sender.send(b"%d" % i, timeout=30)

        thread = threading.Thread(target=write)
        thread.start()
        for i in range(2000):
            with receiver.receive(30) as message:
                assert bytes(message) == b"%d" % i
        thread.join()


def test_another_thread_in_send_keeps_the_sender() -> None:
    channel, sender, receiver = pair(SMALL, max_inflight=1, spin_us=0)
    with channel, sender, receiver:
        sender.send(b"")
        thread = threading.Thread(target=lambda: sender.send(b"late", timeout=30))
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
            receiver.receive(30)
        except mm.ClosedError as error:
            caught.append(error)

    with channel, sender:
        thread = threading.Thread(target=read)
        thread.start()
        time.sleep(0.05)
        receiver.close()
        thread.join()
    assert len(caught) == 1
