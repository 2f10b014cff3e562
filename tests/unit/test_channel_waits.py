"""Channel: how it waits, and what pins a message while an array shows it."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import mirrormap as mm
from mirrormap.cursors import Deadline
from support import PAGE, PATIENCE_S, scaled

SPINS = [0, 30, 2000]


def test_who_waits_for_long_looks_round_less_often() -> None:
    deadline = Deadline(None)
    assert [deadline.slice_ms() for _ in range(5)] == pytest.approx([100, 1000, 1000, 1000, 1000], abs=1)
    assert Deadline(0.05).slice_ms() <= 50
    assert Deadline(0).slice_ms() == 0


@pytest.mark.parametrize("spin_us", SPINS)
def test_room_for_one_message_is_enough(spin_us: float) -> None:
    """Who waits hopes for more, and does not insist."""
    with mm.Channel(PAGE, spin_us=spin_us) as channel:
        sender, receiver = channel.sender(), channel.receiver()
        count = 0
        with pytest.raises(TimeoutError):
            while True:
                sender.send(bytes(64), timeout=0)
                count += 1
        assert count > 8
        done = threading.Event()

        def send() -> None:
            sender.send(b"last", timeout=PATIENCE_S)
            done.set()

        thread = threading.Thread(target=send)
        thread.start()
        assert not done.wait(0.05)
        receiver.receive(0).release()
        assert done.wait(60)
        thread.join()
        assert [len(message) for message in receiver.receive_many(count)] == [64] * (count - 1) + [4]
        sender.close()
        receiver.close()


@pytest.mark.parametrize("spin_us", SPINS)
@pytest.mark.parametrize("capacity", [PAGE, 16 * PAGE])
def test_two_threads_lose_nothing_however_they_wait(spin_us: float, capacity: int) -> None:
    total, got = scaled(20_000, 2000), []
    with (
        mm.Channel(capacity, spin_us=spin_us) as channel,
        channel.sender() as sender,
        channel.receiver() as receiver,
    ):

        def receive() -> None:
            for message in receiver:
                got.append(int(message.array[0]))
                if len(got) == total:
                    return

        thread = threading.Thread(target=receive)
        thread.start()
        for number in range(total):
            sender.send(np.array([number]), timeout=PATIENCE_S)
        thread.join(PATIENCE_S)
        assert got == list(range(total))


def test_the_base_of_an_array_pins_its_message_and_cannot_be_released() -> None:
    with mm.Channel("64KiB") as channel, channel.sender() as sender, channel.receiver() as receiver:
        sender.send(np.arange(8))
        message = receiver.receive(0)
        array = message.array
        assert not hasattr(array.base, "release")
        part = array[3:]
        del array
        with pytest.raises(BufferError):
            message.release()
        assert list(part) == [3, 4, 5, 6, 7]
        del part
        message.release()
