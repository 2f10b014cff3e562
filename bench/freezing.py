"""A snapshot against a fork()ed child and a copy, of as much memory in 4 KiB pages, each in a process of its own."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
from children import family

import mirrormap as mm

HERE = Path(__file__).parent
TOUCHED_NBYTES = 64 << 20
MADV_NOHUGEPAGE = 15
Array = np.ndarray[Any, Any]


def built(folder: str) -> str:
    """The C writer."""
    target = f"{folder}/c_writer.so"
    command = ["cc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, str(HERE / "c_writer.c"), "-o", target], check=True)
    return target


class Writer:
    """A thread that stores to page after page without the interpreter's lock, and its longest pause."""

    def __init__(self, library: ctypes.CDLL, array: Array) -> None:
        library.c_pause.restype = ctypes.c_double
        library.c_pause.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
        self.stop = ctypes.c_int(0)
        self.pause = 0.0
        address, pages = _address(array), array.nbytes // mmap.PAGESIZE

        def work() -> None:
            self.pause = library.c_pause(address, pages, mmap.PAGESIZE, ctypes.addressof(self.stop))

        self.thread = threading.Thread(target=work)

    def __enter__(self) -> Self:
        self.thread.start()
        time.sleep(0.01)
        return self

    def __exit__(self, *unused: object) -> None:
        time.sleep(0.002)
        self.stop.value = 1
        self.thread.join()


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def private(nbytes: int) -> Array:
    """What users' arrays lie in when they are forked: anonymous memory, here in 4 KiB pages."""
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(MADV_NOHUGEPAGE)
    array = np.frombuffer(pages, "u1")
    array[:] = 1
    return array


def _touch(library: ctypes.CDLL, array: Array) -> float:
    """Seconds of processor time for the first store to a page since the cut."""
    library.c_touch.restype = ctypes.c_double
    library.c_touch.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    seconds: float = library.c_touch(_address(array), array.nbytes, mmap.PAGESIZE)
    return seconds / (array.nbytes // mmap.PAGESIZE)


def _forked() -> Callable[[], None]:
    """A child that holds the moment until it is let go."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)

    def end() -> None:
        os.close(writing)
        os.waitpid(child, 0)

    return end


def _snapshot(array: Array) -> Callable[[], None]:
    taken = mm.snapshot(array, copy=False)
    taken.__enter__()
    assert taken.route == "moved"
    return taken.close


def _copied(array: Array) -> Callable[[], None]:
    kept = array.copy()
    return lambda: kept.resize(0, refcheck=False)


def _times(library: ctypes.CDLL, array: Array, cut: Callable[[], Callable[[], None]]) -> dict[str, float]:
    """One cut under a writer, one alone with a look at the memory, and one store to many pages after it."""
    with Writer(library, array) as quiet:
        time.sleep(0.02)
    with Writer(library, array) as writer:
        end = cut()
    end()
    tables, before = family("VmPTE"), family("Pss")
    start = time.perf_counter()
    end = cut()
    seconds = time.perf_counter() - start
    more = family("VmPTE") - tables, family("Pss") - before
    _touch(library, array[: min(TOUCHED_NBYTES, array.nbytes // 2)])
    start = time.perf_counter()
    end()
    return {
        "cut": seconds, "longest pause": writer.pause, "pause without a cut": quiet.pause,
        "end": time.perf_counter() - start,
        "page tables": more[0], "memory": more[1],
    }  # fmt: skip


def freeze(name: str, nbytes: int, library: str, turns: int) -> dict[str, float]:
    """To be run in a process of its own. Medians of seconds, and of bytes that the cut takes.

    Of the longest pauses the least: what is in all of them is the cut's, the rest the machine's.
    """
    loaded = ctypes.CDLL(library)
    array = mm.full(nbytes, 1, "u1") if name == "snapshot" else private(nbytes)
    cuts: dict[str, Callable[[], Callable[[], None]]] = {
        "snapshot": lambda: _snapshot(array),
        "fork": _forked,
        "copy": lambda: _copied(array),
    }
    each = [_times(loaded, array, cuts[name]) for _ in range(turns)]
    return {
        figure: float((np.min if "pause" in figure else np.median)([one[figure] for one in each]))
        for figure in each[0]
    }


def first_stores(library: str, turns: int) -> dict[str, float]:
    """To be run in a process of its own, where both take turns. Medians: seconds a page."""
    loaded = ctypes.CDLL(library)
    live, users = mm.full(TOUCHED_NBYTES, 1, "u1"), private(TOUCHED_NBYTES)
    cuts: dict[str, tuple[Array, Callable[[], Callable[[], None]]]] = {
        "snapshot": (live, lambda: _snapshot(live)),
        "fork": (users, _forked),
    }
    found: dict[str, list[float]] = {name: [] for name in cuts}
    for _ in range(turns):
        for name, (array, cut) in cuts.items():
            end = cut()
            found[name].append(_touch(loaded, array))
            end()
    return {name: float(np.median(each)) for name, each in found.items()}
