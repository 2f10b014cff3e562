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


BEFORE_6_1 = r"^(5\.|6\.0\.)"
BEFORE_6_3 = r"^(5\.|6\.[0-2]\.)"
BEFORE_6_17 = r"^(5\.|6\.(\d|1[0-6])\.)"
BEFORE_7_3 = r"^([56]|7\.[0-2])\."

EXPLAINED = [
    Explanation(
        BEFORE_6_17,
        "^mremap_test$",
        "multiple",
        "moves over several mappings are of Linux 6.17; before they are EFAULT, which mremap() hands on",
    ),
    Explanation(
        BEFORE_6_1,
        "^mremap_test$",
        "expand merge",
        "growth that closes a hole leaves two mappings on 5.10; nothing here relies on one",
    ),
    Explanation(
        BEFORE_7_3,
        "^merge$",
        "",
        "which private neighbours become one mapping changed from release to release up to 7.3; the package "
        "maps shared memory, and counts mappings instead of foretelling them",
    ),
    Explanation(
        BEFORE_6_1,
        "^mremap_dontunmap$",
        "",
        "MREMAP_DONTUNMAP of shared memory is of 5.13; before, snapshot() overlays the old view",
    ),
    Explanation(
        BEFORE_6_1,
        "^hugetlb-mremap$",
        "",
        "mremap of huge pages is of 5.16; before, mremap() shows them at the target by their descriptor",
    ),
    Explanation(
        BEFORE_6_1,
        "^hugetlb-madvise$",
        "",
        "MADV_DONTNEED of huge pages is of 5.18; the package discards by MADV_REMOVE and fallocate",
    ),
    Explanation(
        BEFORE_6_1,
        "^khugepaged",
        "",
        "MADV_COLLAPSE is of 6.1; before, transparent huge pages come as memory is touched",
    ),
    Explanation(
        BEFORE_6_3,
        "^memfd_test",
        "",
        "F_SEAL_EXEC is of 6.3, and the program ends there; the package seals against shrinking alone",
    ),
    Explanation(
        "",
        "^memfd_test hugetlbfs$",
        "",
        "chmod of a memfd of huge pages passes F_SEAL_EXEC on every kernel tried, and the program ends there; "
        "the package seals against shrinking alone",
    ),
    Explanation(
        r"^6\.18\.",
        "^pagemap_ioctl$",
        "unpopulated",
        "PAGEMAP_SCAN calls pages written that never were there; the package asks which are present",
    ),
    Explanation(
        r"^6\.18\.",
        "^mlock2-tests$",
        "droppable",
        "mlockall and droppable memory, which the package has nothing of",
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
