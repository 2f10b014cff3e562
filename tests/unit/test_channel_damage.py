"""Hostile memory: headers, cursors and frames that lie, before the opener looks and while others scribble."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mirrormap as mm
from mirrormap.cursors import CONTROL_NBYTES
from support import PAGE, PATIENCE_S, scaled

pytestmark = pytest.mark.leaks_by_nature  # the start methods keep a server process and its pipes

FORK = multiprocessing.get_context("fork")
CONTROL = 2 * CONTROL_NBYTES
EXPECTED = (mm.MirrorError, ValueError, IndexError, TimeoutError, OSError, BufferError)


def used(channel: mm.Channel) -> None:
    """Everything a user does with a channel; exceptions of the right kinds are fine."""

    def read(start: Any, group: str | None) -> None:
        with channel.receiver(start, group=group) as receiver:
            _ = receiver.available, repr(receiver)
            for _ in range(3):
                with contextlib.suppress(mm.CorruptError, mm.Overrun), receiver.receive(0) as message:
                    _ = bytes(message)[:10], message.array.sum() if message.array.dtype != "S3" else 0
            with contextlib.suppress(*EXPECTED):
                for message in receiver.receive_many(100, timeout=0):
                    _ = message.array

    def write() -> None:
        with channel.sender() as sender:
            sender.send(np.arange(10), timeout=0)
            sender.send_many([b"x" * 100] * 5, timeout=0)

    uses: list[Callable[[], Any]] = [
        channel.peers, lambda: channel.sequence, lambda: repr(channel), write,
        *(lambda s=start, g=group: read(s, g) for start in ("oldest", -3, 0, "now") for group in (None, "work")),
    ]  # fmt: skip
    for use in uses:
        with contextlib.suppress(*EXPECTED):
            use()


def prepared(path: Path, *, overwrite: bool) -> None:
    with mm.Channel(2 * PAGE, path=path, overwrite=overwrite) as channel, channel.sender() as sender:
        keep = channel.receiver(group="work")
        for number in range(40):
            sender.send(np.arange(number), timeout=0)
            sender.send(b"plain", timeout=0)
            if not number % 4:
                with contextlib.suppress(mm.Overrun):
                    keep.receive_many(100)
        keep.close()


@pytest.mark.parametrize("overwrite", [True, False])
def test_random_damage_never_crashes_the_opener(tmp_path: Path, overwrite: bool, soak: bool) -> None:
    damage(random.Random(7), tmp_path / "channel", 20_000 if soak else scaled(400, 60), overwrite=overwrite)


def damage(rng: random.Random, path: Path, rounds: int, *, overwrite: bool) -> None:
    prepared(path, overwrite=overwrite)
    sound = path.read_bytes()
    interesting = [
        lambda: rng.randrange(80), lambda: CONTROL_NBYTES // 4 + rng.randrange(64 * 8), lambda: CONTROL_NBYTES + rng.randrange(400),
        lambda: CONTROL + rng.randrange(3 * PAGE), lambda: CONTROL + rng.randrange(3 * PAGE // 64) * 64 + rng.randrange(64),
        lambda: rng.randrange(CONTROL),
    ]  # fmt: skip
    for _ in range(rounds):
        damaged = bytearray(sound)
        for _ in range(rng.choice([1, 1, 2, 8])):
            damaged[rng.choice(interesting)()] = rng.choice([0, 255, 1, rng.randrange(256)])
        path.write_bytes(damaged)
        try:
            channel = mm.Channel.open(path)
        except mm.CorruptError as error:
            assert str(error)
            continue
        with channel:
            used(channel)


def test_truncated_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "channel"
    prepared(path, overwrite=False)
    sound = path.read_bytes()
    for length in (0, 7, 40, CONTROL_NBYTES // 4, CONTROL, len(sound) - PAGE):
        path.write_bytes(sound[:length])
        with pytest.raises(mm.CorruptError):
            mm.Channel.open(path)


def test_a_sender_killed_as_it_took_the_place_is_gone() -> None:
    """It had written its name there, and not counted yet that the place was taken."""
    dead = 1 << 22 << 32  # no process has that number
    with (
        mm.Channel("64KiB") as channel,
        channel.receiver() as receiver,
        mmap.mmap(channel.fileno(), CONTROL) as memory,
    ):
        words = np.frombuffer(memory, "u8")
        assert channel._end._owners()[:2] == (0, 0)
        words[CONTROL_NBYTES // 4 // 8 + 3] = dead
        assert channel._end._owners()[:2] == (dead, 0)
        with pytest.raises(mm.SenderGone):
            receiver.receive(PATIENCE_S)
        del words


def scribble(channel: mm.Channel, seed: int) -> None:
    """Random bytes and words all over the memory, except the header that everybody has read."""
    rng = random.Random(seed)
    with mmap.mmap(channel.fileno(), CONTROL + channel.nbytes) as memory:
        words = np.frombuffer(memory, "u8")
        first = CONTROL_NBYTES // 4 // 8
        while True:
            at = rng.choice(
                [rng.randrange(first, first + 40), rng.randrange(CONTROL_NBYTES // 8, len(words))]
            )
            old = int(words[at])
            words[at] = rng.choice(
                [0, 1, old ^ 1 << rng.randrange(64), (old + 64) % (1 << 64), rng.getrandbits(64)]
            )
            if rng.random() < 0.05:
                time.sleep(rng.random() * 1e-3)


def send_for_ever(channel: mm.Channel) -> None:
    while True:
        with contextlib.suppress(*EXPECTED), channel.sender() as sender:
            for number in range(1000):
                sender.send(np.arange(number % 300), timeout=0.01)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_process_that_scribbles_over_the_memory_harms_nobody(overwrite: bool, soak: bool) -> None:
    """Wrong bytes and exceptions are what may come of it; no crash, no hang. Twice 10 s, in a soak twice 5 minutes."""
    withstand(1, 300 if soak else scaled(10, 3), overwrite=overwrite)


def withstand(seed: int, seconds: float, *, overwrite: bool) -> None:
    until = time.monotonic() + seconds
    with mm.Channel("64KiB", overwrite=overwrite) as channel:
        children = [
            FORK.Process(target=scribble, args=(channel, seed), daemon=True),
            FORK.Process(target=send_for_ever, args=(channel,), daemon=True),
        ]
        for child in children:
            child.start()
        try:
            slowest = 0.0
            while time.monotonic() < until:
                before = time.monotonic()
                with contextlib.suppress(*EXPECTED):
                    used(channel)
                slowest = max(slowest, time.monotonic() - before)
            assert slowest < 20
            assert [child.exitcode for child in children] == [None, None]
        finally:
            for child in children:
                child.kill()
                child.join()
                child.close()
