"""Growable's memory: taken a little ahead in huge pages once there is much, given back whole, and none needed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mirrormap as mm
import seccomp
from mirrormap import procmaps
from support import PAGE, PATIENCE_S, TESTS

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


KIND = np.dtype([("a", "<i4"), ("b", "V3"), ("c", "M8[s]")])


@pytest.mark.parametrize("first", [0, 1, 7, 5000])
def test_large_blocks_in_memory_lie_behind_the_rows_there_are(first: int) -> None:
    raw = np.random.default_rng(first).integers(0, 256, 1_500_000 * KIND.itemsize, "u1")
    rows = raw.view(KIND)
    with mm.Growable(KIND) as grown:
        grown.extend(rows[:first])
        seen = grown.array
        for start in range(first, len(rows), 90_000):
            grown.extend(rows[start : start + 90_000])
        assert grown.array.tobytes() == raw.tobytes()
        assert mm.shares_memory(seen, grown.array) or not first
        grown.extend(grown.array)
        grown.extend(rows[5::-1])
        assert grown.array[len(rows) : 2 * len(rows)].tobytes() == raw.tobytes()
        del seen
        grown.resize(7)
        grown.extend(rows[7:])
        assert grown.array.tobytes() == raw.tobytes()


@pytest.mark.parametrize("first", [0, 1, 7, 5000])
def test_large_blocks_in_a_file_lie_behind_the_rows_there_are(first: int, tmp_path: Path) -> None:
    raw = np.random.default_rng(first).integers(0, 256, 40_000 * KIND.itemsize, "u1")
    rows = raw.view(KIND)
    with mm.Growable(KIND, path=tmp_path / "rows") as grown:
        grown.extend(rows[:first])
        seen = grown.array
        for start in range(first, len(rows), 9000):  # each of 135,000 bytes
            grown.extend(rows[start : start + 9000])
        assert grown.array.tobytes() == raw.tobytes()
        assert seen.tobytes() == rows[:first].tobytes()
        grown.extend(grown.array)
        grown.extend(rows[::-1])  # not contiguous
        assert grown.array[len(rows) : 2 * len(rows)].tobytes() == raw.tobytes()
        assert grown.array[: 2 * len(rows) - 1 : -1].tobytes() == raw.tobytes()
        offset = grown.data_offset
        del seen
    assert np.memmap(tmp_path / "rows", KIND, "r", offset)[: len(rows)].tobytes() == raw.tobytes()


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_large_block_behind_a_frozen_page_is_not_lost(on_disk: bool, tmp_path: Path) -> None:
    with mm.Growable("u1", path=tmp_path / "rows" if on_disk else None) as grown:
        grown.resize(MIB)  # room, which cannot be made while a snapshot is open
        grown.resize(0)
        grown.extend(np.ones(PAGE + 10, "u1"))
        rows = grown.array
        with mm.snapshot(rows, copy=False) as frozen:
            rows[-1] = 2  # its page is a private one from now on
            grown.extend(np.full(MIB // 4, 3, "u1"))
            assert (grown.array[PAGE + 10 :] == 3).all()
            assert (frozen == 1).all()
        assert (grown.array[PAGE + 10 :] == 3).all()
        assert grown.array[PAGE + 9] == 2
        del rows, frozen


def test_a_large_block_that_the_disk_refuses_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mm.Growable("u1", path=tmp_path / "rows") as grown:
        grown.extend(np.ones(PAGE + 10, "u1"))
        write = os.pwrite

        def half(fd: int, data: memoryview, offset: int) -> int:
            if data.nbytes < MIB - PAGE:
                raise OSError(errno.EIO, "the disk")
            return write(fd, data[: len(data) // 2], offset)

        monkeypatch.setattr(os, "pwrite", half)
        with pytest.raises(mm.MapError, match="pwrite") as caught:
            grown.extend(np.full(MIB, 3, "u1"))
        assert caught.value.errno == errno.EIO
        monkeypatch.undo()
        assert len(grown) == PAGE + 10
        grown.resize(MIB)
        assert not grown.array[PAGE + 10 :].any()
        assert grown.array[: PAGE + 10].all()


REFUSED = """
import errno, mmap, numpy as np, mirrormap as mm, seccomp
seccomp.refuse("madvise", errno.{name}, argument=2, value=25)
with mm.Growable("u1") as grown:
    for number in range(40):
        grown.extend(np.full(1 << 20, number, "u1"))
    assert grown.allocated <= 44 << 20, grown.allocated
    assert (grown.array.reshape(40, -1) == np.arange(40)[:, None]).all()
    grown.resize(10)
    assert grown.allocated <= 16 * mmap.PAGESIZE
"""


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOMEM, errno.EAGAIN, errno.EPERM])
def test_where_the_kernel_gives_no_huge_pages(number: int) -> None:
    if not seccomp.numbers():
        pytest.skip("system call numbers of this architecture are not listed in tests/seccomp.py")
    script = f"import sys; sys.path.insert(0, {str(TESTS)!r})\n" + REFUSED.format(
        name=errno.errorcode[number]
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
