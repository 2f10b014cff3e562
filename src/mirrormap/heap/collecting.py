"""Who collects a heap: its calls, what is allocated, or a thread that sleeps until there is reason.

The heap's lock is the interpreter's. The thread holds it for one bounded step at a time and lets go of it
between two, so nobody waits longer than a step; while Python code runs elsewhere without a pause, allocation
pays for the collection too.
"""

from __future__ import annotations

import atexit
import os
import select
import threading
import weakref
from typing import Final, Literal

from mirrormap.errors import ClosedError, MapError, MirrorError
from mirrormap.kernel import HeapBase

__all__ = ["MODES", "STEP_NS", "Mode", "start"]

Mode = Literal["background", "incremental", "manual"]
MODES: Final = {"manual": 0, "incremental": 1, "background": 2}
STEP_NS: Final = 120_000
"""What a step begun goes on for; the piece of work that it ends with takes up to as long again."""

_bells: Final[dict[threading.Thread, int]] = {}
_ended = threading.Event()


def start(heap: HeapBase, stress: int) -> threading.Thread:
    """A thread that looks after the heap until it is closed or dropped, or the interpreter ends.

    It sleeps on an eventfd(2) which the heap rings. When it dies, every later call of the heap raises.
    Raises: MapError: no descriptor; RuntimeError: no thread.
    """
    try:
        bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except OSError as error:
        raise MapError(error.errno or 0, call="eventfd", label="heap") from None
    thread = threading.Thread(
        target=_look_after, args=(weakref.ref(heap), bell, stress), name="mirrormap heap", daemon=True
    )
    _bells[thread] = bell
    try:
        thread.start()
    except BaseException:
        if thread.is_alive():  # a signal came as it started: it ends with the heap, and closes the bell
            os.eventfd_write(bell, 1)
        else:
            del _bells[thread]
            os.close(bell)
        raise
    heap._pace(MODES["background"], bell, stress)
    return thread


def _look_after(there: weakref.ref[HeapBase], bell: int, stress: int) -> None:
    failure = "it was stopped"
    try:
        _tend(there, bell)
        failure = ""
    except BaseException as error:  # whatever it was, whoever uses the heap is told
        failure = repr(error)
    finally:
        heap = there()
        if heap is not None and not heap.closed:
            heap._pace(MODES["incremental"], -1, stress)
            if failure:
                heap._fail((MirrorError, f"the thread that collects this heap died: {failure}"))
        del heap
        _bells.pop(threading.current_thread(), None)
        os.close(bell)


def _tend(there: weakref.ref[HeapBase], bell: int) -> None:
    poll = select.poll()
    poll.register(bell, select.POLLIN)
    pause = -1
    while not _ended.is_set():
        if poll.poll(pause):
            os.eventfd_read(bell)
        heap = there()
        if heap is None or heap.closed:
            return
        try:
            pause = heap._tend(STEP_NS)
        except ClosedError:
            return
        del heap  # it may be dropped while this sleeps


def _end() -> None:
    """At exit, while Python code still runs: no thread is left to be torn down in the middle of something."""
    _ended.set()
    for thread, bell in list(_bells.items()):
        os.eventfd_write(bell, 1)
        thread.join(5)


def _forget() -> None:
    """In a forked child: the threads are not there, and their bells are the parent's too."""
    for bell in _bells.values():
        os.close(bell)
    _bells.clear()


atexit.register(_end)
os.register_at_fork(after_in_child=_forget)
