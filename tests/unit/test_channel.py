"""Channel within one process: messages in place, pins, reservations, both policies, bad input."""

from __future__ import annotations

import gc
import random
import threading
import time
from typing import Any

import numpy as np
import pytest

import mirrormap as mm
from channels import SMALL, pair
from support import PAGE, PATIENCE_S, PROT_READ, PROT_WRITE, address_of, libc, protections

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
        sender.send_many((b"%d" % i * (i % 50) for i in range(3000)), timeout=PATIENCE_S)
        thread.join()
    assert seen == [b"%d" % i * (i % 50) for i in range(3000)]
