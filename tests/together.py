"""Eight threads at the same work, changing places as often as they can."""

from __future__ import annotations

import gc
import random
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support import scaled

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
    failures: list[BaseException] = []
    start = threading.Barrier(THREADS)

    def body(number: int) -> None:
        chance = random.Random(number)
        start.wait()
        try:
            for _ in range(rounds):
                work(chance, number)
        except BaseException as error:
            error.add_note(traceback.format_exc())  # a traceback itself would hold what is counted
            failures.append(error.with_traceback(None))

    threads = [threading.Thread(target=body, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
