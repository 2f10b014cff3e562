"""Failures of other people's tests that we know the reason of: what the kernel does there, and what it means for us."""

from __future__ import annotations

import re
from typing import NamedTuple


class Explanation(NamedTuple):
    """Patterns of where (kernel release, architecture and page size), program and case, and the reason."""

    where: str
    program: str
    case: str
    why: str


EXPLAINED: list[Explanation] = []


def why(where: str, program: str, case: str) -> str | None:
    """The reason of a failure, if it is known."""
    for known in EXPLAINED:
        if all(re.search(pattern, text) for pattern, text in zip(known[:3], (where, program, case), strict=True)):
            return known.why
    return None
