"""Kernel calls made to fail on demand, in the build for tests: which, the how-manieth, and with what."""

from __future__ import annotations

from typing import Any

import pytest

from mirrormap import _core

_built: Any = _core  # only one of its builds has these

needs_faults = pytest.mark.skipif(
    not hasattr(_core, "fault_arm"), reason="this build injects no faults; `make sanitize` does"
)


def arm(call: str, nth: int, error: int, then: str = "") -> None:
    """Let the nth such call fail, "*": any; and the next `then` after it."""
    _built.fault_arm(call, nth, error, then)


def disarm() -> None:
    _built.fault_arm("", 0, 0)


def fault_hits() -> tuple[int, str]:
    """How many calls failed, and which first."""
    found: tuple[int, str] = _built.fault_hits()
    return found
