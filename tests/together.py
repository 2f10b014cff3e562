"""Eight threads at the same work, changing places as often as they can."""

from __future__ import annotations

import gc
import random
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from support import in_threads, scaled

THREADS = 8
ROUNDS = scaled(120, 20)


@pytest.fixture(autouse=True)
def often() -> Iterator[None]:
    """Let threads change places every few microseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)
    gc.collect()


def together(work: Callable[[random.Random, int], Any], *, rounds: int = ROUNDS) -> None:
    """Run work(random, number of the thread) in eight threads; raise what any of them raised."""
    start = threading.Barrier(THREADS)

    def body(number: int) -> None:
        chance = random.Random(number)
        start.wait()
        for _ in range(rounds):
            work(chance, number)

    in_threads(partial(body, number) for number in range(THREADS))
