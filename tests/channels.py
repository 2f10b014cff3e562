"""What several tests of channels need: both ends, messages that say whether they are whole, children and their end."""

from __future__ import annotations

import contextlib
import random
import struct
import zlib
from typing import Any

import mirrormap as mm
from support import PAGE, PATIENCE_S

SMALL = PAGE - 1024  # a channel of one page of data
POOL = random.Random(0).randbytes(1 << 18)


def body(number: int, longest: int = 3000) -> bytes:
    """Message `number`: its number, a checksum, and some bytes."""
    rng = random.Random(number)
    start = rng.randrange(1 << 16)
    rest = POOL[start : start + rng.randrange(longest)]
    return struct.pack("<QI", number, zlib.crc32(rest, number & 0xFFFFFFFF)) + rest


def number_of(message: mm.Message) -> int:
    """The number of a message that is whole; a torn one fails."""
    data = bytes(message)
    if not message.intact:
        return -1  # overwritten while we looked, and said so
    number, checksum = struct.unpack_from("<QI", data)
    assert zlib.crc32(data[12:], number & 0xFFFFFFFF) == checksum, f"message {message.sequence} is torn"
    return int(number)


def produce(channel: mm.Channel, first: int, count: int) -> None:
    with channel.sender() as sender:
        for number in range(first, first + count):
            sender.send(body(number), timeout=PATIENCE_S)


def produce_for_ever(channel: mm.Channel, longest: int = 3000) -> None:
    """Messages that say their own number, in all the ways there are."""
    with channel.sender() as sender:
        while True:
            number = sender.sequence
            data = body(number, longest)
            if number % 3 == 0:
                with sender.reserve(len(data) + 50, timeout=PATIENCE_S) as room:
                    view = memoryview(room)
                    view[: len(data)] = data
                    view.release()
                    room.commit(len(data))
            elif number % 3 == 1:
                sender.send_many((body(number + i, longest) for i in range(20)), timeout=PATIENCE_S)
            else:
                sender.send(data, timeout=PATIENCE_S)


def consume_for_ever(channel: mm.Channel, group: str | None = None) -> None:
    with channel.receiver("oldest", group=group) as receiver:
        while True:
            with contextlib.suppress(mm.Overrun, mm.SenderGone):
                for message in receiver:
                    number_of(message)


def pair(*arguments: Any, **options: Any) -> tuple[mm.Channel, mm.Sender, mm.Receiver]:
    channel = mm.Channel(*arguments, **options)
    return channel, channel.sender(), channel.receiver()
