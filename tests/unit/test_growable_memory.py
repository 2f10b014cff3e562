"""Growable's memory: taken a little ahead in huge pages once there is much, given back whole, and none needed."""

from __future__ import annotations

import errno
import subprocess
import sys

import numpy as np
import pytest

import mirrormap as mm
import seccomp
from mirrormap import procmaps
from support import PAGE, TESTS

MIB = 1 << 20


def filled(nbytes: int, block: int = MIB, **options: int) -> mm.Growable:
    grown = mm.Growable("u1", **options)
    for number in range(nbytes // block):
        grown.extend(np.full(block, number % 251, "u1"))
    return grown


def is_whole(grown: mm.Growable, block: int = MIB) -> bool:
    rows = grown.array.reshape(-1, block)
    return bool((rows == (np.arange(len(rows)) % 251).astype("u1")[:, None]).all())


def test_a_part_is_taken_ahead_and_it_is_bounded() -> None:
    pmd = procmaps.pmd_nbytes()
    for total in (8 * MIB, 40 * MIB, 120 * MIB):
        with filled(total) as grown:
            assert total <= grown.allocated <= total + total // 8 + pmd
            assert is_whole(grown)
    with filled(8 * MIB) as grown:
        assert grown.allocated == 8 * MIB


def test_pages_of_the_given_size_are_not_made_huge() -> None:
    with filled(40 * MIB, page_size=PAGE) as grown:
        assert grown.allocated == 40 * MIB
        assert is_whole(grown)


def test_what_was_taken_ahead_is_given_back() -> None:
    with filled(40 * MIB) as grown:
        grown.resize(10)
        assert grown.allocated <= PAGE
        grown.extend(np.zeros(39 * MIB, "u1"))
        assert not grown.array[10:].any()
        grown.shrink_to_fit()
        assert grown.allocated <= 40 * MIB
        grown.extend(np.ones(5 * MIB, "u1"))
        assert grown.array[-5 * MIB :].all()
        assert not grown.array[10 : 39 * MIB].any()
        grown.resize(0)
        assert grown.allocated == 0


def test_rows_that_resize_adds_take_no_memory() -> None:
    with filled(20 * MIB) as grown:
        before = grown.allocated
        grown.resize(500 * MIB)
        assert grown.allocated == before
        grown.append(7)
        assert grown.allocated <= before + 40 * MIB
        assert grown[-1] == 7
        assert not grown.array[20 * MIB : 100 * MIB].any()


def test_beyond_the_reserve_the_views_share_what_was_taken() -> None:
    grown = filled(20 * MIB, reserve=24 * MIB)
    before = grown.array
    for number in range(20, 60):
        grown.extend(np.full(MIB, number, "u1"))
    assert is_whole(grown)
    before[5] = 200
    assert grown[5] == 200
    del before
    grown.close()


REFUSED = """
import errno, numpy as np, mirrormap as mm, seccomp
seccomp.refuse("madvise", errno.{name}, argument=2, value=25)
with mm.Growable("u1") as grown:
    for number in range(40):
        grown.extend(np.full(1 << 20, number, "u1"))
    assert grown.allocated <= 44 << 20, grown.allocated
    assert (grown.array.reshape(40, -1) == np.arange(40)[:, None]).all()
    grown.resize(10)
    assert grown.allocated <= 65536
"""


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOMEM, errno.EAGAIN, errno.EPERM])
def test_where_the_kernel_gives_no_huge_pages(number: int) -> None:
    if not seccomp.numbers():
        pytest.skip("system call numbers of this architecture are not listed in tests/seccomp.py")
    script = f"import sys; sys.path.insert(0, {str(TESTS)!r})\n" + REFUSED.format(
        name=errno.errorcode[number]
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
