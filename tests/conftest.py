"""Fixtures every test may rely on: no leaks, and huge pages that are reserved and given back."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci", max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("dev", max_examples=200, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

HUGE_POOLS = Path("/sys/kernel/mm/hugepages")


def held() -> dict[str, int]:
    """What this process holds that a test may not leave behind."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    return {
        "views of shared memory": sum(line.split()[1][3] == "s" for line in maps),
        "reservations": sum(line.split()[1] == "---p" and len(line.split()) == 5 for line in maps),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "huge pages": sum(
            int((pool / "nr_hugepages").read_text())
            - int((pool / "free_hugepages").read_text())
            + int((pool / "resv_hugepages").read_text())
            for pool in HUGE_POOLS.glob("hugepages-*")
        )
        if os.geteuid() == 0
        else 0,
    }


@pytest.fixture(autouse=True)
def nothing_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compare mappings, descriptors and huge pages before and after each test."""
    if request.node.get_closest_marker("leaks_by_nature"):
        yield
        return
    before = held()
    yield
    after = held()
    grown = {what: (before[what], after[what]) for what in before if after[what] > before[what]}
    assert not grown, f"left behind (before, after): {grown}"


@contextlib.contextmanager
def reserved(page_nbytes: int, count: int) -> Iterator[int]:
    """`count` more free huge pages of one size, given back afterwards; one test process at a time.

    The pool belongs to the machine, hence the lock. Skips only where the machine cannot: no root,
    no pool of that size, or no contiguous memory for it.
    """
    pool = HUGE_POOLS / f"hugepages-{page_nbytes >> 10}kB" / "nr_hugepages"
    if not pool.exists():
        pytest.skip(f"this kernel has no pool of {page_nbytes:,}-byte pages")
    if not os.access(pool, os.W_OK):
        pytest.skip("only root can reserve huge pages")
    lock = os.open(Path(tempfile.gettempdir()) / "mirrormap-hugepages.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = int(pool.read_text())
        try:
            pool.write_text(str(before + count))
            got = int(pool.read_text()) - before
            if got < count:
                pytest.skip(f"the machine gave {got} of {count} pages of {page_nbytes:,} bytes")
            yield page_nbytes
        finally:
            gc.collect()
            pool.write_text(str(before))
    finally:
        os.close(lock)


def default_huge_nbytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Hugepagesize:"):
            return int(line.split()[1]) << 10
    pytest.skip("this kernel has no huge pages")


@pytest.fixture
def huge() -> Iterator[int]:
    """The default huge page size, with 16 pages of it free for the test."""
    with reserved(default_huge_nbytes(), 16) as page_nbytes:
        yield page_nbytes
