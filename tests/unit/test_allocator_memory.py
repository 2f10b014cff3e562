"""Which pages the arrays of numpy_allocator take, and when."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

import mirrormap as mm
import seccomp
from mirrormap import procmaps
from support import PAGE, SANITIZED, run_python

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _empty_cache() -> Generator[None]:
    """The cache is the process's, and would look like a leak."""
    yield
    mm.numpy_allocator().trim()


def pss() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise AssertionError


@pytest.mark.skipif(SANITIZED, reason="a sanitizer's own memory is in the figures")
def test_zeros_that_are_longer_than_the_cache_take_memory_as_they_are_touched() -> None:
    with mm.numpy_allocator(cache="8MiB"):
        before = pss()
        zeros = np.zeros(256 * MIB, "u1")
        assert pss() - before < 16 * MIB
        zeros[: 64 * MIB] = 1
        assert 60 * MIB < pss() - before < 80 * MIB
        assert not zeros[64 * MIB :].any()


def test_an_end_that_nearly_fills_a_huge_page_is_one() -> None:
    pmd = procmaps.pmd_nbytes()
    if not PAGE < pmd <= 32 * MIB:
        pytest.skip(f"huge pages of {pmd:,} bytes")
    with mm.numpy_allocator(PAGE, page_size="thp", cache=0) as allocator:
        for nbytes, taken in (
            (PAGE, PAGE),
            (pmd // 2, pmd // 2),
            (pmd - PAGE, pmd),
            (2 * pmd, 2 * pmd),
            (2 * pmd + PAGE, 2 * pmd + PAGE),
            (4 * pmd - PAGE, 4 * pmd),
        ):
            array = np.full(nbytes, 5, "u1")
            assert allocator.state.nbytes == taken
            assert (array == 5).all()
            assert mm.mirror(array).nbytes == nbytes
            del array
        assert allocator.state.nbytes == 0


def test_the_cache_is_a_sixteenth_of_the_memory_there_is_at_most_1_gib(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = os.sysconf
    pages = 160 * MIB // PAGE
    monkeypatch.setattr(os, "sysconf", lambda name: pages if name == "SC_PHYS_PAGES" else asked(name))
    with mm.numpy_allocator() as allocator:
        many = [np.ones(4 * MIB, "u1") for _ in range(4)]
        del many
        assert allocator.state.cached_nbytes == 8 * MIB  # of 10


REFUSED = """
import errno, numpy as np, mirrormap as mm, seccomp
for advice in (14, 25):  # MADV_HUGEPAGE, MADV_COLLAPSE
    seccomp.refuse("madvise", errno.EINVAL, argument=2, value=advice)
with mm.numpy_allocator() as allocator:
    arrays = [np.full(count << 20, count, "u1") for count in (1, 3, 40)]
    assert all((array == count).all() for array, count in zip(arrays, (1, 3, 40)))
    assert allocator.state.arrays == 3
    shown = mm.mirror(arrays[2])
    shown[7] = 9
    assert arrays[2][7] == 9
"""


def test_where_the_kernel_gives_no_huge_pages() -> None:
    if not seccomp.numbers():
        pytest.skip("system call numbers of this architecture are not listed in tests/seccomp.py")
    done = run_python(REFUSED)
    assert done.returncode == 0, done.stderr
