"""Page tables of other processes: what is present, swapped, in which frame, and merged.

Read-only, by pid; errors as in procfs. What only root may see comes back as None.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mirrormap import kernel, procfs, procmaps, residency
from mirrormap.kernel import PAGE_NBYTES, VmaTuple

__all__ = [
    "calls_all_merged",
    "frames_of",
    "ksm_works",
    "merged_frames",
    "stretches",
    "stretches_read",
    "zero_frames",
]

_KPAGEFLAGS: Final = Path("/proc/kpageflags")
_KSM: Final = Path("/sys/kernel/mm/ksm/pages_shared")
_LONGEST_PRIVATE_NBYTES: Final = 1 << 40
_STEP_PAGES: Final = 1 << 19  # between two steps of a walk signals are served, and progress is told

Progress = Callable[[int], None]
"""Called with the bytes found so far."""


def stretches(pid: int, found: Sequence[VmaTuple], progress: Progress) -> NDArray[np.uint64] | None:
    """What is present or swapped in an address space, by PAGEMAP_SCAN.

    Returns: uint64, shape ``(n, 3)``: start, end, PAGE_IS_* bits, by address; None where the kernel has no
        PAGEMAP_SCAN (before Linux 6.7) or does not show this page table.
    """
    last = next((vma[1] for vma in reversed(found) if vma[0] < procfs.USER_END), 0)
    steps: list[bytes] = []
    nbytes = 0
    with procfs.looking_at(pid), contextlib.suppress(PermissionError), procfs.opened(pid, "pagemap") as fd:
        try:
            at, end = found[0][0], last
            while at < end:
                step, at = kernel.pagemap_stretches(fd, at, end, _STEP_PAGES)
                steps.append(step)
                nbytes += _nbytes(_rows(step))
                progress(nbytes)
            return _rows(b"".join(steps))
        except OSError as error:
            if error.errno not in procmaps.NO_IOCTL:
                raise
    return None


def stretches_read(pid: int, found: Sequence[VmaTuple], progress: Progress) -> NDArray[np.uint64] | None:
    """The same by reading /proc/PID/pagemap, eight bytes a page, where smaps says that there are pages.

    Returns: as `stretches`, but a page of zeros that nobody has written is one like others, and nothing
        tells huge entries; None where this page table is not shown. Private entries of more than a
        TiB, such as a sanitizer's shadow, are left out: theirs would be gigabytes.
    """
    steps: list[NDArray[np.uint64]] = [np.empty((0, 3), np.uint64)]
    nbytes = 0
    with procfs.looking_at(pid), contextlib.suppress(PermissionError), procfs.opened(pid, "pagemap") as fd:
        # a reservation of terabytes would be gigabytes of zeros here
        empty = {told.vma.start for told in procfs.smaps(pid) if not told.rss + told.swap + told.huge}
        for start, end, shared in ((vma[0], vma[1], vma[3]) for vma in found if vma[0] < procfs.USER_END):
            left_out = start in empty or (not shared and end - start > _LONGEST_PRIVATE_NBYTES)
            for at in range(start, start if left_out else end, _STEP_PAGES * PAGE_NBYTES):
                step = residency.stretches_read(fd, at, min(end, at + _STEP_PAGES * PAGE_NBYTES))
                steps.append(step)
                nbytes += _nbytes(step)
                progress(nbytes)
        return np.concatenate(steps)
    return None


def _rows(packed: bytes) -> NDArray[np.uint64]:
    return np.frombuffer(packed, np.uint64).reshape(-1, 3)


def _nbytes(rows: NDArray[np.uint64]) -> int:
    return int((rows[:, 1] - rows[:, 0]).sum())


def frames_of(pid: int, rows: NDArray[np.uint64]) -> NDArray[np.uint64] | None:
    """Physical frames of the pages in some stretches.

    Returns: uint64, shape ``(pages, 2)``: address, frame number; None without CAP_SYS_ADMIN.
    """
    parts: list[NDArray[np.uint64]] = []
    with procfs.looking_at(pid), procfs.opened(pid, "pagemap") as fd:
        for start, end in rows[:, :2].tolist():
            read = residency.words(fd, start // PAGE_NBYTES, (end - start) // PAGE_NBYTES)
            part = np.empty((len(read), 2), np.uint64)
            part[:, 0] = np.uint64(start) + np.arange(len(read), dtype=np.uint64) * np.uint64(PAGE_NBYTES)
            part[:, 1] = read & np.uint64((1 << 55) - 1)
            parts.append(part[read >> np.uint64(63) == 1])
    pages = np.concatenate(parts) if parts else np.empty((0, 2), np.uint64)
    return None if len(pages) and not pages[:, 1].any() else pages


_KPF_KSM: Final = np.uint64(1 << 21)
_KPF_ZERO_PAGE: Final = np.uint64(1 << 24)
_NEAR: Final = 512  # frames: what lies so close is read at once


def merged_frames(frames: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of some frames, in ascending order, hold pages that KSM has merged; none if it is not told."""
    if not ksm_works() or calls_all_merged():
        return np.zeros(len(frames), bool)
    return _flagged(frames, _KPF_KSM)


def zero_frames(frames: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of some frames, in ascending order, are the kernel's pages of zeros, small or huge."""
    return _flagged(frames, _KPF_ZERO_PAGE)


@functools.cache
def calls_all_merged() -> bool:
    """Whether this kernel flags every private page as merged by KSM, as 6.12 does: one of our own tells."""
    with mmap.mmap(-1, PAGE_NBYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as own:
        own[0] = 1
        shown = np.frombuffer(own, "u1")
        start = shown.__array_interface__["data"][0]
        del shown  # it would keep the page from being unmapped
        pages = frames_of(os.getpid(), np.array([[start, start + PAGE_NBYTES]], np.uint64))
        return pages is not None and bool(_flagged(pages[:, 1], _KPF_KSM).any())


def _flagged(frames: NDArray[np.uint64], flag: np.uint64) -> NDArray[np.bool_]:
    flagged = np.zeros(len(frames), bool)
    try:
        fd = os.open(_KPAGEFLAGS, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return flagged
    try:
        breaks = np.flatnonzero(np.diff(frames) > _NEAR) + 1
        for first, last in zip([0, *breaks.tolist()], [*breaks.tolist(), len(frames)], strict=True):
            part = frames[first:last]
            if len(part):
                low, high = int(part[0]), int(part[-1])
                words = residency.words(fd, low, high - low + 1)
                flagged[first:last] = words[(part - part[0]).astype(np.intp)] & flag != 0
    except (OSError, IndexError):  # memory that was taken out meanwhile
        return flagged
    finally:
        os.close(fd)
    return flagged


def ksm_works() -> bool:
    """Does the kernel merge equal private pages at present (KSM)?"""
    try:
        return int(_KSM.read_text()) > 0
    except (OSError, ValueError):
        return False
