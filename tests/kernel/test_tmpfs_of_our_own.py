"""What we believe of tmpfs: a mount with huge=advise gives huge pages at the touch, whatever shmem_enabled says."""

from __future__ import annotations

import mmap
import os
from collections.abc import Generator

import numpy as np
import pytest

from mirrormap import kernel, procmaps
from support import Raw, checked, libc, write

PMD = procmaps.pmd_nbytes()
MADV_HUGEPAGE, F_ADD_SEALS, F_SEAL_SHRINK = 14, 1033, 2

pytestmark = pytest.mark.skipif(
    not kernel.has_huge_files() or PMD > 32 << 20,
    reason="no tmpfs with huge=advise can be mounted here, or its huge pages are larger than these tests",
)


@pytest.fixture
def file() -> Generator[int]:
    fd = kernel.huge_file("mirrormap:belief")
    assert fd is not None
    os.ftruncate(fd, 3 * PMD)
    yield fd
    os.close(fd)


def allocated_by_a_touch(fd: int, *, advised: bool) -> int:
    """Bytes the kernel takes when one byte of each of two huge pages is stored to."""
    with Raw(3 * PMD, fd=fd, flags=mmap.MAP_SHARED) as raw:
        start = -(-raw.address // PMD) * PMD
        if advised:
            checked(libc.madvise(start, 2 * PMD, MADV_HUGEPAGE))
        for at in (start, start + PMD):
            write(at + 5, b"x")
        return os.fstat(fd).st_blocks * 512


def test_one_touch_brings_a_huge_page_where_madvise_asked(file: int) -> None:
    assert allocated_by_a_touch(file, advised=True) >= PMD  # of two: a busy machine may have one in a piece


def test_without_it_a_touch_brings_a_page(file: int) -> None:
    assert allocated_by_a_touch(file, advised=False) < PMD


def test_such_a_file_cannot_be_sealed(file: int) -> None:
    import fcntl

    with pytest.raises(PermissionError):
        fcntl.fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK)
    assert os.fstat(file).st_nlink == 0


def test_a_hole_gives_the_memory_back_with_the_last_part_of_a_huge_page(file: int) -> None:
    """A smaller one reads zeros at once; whether the kernel splits the page for it is its own affair."""
    with Raw(3 * PMD, fd=file, flags=mmap.MAP_SHARED) as raw:
        start = -(-raw.address // PMD) * PMD
        checked(libc.madvise(start, PMD, MADV_HUGEPAGE))
        at = start - raw.address
        pages = np.frombuffer(raw.buffer, "u1")[at:][:PMD]
        pages[:] = 1
        kernel.punch_hole(file, at, PMD // 2)
        assert not pages[: PMD // 2].any()
        assert pages[PMD // 2 :].all()
        kernel.punch_hole(file, at, PMD)
        assert os.fstat(file).st_blocks == 0
        assert not pages.any()
        del pages
