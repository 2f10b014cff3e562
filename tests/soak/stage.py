"""What an act of the soak stands on: its luck, its folder, children that die with it, refusals that are counted."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import libc

FORK = multiprocessing.get_context("fork")
PR_SET_PDEATHSIG = 1
SHORT = (errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EFAULT, errno.EMFILE)


_forking = [0]


def confine() -> None:
    """In a child: end with the parent. A soak that kills one may leave no orphans."""
    libc.prctl(ctypes.c_int(PR_SET_PDEATHSIG), ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != _forking[0]:  # it died before we could ask for that
        os._exit(1)


def die_with_parent() -> None:
    """Confine whatever this process and its children fork."""
    _forking[0] = os.getpid()
    os.register_at_fork(before=lambda: _forking.__setitem__(0, os.getpid()), after_in_child=confine)


@dataclass
class Stage:
    """One episode's surroundings.

    Attributes: pressed: memory may be refused at any moment, which is no failure. huge: huge pages may be asked
        for, of a pool that others empty. refused: how often something was.
    """

    chance: random.Random
    folder: Path
    pressed: bool = False
    huge: bool = False
    refused: int = field(default=0)

    @contextlib.contextmanager
    def may_refuse(self) -> Generator[None]:
        """Around one operation that needs memory: it may say no, and then nothing has changed."""
        try:
            yield
        except (MemoryError, OSError) as error:
            if not self.is_refusal(error):
                raise
            self.refused += 1

    def is_refusal(self, error: BaseException) -> bool:
        """Is it what a full pool or cgroup makes of a sound operation?"""
        if not (self.pressed or self.huge):
            return False
        return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in SHORT)

    def page_size(self) -> str | None:
        """Ordinary pages, or huge ones where the pool may be used."""
        return "huge" if self.huge and self.chance.random() < 0.7 else None


@contextlib.contextmanager
def child(target: Callable[..., Any], *arguments: Any) -> Generator[Any]:
    """A forked process, killed at the end of the block if it still runs."""
    process = FORK.Process(target=target, args=arguments, daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join(60)
        process.close()
