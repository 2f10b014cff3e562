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


BEFORE_6_17 = r"^(5\.|6\.(\d|1[0-6])\.)"
BEFORE_7 = r"^[56]\."

EXPLAINED = [
    Explanation(
        BEFORE_6_17,
        "^mremap_test$",
        "multiple",
        "moves over several mappings are of Linux 6.17; before they are EFAULT, which mremap() hands on",
    ),
    Explanation(
        BEFORE_7,
        "^merge$",
        "",
        "which neighbours become one mapping changed with 6.16 to 7.x; the package counts mappings and relies on none",
    ),
    Explanation(
        BEFORE_7,
        "^memfd_test hugetlbfs$",
        "",
        "F_SEAL_EXEC of huge pages came later; the package seals against shrinking only",
    ),
]


def why(where: str, program: str, case: str) -> str | None:
    """The reason of a failure, if it is known."""
    for known in EXPLAINED:
        if all(
            re.search(pattern, text) for pattern, text in zip(known[:3], (where, program, case), strict=True)
        ):
            return known.why
    return None
