"""Messages from one process to another: mirrormap.Channel, its peers and a ring in C, interleaved in one run.

The sender fills each message with its number, the receiver sums all of it and checks the sum. Medians of the runs.

A hypervisor may move two processors to where they share a cache or do not, every few seconds, and what passes between
them changes by a factor of four. So each run of a stream counts for the state that it began and ended in.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import itertools
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from messages_broadcast import Framed, Plain
from messages_report import APART, Found, plot, report
from packages import ABSENT, PACKAGES, FasterFifoBatches
from rich.console import Console
from rich.progress import Progress
from transports import MIB, STANDARD, Batches, InC, Limit, Messages, Records, RingRecords, Transport

HERE = Path(__file__).parent
PACE_SECONDS = 0.006
NEAR_NS = 250  # for a cache line to another processor and back, where they share a cache
LATE = 3  # medians
LAST = 1 << 40  # the numbers of the chunk after which nothing comes
Sums = list[Any]


class Size(NamedTuple):
    """Messages of one length. Attributes: chunk: how many between two looks at the clock."""

    nbytes: int
    slots: int
    chunk: int


OURS: dict[str, Any] = {"mirrormap": Messages}
LIMITS: dict[str, Any] = {"C ring, NumPy": Limit, "C ring, all in C": InC}
EVERYBODY: dict[str, Any] = {**OURS, **LIMITS, **STANDARD, **PACKAGES}
BATCHES: dict[str, Any] = {"mirrormap": Batches, "faster-fifo": FasterFifoBatches}
RECORDS: dict[str, Any] = {
    "mirrormap, Channel": Records,
    "mirrormap, Ring": RingRecords,
    "C ring, all in C": InC,
}
CELLS: dict[str, tuple[Size, dict[str, Any]]] = {
    "64 B": (Size(64, 1024, 512), EVERYBODY),
    "64 B, batches": (Size(64, 4096, 1024), BATCHES),
    "64 B, records in a window": (Size(64, 16384, 4096), RECORDS),
    "64 KiB": (Size(64 << 10, 64, 32), EVERYBODY),
    "1 MiB": (Size(MIB, 8, 4), EVERYBODY),
    "6 MiB": (Size(6 * MIB, 8, 1), EVERYBODY),
}
# name: (transport, microseconds that it spins; None: its default)
ROUNDS: dict[str, tuple[Any, float | None]] = {
    "mirrormap, spin_us=0": (Messages, 0.0),
    "mirrormap": (Messages, None),
    "mirrormap, spin_us=1000": (Messages, 1000.0),
    "C ring, all in C, asleep": (InC, 0.0),
    "C ring, NumPy, asleep": (Limit, 0.0),
    "C ring, NumPy, 1000 us": (Limit, 1000.0),
    **{name: (made, None) for name, made in {**STANDARD, **PACKAGES}.items() if name != "the same, 2 slots"},
}


# --- processes -------------------------------------------------------------------------------


def child(work: Callable[[], Any], answer: int, cpu: int | None, used: Transport) -> int:
    """Run it in a forked process, which writes what it returns as JSON and waits to be killed. Returns: its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
        gc.disable()
        try:
            found = work()
        except Exception:
            found = {"error": traceback.format_exc(limit=-1).strip().splitlines()[-1]}
        os.write(answer, json.dumps(found).encode() + b"\n")
        signal.pause()  # buffers and queues live on until the others have it all
    except SystemExit:
        used.leave()
    finally:
        os._exit(1)


def pair() -> list[int]:
    """Two processors."""
    return sorted(os.sched_getaffinity(0))[:2] * 2


def together(
    works: list[Callable[[], Any]],
    timeout: float,
    used: Transport,
    cpus: list[int] | None = None,
    count: int | None = None,
) -> list[Any]:
    """What the first `count` returned, every one in a process of its own. Raises: RuntimeError: one failed, or hangs."""
    pids, pipes = [], []
    for index, work in enumerate(works):
        reading, writing = os.pipe()
        pids.append(child(work, writing, cpus[index] if cpus else None, used))
        os.close(writing)
        pipes.append(reading)
    until = time.monotonic() + timeout
    try:
        return [answered(reading, until) for reading in reversed(pipes[:count])][::-1]
    finally:
        for pid, reading in zip(pids, pipes, strict=True):
            ended(pid)
            os.close(reading)


def ended(pid: int) -> None:
    """Let it clean up; kill it if it cannot."""
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + 0.5
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            break
        time.sleep(0.002)


def answered(reading: int, until: float) -> Any:
    text = b""
    while not text.endswith(b"\n"):
        ready, _, _ = select.select([reading], [], [], max(0.0, until - time.monotonic()))
        part = os.read(reading, 1 << 20) if ready else b""
        if not part:
            raise RuntimeError("a process died" if ready else "hangs")
        text += part
    found = json.loads(text)
    if isinstance(found, dict) and "error" in found:
        raise RuntimeError(found["error"])
    return found


class Gate:
    """Opens for the sender once so many receivers are there."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()

    def arrive(self) -> None:
        os.write(self.writing, b"r")

    def wait(self, count: int = 1) -> None:
        for _ in range(count):
            os.read(self.reading, 1)

    def close(self) -> None:
        os.close(self.reading)
        os.close(self.writing)


# --- throughput ------------------------------------------------------------------------------


def sent(transport: Transport, chunk: int, seconds: float, gate: Gate) -> Callable[[], Any]:
    def work() -> dict[str, float]:
        gate.wait()
        produce = transport.kept = transport.sender()
        number = 0
        until = time.perf_counter() + seconds
        used = time.process_time()
        while time.perf_counter() < until:
            produce(number, chunk)
            number += chunk
        spent = time.process_time() - used
        produce(LAST, chunk)
        return {"cpu": spent / number}

    return work


def received(transport: Transport, size: Size, warm: float, gate: Gate) -> Callable[[], Any]:
    def work() -> dict[str, float]:
        consume, first, begun, counted, wrong = transport.receiver(), 0, 0.0, 0, 0
        chunk, words = size.chunk, size.nbytes // 8
        numbers = np.arange(chunk, dtype="u8")
        gate.arrive()
        start = ended = time.perf_counter()
        while True:
            sums = np.asarray(consume(chunk), "u8")
            if sums[0] == LAST * words:
                break
            ended = time.perf_counter()
            wrong += int(np.count_nonzero(sums != (numbers + first) * words))
            first += chunk
            if not begun and ended - start >= warm:
                begun, counted = ended, first
        if first == counted or not begun:
            raise RuntimeError("too slow to be timed")
        return {"rate": (first - counted) / (ended - begun), "wrong": wrong}

    return work


def run(made: Any, size: Size, seconds: float) -> dict[str, float]:
    """Messages per second, and the sender's CPU seconds a message."""
    transport, gate = made(size.nbytes, size.slots), Gate()
    try:
        works = [sent(transport, size.chunk, seconds, gate), received(transport, size, seconds / 4, gate)]
        sender, receiver = together(works, 20 * seconds + 5, transport)
    finally:
        transport.close()
        gate.close()
    if receiver["wrong"]:
        raise RuntimeError(f"{receiver['wrong']} messages were lost or torn")
    return {"rate": receiver["rate"], "cpu": sender["cpu"]}


class Both(Transport):
    """There and back."""

    def __init__(self, *ways: Transport) -> None:
        self.ways = ways

    def leave(self) -> None:
        for way in self.ways:
            way.leave()


# --- round trips -----------------------------------------------------------------------------


def rounds(made: Any, spin_us: float | None, seconds: float) -> dict[str, float]:
    """Microseconds from a message to its answer, 64 bytes filled and summed both ways, a process on each core."""
    there, back, gate, other = made(64, 16, spin_us), made(64, 16, spin_us), Gate(), Gate()

    def ask() -> dict[str, float]:
        consume = back.receiver()
        other.arrive()
        gate.wait()
        produce, times, clock = there.sender(), [], time.perf_counter_ns
        until = clock() + int(seconds * 1e9)
        number = 0
        while (start := clock()) < until:
            produce(number, 1)
            if consume(1)[0] != number * 8:
                raise RuntimeError("a wrong answer")
            times.append(clock() - start)
            number += 1
        sample = np.array(times[len(times) // 10 :]) / 1e3
        found = {f"p{q}": float(np.percentile(sample, q)) for q in (50, 99, 99.9)}
        late = np.count_nonzero(sample > LATE * found["p50"])
        return {**found, "late": float(late / sample.sum() * 1e6)}

    def reply() -> None:
        consume = there.receiver()
        gate.arrive()
        other.wait()
        produce = back.sender()
        while True:
            produce(int(consume(1)[0]) // 8, 1)

    try:
        return together([ask, reply], 10 * seconds + 5, Both(there, back), pair(), 1)[0]
    finally:
        for each in (there, back, gate, other):
            each.close()


def are_near() -> bool:
    """Do two processors share a cache just now?"""
    first, second, *_ = pair()
    line: Callable[[int, int], float] = importlib.import_module("c_messages").line
    return first == second or line(first, second) < NEAR_NS


# --- several receivers, and none that has anything to do -------------------------------------


def broadcast(receivers: int, seconds: float, *, plain: bool = False) -> dict[str, float]:
    """The sender's CPU microseconds for a message of 6 MiB, one every PACE_SECONDS, so that nobody has to wait: all of
    them, and those besides filling it. Plain: through memory that all map, told by a byte in a pipe each."""
    gate = Gate()
    stream: Plain | Framed = Plain(6 * MIB, receivers) if plain else Framed(6 * MIB)

    def send() -> dict[str, float]:
        gate.wait(receivers)
        sent, until, number = stream.sender(), time.perf_counter() + seconds, 0
        costs = []
        while time.perf_counter() < until:
            costs.append(sent(number))
            number += 1
            time.sleep(PACE_SECONDS)
        whole, besides = np.median(costs, 0) * 1e6
        return {"cpu": float(whole), "besides": float(besides)}

    def receive(index: int) -> None:
        taken = stream.receiver(index)
        gate.arrive()
        while True:
            taken()

    try:
        works = [send, *(partial(receive, index) for index in range(receivers))]
        return dict(together(works, 10 * seconds + 5, Transport(0, 0), count=1)[0])
    finally:
        stream.close()
        gate.close()


def idle(seconds: float) -> float:
    """CPU seconds of a receiver to which nothing comes, its first wait left out."""
    transport = Messages(64, 16)
    with transport.channel as channel, channel.sender():

        def wait() -> float:
            receiver = channel.receiver()
            for length in (0.2, seconds):
                before = resource.getrusage(resource.RUSAGE_SELF)
                with contextlib.suppress(TimeoutError):
                    receiver.receive(timeout=length)
            after = resource.getrusage(resource.RUSAGE_SELF)
            return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

        return float(together([wait], seconds + 10, transport)[0])


# --- all of it -------------------------------------------------------------------------------


class Turn(NamedTuple):
    """One run of one contender. Attributes: cell: the row it belongs to."""

    cell: str
    name: str
    work: Callable[[], Any]


def turns(options: argparse.Namespace) -> list[Turn]:
    """Every run, in random order within a round of all of them."""
    seconds, found = (0.15, []) if options.quick else (0.4, [])
    for _ in range(1 if options.quick else options.turns):
        once = []
        for cell, (size, contenders) in CELLS.items():
            for name, made in contenders.items():
                once.append(Turn(cell, name, partial(run, made, size, seconds)))
        for name, (made, spin_us) in ROUNDS.items():
            once.append(Turn("round trip", name, partial(rounds, made, spin_us, seconds)))
        for count, plain in itertools.product((1, 2, 4), (False, True)):
            name = f"{count}{', plain memory' if plain else ''}"
            once.append(Turn("broadcast", name, partial(broadcast, count, seconds, plain=plain)))
        once.append(Turn("idle", "mirrormap", partial(idle, 2.0)))
        wanted = [turn for turn in once if options.only is None or options.only in f"{turn.cell}/{turn.name}"]
        random.shuffle(wanted)
        found += wanted
    return found


def measured(options: argparse.Namespace, console: Console) -> tuple[Found, dict[str, str]]:
    """What every run gave, and why some contenders are missing."""
    found: Found = {}
    failed: dict[str, str] = {f"any/{name}": why for name, why in ABSENT.items()}
    with Progress(console=console, auto_refresh=False) as progress:
        for turn in progress.track(turns(options), description="messages"):
            progress.refresh()
            key = f"{turn.cell}/{turn.name}"
            if key in failed:
                continue
            try:
                cell, near = turn.cell, are_near()
                got = turn.work()
                if cell in CELLS:
                    if are_near() != near:
                        continue
                    cell += "" if near else APART
                found.setdefault(cell, {}).setdefault(turn.name, []).append(got)
            except Exception as error:
                failed[key] = f"{type(error).__name__}: {error}"
    return found, failed


def compiled(folder: str) -> None:
    """The ring in C, to be imported."""
    command = ["cc", "-std=gnu11", "-O3", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    includes = [f"-isystem{path}" for path in (sysconfig.get_path("include"), np.get_include())]
    target = f"{folder}/c_messages.so"
    subprocess.run([*command, *includes, str(HERE / "c_messages.c"), "-o", target], check=True)
    sys.path.insert(0, folder)


def main() -> int:
    """Run everything. Exit status 0 unless something of ours could not be run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short turn: does it run?")
    parser.add_argument("--turns", type=int, default=3, help="runs of each contender; the median counts")
    parser.add_argument("--only", help="rows and contenders with this in 'row/contender'")
    options = parser.parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        compiled(folder)
        found, failed = measured(options, console)
    sizes = {cell: size.nbytes for cell, (size, _) in CELLS.items()}
    medians = report(found, failed, sizes, console)
    if options.only is None:
        results = HERE / "results"
        results.mkdir(exist_ok=True)
        plot(medians, sizes, LIMITS, results)
        (results / "messages.json").write_text(json.dumps({"medians": medians, "left out": failed}, indent=1))
    return int(any("mirrormap" in name for name in failed))


if __name__ == "__main__":
    sys.exit(main())
