"""Descriptors on their way to another process, as part of a pickle."""

from __future__ import annotations

import multiprocessing.context as context
import multiprocessing.reduction as reduction
import multiprocessing.util as util
import os
from typing import Any

from mirrormap import kernel

__all__ = ["receive", "send"]


def send(fd: int) -> Any:
    """Something picklable that stands for `fd`.

    While a process is being spawned the descriptor is inherited, through a duplicate of its own:
    one number cannot be passed twice. Otherwise multiprocessing's resource sharer hands it over.
    """
    spawning = context.get_spawning_popen()
    if spawning is None:
        return reduction.DupFd(fd)
    copy = kernel.dup(fd)
    # the duplicate is needed until the child has been started, and goes with the Popen object
    util.Finalize(spawning, os.close, (copy,))
    return reduction.DupFd(copy)


def receive(sent: Any) -> int:
    """The descriptor in the receiving process, close-on-exec from now on."""
    fd: int = sent.detach()
    os.set_inheritable(fd, False)
    return fd
