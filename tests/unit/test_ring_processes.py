"""Ring between processes: handed over, by path, by descriptor; death of either side; headers that lie."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import random
import resource
import signal
import stat
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mirrormap as mm
from kin import METHODS, killed, no_child_is_left, started
from mirrormap.cursors import CONTROL_NBYTES, GEOMETRY_NBYTES
from support import PAGE, PATIENCE_S, forked, scaled

pytestmark = pytest.mark.leaks_by_nature  # the start methods keep a server process and its pipes
__all__ = ["no_child_is_left"]  # a fixture

SPAWN = multiprocessing.get_context("spawn")


def produce(ring: mm.Ring, first: int, count: int, block: int) -> None:
    """Items that are their own index."""
    for at in range(first, first + count, block):
        ring.extend(np.arange(at, min(at + block, first + count), dtype="i8"), timeout=PATIENCE_S)
    ring.close()


def produce_for_ever(ring: mm.Ring, seed: int) -> None:
    rng = random.Random(seed)
    while True:
        at = ring.written
        count = rng.choice([1, 7, 100, ring.capacity // 3])
        if rng.random() < 0.5:
            place = ring.reserve(count, timeout=PATIENCE_S)
            place[:] = np.arange(at, at + count)
            ring.commit()
        else:
            ring.extend(np.arange(at, at + count, dtype="i8"), timeout=PATIENCE_S)


def consume_for_ever(ring: mm.Ring) -> None:
    with ring.reader("oldest") as reader:
        while True:
            with contextlib.suppress(mm.Overrun, mm.WriterGone):
                assert (np.diff(reader.read(5, copy=True)) == 1).all()


# --- the same ring ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_child_writes_what_the_parent_reads(method: str) -> None:
    with mm.Ring(1000, "i8", overwrite=False) as ring, ring.reader() as reader:
        child = started(produce, ring, 0, 10_000, 77, context=multiprocessing.get_context(method))
        for at in range(0, 10_000, 100):
            assert np.array_equal(reader.read(100, timeout=PATIENCE_S), np.arange(at, at + 100))
        with pytest.raises(mm.WriterGone, match="0 items are left"):
            reader.read(1, timeout=PATIENCE_S)
        child.join(PATIENCE_S)
        assert child.exitcode == 0
        child.close()


def test_by_path_with_mode_0600(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    with mm.Ring(100, "i4", 2, path=path) as ring:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        ring.extend(np.arange(20).reshape(10, 2))
        with pytest.raises(FileExistsError):
            mm.Ring(100, path=path)
        with mm.Ring.open(path) as other:
            assert other.latest(2).tolist() == [[16, 17], [18, 19]]
            assert (other.dtype, other.shape, other.overwrite) == (ring.dtype, ring.shape, True)
    with mm.Ring.open(path) as again:
        assert again.written == 10
        again.append([1, 2])
    with mm.Ring.open(path) as again:
        assert again.latest(1).tolist() == [[1, 2]]
    with pytest.raises(FileNotFoundError):
        mm.Ring.open(tmp_path / "missing")
    with pytest.raises(ValueError, match="page_size"):
        mm.Ring(100, path=tmp_path / "other", page_size="2MiB")


def test_pickled_and_by_descriptor() -> None:
    with mm.Ring(100, [("a", "i4"), ("b", "f8")]) as ring:
        ring.append((1, 2.5))
        with pickle.loads(pickle.dumps(ring)) as other, mm.Ring.from_fd(ring.fileno()) as third:
            assert other.latest(1)["b"] == third.latest(1)["b"] == 2.5
            assert not os.get_inheritable(other.fileno())
        with ring.reader() as reader, pytest.raises(TypeError, match="send the Ring"):
            pickle.dumps(reader)


def stream(ring: mm.Ring, total: int) -> None:
    """Items that are their own index, in blocks of 1 to half the ring."""
    rng = random.Random(total)
    numbers = np.arange(ring.capacity // 2)
    at = 0
    with ring:
        while at < total:
            count = min(total - at, rng.randint(1, len(numbers)))
            np.add(numbers[:count], at, out=ring.reserve(count, timeout=PATIENCE_S))
            ring.commit()
            at += count
            if ring.overwrite and rng.random() < 0.3:
                time.sleep(1e-5)  # lets the reader keep up now and then


@pytest.mark.parametrize("overwrite", [True, False])
def test_every_item_between_two_processes_is_seen_or_counted(overwrite: bool, soak: bool) -> None:
    """10^9 items (10^10 in a soak): lossless, none is lost or torn; overwriting, none is torn and every missed one counted."""
    total = 10**10 if soak else scaled(10**9, 10**6)
    seen, missed = pass_items(random.Random(5), total, overwrite=overwrite)
    print(f"{'overwriting' if overwrite else 'lossless'}: {seen:,} seen, {missed:,} missed")


def pass_items(rng: random.Random, total: int, *, overwrite: bool) -> tuple[int, int]:
    seen = missed = 0
    with mm.Ring(1 << 16, "i8", overwrite=overwrite) as ring, ring.reader() as reader:
        writer = started(stream, ring, total)
        numbers = np.arange(ring.capacity // 2)
        while seen + missed < total:
            at = reader.position
            count = min(rng.randint(1, len(numbers)), total - at)
            assert at == seen + missed
            try:
                block = reader.peek(count, timeout=PATIENCE_S)
                same = np.array_equal(block - at, numbers[:count])
                if ring.valid(at):
                    assert same
                    reader.advance(count)
                    seen += count
            except mm.Overrun as overrun:
                assert overwrite
                missed += overrun.missed
        with pytest.raises(mm.WriterGone):
            reader.read(1, timeout=PATIENCE_S)
        writer.join(PATIENCE_S)
        assert writer.exitcode == 0
        writer.close()
    assert seen + missed == total
    assert seen
    return seen, missed


# --- fork ------------------------------------------------------------------------------------------


def test_a_forked_child_does_not_hold_its_parent_s_places() -> None:
    with mm.Ring(1000, "i4", overwrite=False) as ring, ring.reader() as reader:
        ring.extend(np.arange(10))

        def child() -> None:
            assert ring.latest(2).tolist() == [8, 9]
            for use in (lambda: ring.append(1), lambda: ring.reserve(1)):
                with pytest.raises(mm.BusyError):
                    use()
            with pytest.raises(mm.ClosedError, match="parent"):
                reader.read(1)
            reader.close()
            with ring.reader("oldest") as own:
                assert own.read(3).tolist() == [0, 1, 2]
            ring.close()

        assert forked(child) == 0
        ring.append(10)
        assert reader.read(11).tolist() == list(range(11))


# --- death -------------------------------------------------------------------------------------------


def test_readers_learn_that_the_writer_was_killed_once_they_have_drained() -> None:
    with mm.Ring(1 << 16, "i8", overwrite=False) as ring, ring.reader() as reader:
        writer = started(produce_for_ever, ring, 1)
        assert np.array_equal(reader.read(1000, timeout=PATIENCE_S), np.arange(1000))
        killed(writer)
        with pytest.raises(mm.WriterGone):
            while True:
                at = reader.position
                block = reader.read(max(1, reader.available), timeout=PATIENCE_S)
                assert np.array_equal(block, np.arange(at, at + len(block)))
        assert reader.position == ring.written
        ring.append(ring.written)  # a replacement goes on where the dead one left off
        assert reader.read(1, timeout=0)[0] == ring.written - 1


def test_a_dead_reader_holds_nobody_up() -> None:
    with mm.Ring(1000, "i8", overwrite=False) as ring:
        child = started(consume_for_ever, ring)
        limit = time.monotonic() + 30
        while not ring._owners()[2] and time.monotonic() < limit:
            time.sleep(0.005)
        os.kill(child.pid, signal.SIGSTOP)
        ring.extend(np.arange(900), timeout=PATIENCE_S)
        with pytest.raises(TimeoutError):
            ring.extend(np.arange(ring.capacity), timeout=0.05)
        killed(child)
        ring.extend(np.arange(ring.capacity), timeout=10)


def test_a_zombie_is_dead() -> None:
    with mm.Ring(1000, "i8") as ring:
        child = started(produce, ring, 0, 10, 10)
        limit = time.monotonic() + 30
        while "Z" not in Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2]:
            assert time.monotonic() < limit
            time.sleep(0.005)
        ring.append(1)
        child.join()
        child.close()


@pytest.mark.parametrize("overwrite", [True, False])
def test_kills_of_either_side_lose_nothing_that_was_committed(overwrite: bool, soak: bool) -> None:
    """Random blocks, random kill -9 of both sides, a replacement each time; 1,000 kills of a soak are for both ways."""
    kill_either_side(random.Random(overwrite), 500 if soak else scaled(25, 5), overwrite=overwrite)


def kill_either_side(rng: random.Random, rounds: int, *, overwrite: bool) -> None:
    with mm.Ring(5000, "i8", overwrite=overwrite) as ring, ring.reader() as reader:
        read = 0
        for number in range(rounds):
            writer = started(produce_for_ever, ring, number)
            consumer = started(consume_for_ever, ring)
            while not ring.written:  # a ring that never had a writer waits for its first
                assert writer.is_alive()
                time.sleep(0.001)
            until = time.monotonic() + rng.uniform(0.005, 0.05)
            alive = True
            while True:
                if alive and time.monotonic() > until:
                    killed(writer)
                    killed(consumer)
                    alive = False
                try:
                    at = reader.position
                    block = reader.read(max(1, min(reader.available, 500)), timeout=PATIENCE_S, copy=True)
                except mm.Overrun as overrun:
                    assert overwrite
                    assert reader.position == at + overrun.missed
                    continue
                except mm.WriterGone:
                    if alive:
                        continue  # the one before is gone, the new one has not begun
                    break
                assert np.array_equal(block, np.arange(at, at + len(block)))
                read += len(block)
            assert reader.position == ring.written
        assert read == ring.written or overwrite
        assert ring.written > 0


def test_what_was_committed_survives_kill_9_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    with mm.Ring(1 << 14, "i8", path=path) as ring:
        writer = started(produce_for_ever, ring, 3)
        while ring.written < 100_000:
            time.sleep(0.001)
        killed(writer)
    with mm.Ring.open(path) as again:
        first, last = again.oldest, again.written
        assert last >= 100_000
        assert np.array_equal(again.window(first, last), np.arange(first, last))


# --- waiting ---------------------------------------------------------------------------------------


@pytest.mark.timing
def test_a_waiting_reader_burns_no_processor() -> None:
    with mm.Ring(10) as ring, ring.reader() as reader:
        before = resource.getrusage(resource.RUSAGE_SELF)
        with pytest.raises(TimeoutError):
            reader.read(1, timeout=2)
        after = resource.getrusage(resource.RUSAGE_SELF)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= 0.01


def test_signals_interrupt_a_wait() -> None:
    class AlarmError(Exception):
        pass

    def ring_the_bell(*_: object) -> None:
        raise AlarmError

    before = signal.signal(signal.SIGALRM, ring_the_bell)
    try:
        with mm.Ring(10, overwrite=False) as ring, ring.reader() as reader:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(AlarmError):
                reader.read(1)
            ring.extend(np.zeros(ring.capacity))
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(AlarmError):
                ring.append(1)
            reader.advance(1)
            ring.append(1, timeout=0)
    finally:
        signal.signal(signal.SIGALRM, before)


# --- headers that lie --------------------------------------------------------------------------------


def opened(path: Path) -> None:
    """Open and use whatever is there: a damaged ring may refuse, and never crash."""
    try:
        ring = mm.Ring.open(path)
    except mm.CorruptError as error:
        assert str(error)
        return
    with ring:
        for use in (
            lambda: ring.latest(min(1, ring.capacity)),
            lambda: ring.window(ring.oldest, ring.written),
            lambda: ring.windows(3),
            lambda: ring.reader("oldest").close(),
            lambda: ring.append(np.zeros(ring.shape, ring.dtype)),
        ):
            with contextlib.suppress(mm.MirrorError, ValueError, IndexError, TypeError):
                use()


@pytest.mark.parametrize("overwrite", [True, False])
def test_headers_with_random_damage_never_crash_the_opener(
    tmp_path: Path, overwrite: bool, soak: bool
) -> None:
    damage_headers(
        random.Random(7), tmp_path / "ring", 50_000 if soak else scaled(1500, 150), overwrite=overwrite
    )


def damage_headers(rng: random.Random, path: Path, rounds: int, *, overwrite: bool) -> None:
    with mm.Ring(100, "i4", 3, path=path, overwrite=overwrite) as ring:
        ring.extend(np.arange(90).reshape(30, 3))
    sound = path.read_bytes()
    for _ in range(rounds):
        damaged = bytearray(sound)
        for _ in range(rng.choice([1, 1, 2, 8])):
            at = rng.choice(
                [rng.randrange(120), GEOMETRY_NBYTES + rng.randrange(64 * 6), rng.randrange(CONTROL_NBYTES)]
            )
            damaged[at] = rng.choice([0, 255, rng.randrange(256)])
        path.write_bytes(damaged)
        opened(path)


DATA_AT = -(-CONTROL_NBYTES // PAGE) * PAGE  # whole pages of control
HEAD = struct.Struct("<8sIIQQQII")


def forged(**changes: Any) -> bytes:
    """A header with the right checksum over the wrong things."""
    fields = {
        "offset": DATA_AT, "nbytes": PAGE, "item_nbytes": 4, "overwrite": 1, "text": b'["<i4", []]',
    } | changes  # fmt: skip
    text = fields.pop("text")
    body = (*fields.values(), len(text))
    checksum = zlib.crc32(HEAD.pack(b"", 1, 0, *body) + text)
    return HEAD.pack(b"mirrring", 1, checksum, *body) + text


@pytest.mark.parametrize(
    "changes",
    [
        {"text": b'["O", []]'}, {"text": b'["|O8", []]'}, {"text": b'["<i4", [2]]'}, {"text": b"["},
        {"text": b'{"a": 1}'}, {"text": b'["<i4", [0]]'}, {"text": b'["<i4", [-1]]'}, {"text": b"\xff"},
        {"text": b'["<i4", [1]]' * 9}, {"text": b"[" * 3000}, {"text": b'["nonsense", []]'}, {"text": b"5"},
        {"nbytes": 0}, {"nbytes": PAGE + 4}, {"nbytes": 1 << 62}, {"nbytes": 2 * PAGE}, {"item_nbytes": 0},
        {"item_nbytes": 8}, {"offset": 0}, {"offset": 2 * DATA_AT}, {"offset": DATA_AT + 1}, {"overwrite": 2},
    ],
    ids=str,
)  # fmt: skip
def test_forged_headers_are_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "ring"
    path.write_bytes(forged(**changes).ljust(DATA_AT + PAGE, b"\0"))
    with pytest.raises(mm.CorruptError):
        mm.Ring.open(path)
    path.write_bytes(forged().ljust(DATA_AT + PAGE, b"\0"))
    mm.Ring.open(path).close()


@pytest.mark.parametrize("nbytes", [0, 7, 100, GEOMETRY_NBYTES, CONTROL_NBYTES, CONTROL_NBYTES + PAGE - 1])
def test_truncated_files_are_named(tmp_path: Path, nbytes: int) -> None:
    path = tmp_path / "ring"
    mm.Ring(100, "i4", path=path).close()
    os.truncate(path, nbytes)
    with pytest.raises(mm.CorruptError):
        mm.Ring.open(path)
