"""One process of the soak: act after act, each from a seed of its own, and after each a look at what it left.

A line of JSON to stdout as each begins and ends; the conductor (run.py) reads them.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / part) for part in ("", "unit", "model")]

import acts_arrays as arrays  # noqa: E402
import acts_heap as heaps  # noqa: E402
import acts_memory as memory  # noqa: E402
import acts_models as models  # noqa: E402
import acts_streams as streams  # noqa: E402
from stage import Stage, die_with_parent  # noqa: E402

from support import grown_since, held, libc, warm_up  # noqa: E402

ANYWHERE = [
    memory.views, memory.remapped, memory.foreign, memory.frozen, memory.handed_over,
    arrays.rows, arrays.collected, arrays.allocated, arrays.forked, streams.squeezed,
]  # fmt: skip
CALM = [
    *ANYWHERE,
    arrays.rows_killed,
    streams.ring_killed, streams.ring_passed, streams.ring_damaged,
    streams.channel_killed, streams.group_killed, streams.channel_passed, streams.channel_damaged,
    streams.channel_scribbled_over, streams.awaited, streams.hammered, streams.left_in_files,
    *heaps.ACTS,
    models.model_pages, models.model_ring, models.model_channel, models.model_growable, models.model_heap, models.model_records,
]  # fmt: skip
HUGE = [memory.views, arrays.rows, streams.squeezed]
ROLES: dict[str, list[Callable[[Stage], None]]] = {"calm": CALM, "pressed": ANYWHERE, "huge": HUGE}

signals = 0


def count(number: int, frame: Any) -> None:
    """What a storm of signals does: it interrupts whatever waits, and that goes on."""
    global signals
    signals += 1


def report(**what: Any) -> None:
    """One line that is there as a whole or not at all."""
    os.write(1, (json.dumps(what) + "\n").encode())


def prepared(options: argparse.Namespace) -> None:
    """Start what stays for the life of the process before anything is counted."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2, all_threads=True, chain=False)
    for number in (signal.SIGUSR1, signal.SIGALRM):
        signal.signal(number, count)
    libc.mallopt(-8, 1)  # one heap for all threads: another looks like a leak
    resource_tracker.ensure_running()
    warm_up()
    die_with_parent()
    options.folder.mkdir(parents=True, exist_ok=True)
    gc.collect()
    gc.freeze()


def left(before: dict[str, int], folder: Path) -> dict[str, Any]:
    """What an act left behind, as (before, after); ends within a while are waited for."""
    grown: dict[str, Any] = dict(grown_since(before, 5))
    names = sorted(path.name for path in folder.iterdir())
    return grown | ({"names": names} if names else {})


def performed(options: argparse.Namespace, episode: int) -> None:
    """One act, from its seed alone. Raises: whatever it found."""
    chance = random.Random(f"{options.seed}/{options.role}/{options.number}/{options.life}/{episode}")
    act = chance.choice(ROLES[options.role])
    report(begun=episode, act=act.__name__)
    stage = Stage(chance, options.folder, pressed=options.role == "pressed", huge=options.role == "huge")
    before = held()
    try:
        act(stage)
    except (MemoryError, OSError) as error:
        if not stage.is_refusal(error):
            raise
        stage.refused += 1
    grown = left(before, options.folder)
    assert not grown, f"left behind (before, after): {grown}"
    report(ended=episode, act=act.__name__, refused=stage.refused, signals=signals)


def episodes(options: argparse.Namespace) -> Iterator[int]:
    """Their numbers: one, or all until the time is over."""
    until = time.monotonic() + options.seconds
    number = 0 if options.episode is None else options.episode
    while options.episode is not None or time.monotonic() < until:
        yield number
        if options.episode is not None:
            return
        number += 1


def main() -> int:
    """Act until the time is over. Returns: 0; an exception ends it otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--role", choices=list(ROLES), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    for name in ("--seed", "--number", "--life"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--episode", type=int)
    options = parser.parse_args()
    prepared(options)
    for episode in episodes(options):
        performed(options, episode)
    return 0


if __name__ == "__main__":
    sys.exit(main())
