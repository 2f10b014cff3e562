"""Acts in several processes: rings, channels, groups, killed on all sides; hostile memory; the native hammers.

The tests in tests/unit do the same a few times with seeds of their own; these have the soak's.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import threading
import time
from typing import Any

import numpy as np
import test_channel_damage
import test_channel_deaths
import test_channel_processes
import test_ring_processes
from stage import Stage, confine

import channels
import hammer
import kin
import mirrormap as mm


def ring_killed(stage: Stage) -> None:
    """kill -9 of writers and readers."""
    test_ring_processes.kill_either_side(
        stage.chance, stage.chance.randint(2, 20), overwrite=stage.chance.random() < 0.5
    )


def ring_passed(stage: Stage) -> None:
    """Every item is seen, or counted as missed."""
    chance = stage.chance
    test_ring_processes.pass_items(chance, chance.randint(10**5, 10**8), overwrite=chance.random() < 0.5)


def ring_damaged(stage: Stage) -> None:
    """Headers and cursors that lie."""
    chance = stage.chance
    path = stage.folder / "ring"
    try:
        test_ring_processes.damage_headers(
            chance, path, chance.randint(50, 1500), overwrite=chance.random() < 0.5
        )
    finally:
        path.unlink(missing_ok=True)


def channel_killed(stage: Stage) -> None:
    """kill -9 of senders and receivers."""
    chance = stage.chance
    overwrite, inflight = chance.random() < 0.5, chance.choice([None, 1, 2, 7])
    test_channel_deaths.kill_all_sides(chance, chance.randint(2, 10), overwrite=overwrite, inflight=inflight)


def group_killed(stage: Stage) -> None:
    """kill -9 of a work queue's workers: each message is done."""
    test_channel_deaths.kill_workers(stage.chance, stage.chance.randint(5, 40))


def channel_passed(stage: Stage) -> None:
    """Every message is seen, or counted as missed."""
    chance = stage.chance
    test_channel_processes.pass_messages(chance.randint(1000, 60_000), overwrite=chance.random() < 0.5)


def channel_damaged(stage: Stage) -> None:
    """Headers, cursors and frames that lie."""
    chance = stage.chance
    path = stage.folder / "channel"
    try:
        test_channel_damage.damage(chance, path, chance.randint(20, 300), overwrite=chance.random() < 0.5)
    finally:
        path.unlink(missing_ok=True)


def channel_scribbled_over(stage: Stage) -> None:
    """A process that writes nonsense all over the memory of a channel in use."""
    chance = stage.chance
    seed, seconds = chance.randrange(1 << 30), chance.uniform(2, 15)
    test_channel_damage.withstand(seed, seconds, overwrite=chance.random() < 0.5)


def awaited(stage: Stage) -> None:
    """Messages taken by event loops: no wake-up is lost."""
    chance = stage.chance
    count = chance.randint(100, 3000)

    async def take(receiver: Any) -> None:
        for number in range(count):
            with await asyncio.wait_for(anext(receiver), 120) as message:
                assert bytes(message) == b"%d" % number

    def give(sender: mm.Sender) -> None:
        for number in range(count):
            sender.send(b"%d" % number, timeout=120)
            if number % 97 == 0:
                time.sleep(1e-3)

    async def both(channel: mm.Channel) -> None:
        with (
            channel.sender() as sender,
            channel.receiver() as receiver,
            channel.receiver(group="g") as worker,
        ):
            thread = threading.Thread(target=give, args=(sender,))
            thread.start()
            await asyncio.gather(take(receiver), take(worker))
            thread.join()

    with mm.Channel("64KiB", max_inflight=chance.choice([None, 3])) as channel:
        asyncio.run(both(channel))


def squeezed(stage: Stage) -> None:
    """Rings and channels made, used and dropped while memory is short."""
    chance = stage.chance
    for _ in range(chance.randint(1, 10)):
        with stage.may_refuse():
            capacity = chance.randint(1, 1 << 20)
            with mm.Ring(capacity, "i8", page_size=stage.page_size()) as ring, ring.reader() as reader:
                for _ in range(chance.randint(1, 5)):
                    count, at = chance.randint(1, capacity), reader.position
                    ring.extend(np.arange(at, at + count))
                    assert np.array_equal(reader.read(count, timeout=0), np.arange(at, at + count))
        with stage.may_refuse():
            nbytes = chance.randint(1000, 4 << 20)
            with mm.Channel(nbytes, page_size=stage.page_size()) as channel, channel.receiver() as receiver:
                with channel.sender() as sender:
                    for _ in range(chance.randint(1, 5)):
                        data = chance.randbytes(chance.randint(0, nbytes))
                        sender.send(data, timeout=0)
                        with receiver.receive(0) as message:
                            assert bytes(message) == data


def hammered(stage: Stage) -> None:
    """The protocols by themselves: messages and groups in native threads, as fast as they go."""
    program = stage.folder.parent / "hammer_channel"
    if program.exists():
        count = str(stage.chance.randint(10_000, 3_000_000))
        done = subprocess.run(
            [program, count], capture_output=True, text=True, env=hammer.CLEAN, preexec_fn=confine
        )
        assert done.returncode == 0, done.stderr


def left_in_files(stage: Stage) -> None:
    """A ring and a channel in files outlive whoever is killed over them, and go on where they were."""
    chance = stage.chance
    path = stage.folder / "lasting"
    with contextlib.ExitStack() as stack:
        stack.callback(path.unlink, missing_ok=True)
        mm.Channel("64KiB", path=path, overwrite=True).close()
        sent = 0
        for _ in range(chance.randint(1, 6)):
            with mm.Channel.open(path) as channel:
                process = kin.started(channels.produce_for_ever, channel)
                limit = time.monotonic() + 120
                while channel.sequence < sent + chance.randint(1, 200):
                    assert time.monotonic() < limit
                    time.sleep(1e-3)
                kin.killed(process)
                with channel.receiver("oldest") as receiver:
                    for number in range(receiver.sequence, channel.sequence):
                        with receiver.receive(0) as message:
                            assert channels.number_of(message) == number
                sent = channel.sequence
