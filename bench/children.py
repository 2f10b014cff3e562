"""Work in a fresh process: how long it took, and how much memory the process needed at its peak."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

PATIENCE_S = 300


class Cost(NamedTuple):
    """Seconds on the clock and of the processor, and bytes above what the process had before.

    Of those RSS at its peak, and PSS with the result: RSS counts pages once for each view, PSS once.
    """

    seconds: float
    processor: float
    peak_nbytes: int
    held_nbytes: int


def memory(field: str, process: str = "self") -> int:
    """Bytes of a line of /proc/PID/status, such as VmHWM, or of smaps_rollup, such as Pss."""
    name = "smaps_rollup" if field == "Pss" else "status"
    for line in Path("/proc", process, name).read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise KeyError(field)


def family(field: str) -> int:
    """Of this process and its children."""
    lists = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    return memory(field) + sum(memory(field, child) for children in lists for child in children)


def cost(work: Callable[..., Any], *arguments: Any) -> Cost:
    """Of this process. What the work returns lives until its memory was counted."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, held = memory("VmRSS"), memory("Pss")
    start, spent = time.perf_counter(), time.process_time()
    result = work(*arguments)
    seconds, spent = time.perf_counter() - start, time.process_time() - spent
    found = Cost(seconds, spent, memory("VmHWM") - before, memory("Pss") - held)
    del result
    return found


def _send(connection: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    connection.send(work(*arguments))


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work(*arguments)` returns in a process of its own. Raises: RuntimeError if it dies."""
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(its, work, arguments))
    child.start()
    its.close()
    try:
        if not mine.poll(PATIENCE_S):
            raise RuntimeError(f"{work.__name__} took longer than {PATIENCE_S} s")
        return mine.recv()
    except EOFError:
        raise RuntimeError(f"{work.__name__}{arguments} died; its error stands above") from None
    finally:
        child.terminate()
        child.join()


def one(script: str, *arguments: str) -> Any:
    """What `script --one ARGUMENTS` prints, as JSON. Raises: RuntimeError with what it said."""
    command = [sys.executable, script, "--one", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)
