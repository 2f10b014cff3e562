"""An array made and touched: under numpy_allocator and without it, each in a process of its own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import numpy as np

import mirrormap as mm

CONTENDERS = ("NumPy", "mirrormap", "mirrormap, thp", "NumPy, zeros", "mirrormap, zeros")


def _seconds(nbytes: int, zeros: bool) -> float:
    start = time.perf_counter()
    array = np.zeros(nbytes, "u1") if zeros else np.empty(nbytes, "u1")
    array.fill(1)
    return time.perf_counter() - start


@contextlib.contextmanager
def _under(name: str) -> Iterator[mm.Allocator | None]:
    if name.startswith("NumPy"):
        yield None
        return
    with mm.numpy_allocator(page_size="thp" if "thp" in name else None) as allocator:
        yield allocator
        allocator.trim()


def allocate(nbytes: int, turns: int) -> dict[str, float]:
    """To be run in a process of its own, with MALLOC_MMAP_THRESHOLD_ set, so that NumPy's is cold too.

    Returns: median seconds by contender, cold; "again": warm, after one like it was freed. Turns are taken.
    """
    found: dict[str, list[float]] = {name: [] for name in CONTENDERS} | {"mirrormap, again": []}
    for _ in range(turns):
        for name in CONTENDERS:
            with _under(name) as allocator:
                if allocator is not None:
                    allocator.trim()
                found[name].append(_seconds(nbytes, "zeros" in name))
                if name == "mirrormap":
                    found["mirrormap, again"].append(_seconds(nbytes, False))
    return {name: float(np.median(each)) for name, each in found.items()}
