"""Channel between processes: handed over, by path, descriptor and socket; death at any instant; hostile memory."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import resource
import signal
import socket
import stat
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mirrormap as mm
from channels import POOL, body, number_of, produce
from kin import FORK, METHODS, ended, no_child_is_left, started
from support import PATIENCE_S, forked, scaled, succeeds

pytestmark = pytest.mark.leaks_by_nature  # the start methods keep a server process and its pipes
__all__ = ["no_child_is_left"]  # a fixture


# --- the same channel ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_child_sends_what_the_parent_receives(method: str) -> None:
    count = scaled(3000, 1000)
    with mm.Channel("256KiB") as channel, channel.receiver() as receiver:
        child = started(produce, channel, 0, count, context=multiprocessing.get_context(method))
        for number in range(count):
            with receiver.receive(PATIENCE_S) as message:
                assert number_of(message) == number
        with pytest.raises(mm.SenderGone):
            receiver.receive(PATIENCE_S)
        ended(child)


def drain(channel: mm.Channel, connection: Any) -> None:
    with channel.receiver("oldest") as receiver:
        connection.send(sum(number_of(receiver.receive(PATIENCE_S)) for _ in range(100)))


@pytest.mark.parametrize("method", METHODS)
def test_children_receive_what_the_parent_sends(method: str) -> None:
    context = multiprocessing.get_context(method)
    with mm.Channel("1MiB") as channel:
        ends = [context.Pipe() for _ in range(3)]
        children = [started(drain, channel, end, context=context) for _, end in ends]
        produce(channel, 0, 100)
        for (ours, theirs), child in zip(ends, children, strict=True):
            assert ours.recv() == sum(range(100))
            ended(child)
            ours.close()
            theirs.close()


def test_pickled_by_descriptor_and_by_socket() -> None:
    with mm.Channel("64KiB", max_inflight=7, spin_us=3) as channel, channel.sender() as sender:
        sender.send(np.arange(3))
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        with ours, theirs:
            channel.share(ours)
            with mm.Channel.from_socket(theirs, spin_us=0) as third:
                with (
                    pickle.loads(pickle.dumps(channel)) as other,
                    mm.Channel.from_fd(channel.fileno()) as fourth,
                ):
                    for one in (third, other, fourth):
                        assert (one.capacity, one.max_inflight, one.overwrite) == (1 << 16, 7, False)
                        assert not os.get_inheritable(one.fileno())
                        with one.receiver("oldest") as receiver:
                            assert receiver.receive(0).array.tolist() == [0, 1, 2]
                        with pytest.raises(mm.BusyError):
                            one.sender()
                    assert other._spin_ns == 3000
            ours.send(b"nonsense")
            with pytest.raises(EOFError):
                mm.Channel.from_socket(theirs)
            with open("/dev/null") as stranger:
                socket.send_fds(ours, [b"mirrchan"], [stranger.fileno()])
            with pytest.raises(ValueError, match="regular files"):
                mm.Channel.from_socket(theirs)
            ours.close()
            with pytest.raises(EOFError):
                mm.Channel.from_socket(theirs)
        with channel.receiver() as receiver:
            for one in (sender, receiver):
                with pytest.raises(TypeError, match="send the Channel"):
                    pickle.dumps(one)
        with pytest.raises(mm.CorruptError, match="sealed"):
            fd = os.memfd_create("stranger")
            try:
                os.write(fd, bytes(100_000))
                mm.Channel.from_fd(fd)
            finally:
                os.close(fd)


def test_by_path_with_mode_0600(tmp_path: Path) -> None:
    path = tmp_path / "channel"
    with mm.Channel("64KiB", path=path) as channel, channel.sender() as sender:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        sender.send_many(body(number) for number in range(10))
        with pytest.raises(FileExistsError):
            mm.Channel("64KiB", path=path)
        with mm.Channel.open(path) as other, other.receiver(3) as receiver:
            assert number_of(receiver.receive(0)) == 3
    with mm.Channel.open(path) as again, again.receiver("oldest") as receiver, again.sender() as sender:
        assert again.sequence == 10
        sender.send(body(10))
        assert [number_of(m) for m in receiver.receive_many(99)] == list(range(11))
    with pytest.raises(FileNotFoundError):
        mm.Channel.open(tmp_path / "missing")
    with mm.Ring(10, path=tmp_path / "ring"):
        with pytest.raises(mm.CorruptError, match="no channel"):
            mm.Channel.open(tmp_path / "ring")
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
        with pytest.raises(PermissionError, match="belongs to user 12345"):
            mm.Channel.open(path)
    assert not [name for name in os.listdir("/dev/shm") if "mirrormap" in name]


# --- fork ------------------------------------------------------------------------------------------


def test_a_forked_child_does_not_hold_its_parent_s_places() -> None:
    with mm.Channel("16KiB") as channel, channel.sender() as sender, channel.receiver() as receiver:
        sender.send(body(0))
        held = receiver.receive()

        def child() -> None:
            for use in (lambda: sender.send(b""), lambda: sender.reserve(1), channel.sender):
                with pytest.raises(mm.BusyError):
                    use()
            for use in (receiver.receive, lambda: next(receiver)):
                with pytest.raises(mm.ClosedError, match="parent"):
                    use()
            assert number_of(held) == 0
            held.release()
            receiver.close()
            sender.close()
            with channel.receiver("oldest") as own:
                assert number_of(own.receive()) == 0
            channel.close()

        assert forked(child) == 0
        with pytest.raises(TimeoutError):  # still pinned
            for _ in range(100):
                sender.send(bytes(1000), timeout=0)
        held.release()
        sender.send(bytes(1000), timeout=0)


# --- every message -----------------------------------------------------------------------------------


def stream(channel: mm.Channel, total: int, longest: int) -> None:
    rng = random.Random(total)
    with channel.sender() as sender:
        for number in range(total):
            start = rng.randrange(1 << 16)
            rest = POOL[
                start : start + (rng.randrange(longest) if rng.random() < 0.01 else rng.randrange(300))
            ]
            sender.send(struct.pack("<QI", number, zlib.crc32(rest, number)) + rest, timeout=PATIENCE_S)
            if channel.overwrite and rng.random() < 0.01:
                time.sleep(1e-4)  # lets the receiver keep up now and then


@pytest.mark.parametrize("overwrite", [True, False])
def test_every_message_between_two_processes_is_seen_or_counted(overwrite: bool, soak: bool) -> None:
    """Random lengths up to half the capacity, checksums; a million of them in a soak."""
    seen, missed = pass_messages(1_000_000 if soak else scaled(100_000, 5000), overwrite=overwrite)
    print(f"{'overwriting' if overwrite else 'lossless'}: {seen:,} seen, {missed:,} missed, none torn")


def pass_messages(total: int, *, overwrite: bool) -> tuple[int, int]:
    seen = missed = 0
    with mm.Channel("256KiB", overwrite=overwrite) as channel, channel.receiver() as receiver:
        child = started(stream, channel, total, 1 << 17)
        while seen + missed < total:
            try:
                with receiver.receive(PATIENCE_S) as message:
                    data = bytes(message)
                    if message.intact:
                        number, checksum = struct.unpack_from("<QI", data)
                        assert number == message.sequence == seen + missed
                        assert zlib.crc32(data[12:], number) == checksum
                seen += 1
            except mm.Overrun as overrun:
                assert overwrite
                missed += overrun.missed
        with pytest.raises(mm.SenderGone):
            receiver.receive(PATIENCE_S)
        ended(child)
    assert seen + missed == total
    return seen, missed


def test_64_receivers_in_processes() -> None:
    with mm.Channel("1MiB") as channel, FORK.Pool(8, drain_numbers_init, (channel,)) as pool:
        results = [pool.apply_async(drain_numbers) for _ in range(8)]
        while len(channel.peers()) < 64:
            time.sleep(0.01)
        produce(channel, 0, 200)
        assert [result.get(PATIENCE_S) for result in results] == [[sum(range(200))] * 8] * 8


_inherited: mm.Channel | None = None


def drain_numbers_init(channel: mm.Channel) -> None:
    global _inherited
    _inherited = channel


def drain_numbers() -> list[int]:
    assert _inherited is not None
    receivers = [_inherited.receiver() for _ in range(8)]
    sums = [0] * 8
    for _ in range(200):
        for index, receiver in enumerate(receivers):
            with receiver.receive(PATIENCE_S) as message:
                sums[index] += number_of(message)
    for receiver in receivers:
        receiver.close()
    return sums


# --- waiting ---------------------------------------------------------------------------------------


@pytest.mark.timing
def test_a_waiting_receiver_burns_no_processor() -> None:
    with mm.Channel("64KiB") as channel, channel.receiver() as receiver:
        before = resource.getrusage(resource.RUSAGE_SELF)
        with pytest.raises(TimeoutError):
            receiver.receive(2)
        after = resource.getrusage(resource.RUSAGE_SELF)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= 0.01


def test_signals_interrupt_a_wait() -> None:
    class AlarmError(Exception):
        pass

    def ring_the_bell(*_: object) -> None:
        raise AlarmError

    before = signal.signal(signal.SIGALRM, ring_the_bell)
    try:
        with (
            mm.Channel("16KiB", max_inflight=1) as channel,
            channel.sender() as sender,
            channel.receiver() as receiver,
        ):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(AlarmError):
                receiver.receive()
            sender.send(b"1")
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(AlarmError):
                sender.send(b"2")
            receiver.receive().release()
            sender.send(b"3", timeout=0)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_ctrl_c_ends_a_wait() -> None:
    output = succeeds(
        """
import mirrormap as mm, os, signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born ignoring it
with mm.Channel("64KiB") as channel, channel.receiver() as receiver:
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        receiver.receive()
    except KeyboardInterrupt:
        print("interrupted")
"""
    )
    assert output == "interrupted\n"
