"""Processes that tests start, kill, and never leave behind."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from support import PATIENCE_S

FORK = multiprocessing.get_context("fork")
METHODS = ["fork", "spawn", "forkserver"]

_children: list[Any] = []


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    """A stopped child of a test that failed would hold up the end of this process."""
    yield
    while _children:
        with contextlib.suppress(ValueError):
            _children.pop().kill()


def started(target: Any, *arguments: Any, context: Any = FORK) -> Any:
    process = context.Process(target=target, args=arguments, daemon=True)
    process.start()
    _children.append(process)
    return process


def killed(process: Any) -> None:
    process.kill()
    process.join(PATIENCE_S)
    assert process.exitcode == -signal.SIGKILL
    _closed(process)


def ended(process: Any) -> None:
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    _closed(process)


def _closed(process: Any) -> None:
    process.close()
    if process in _children:
        _children.remove(process)
