"""What /proc answers by ioctl, as the extension asks it."""

from __future__ import annotations

import errno
from typing import NamedTuple

from mirrormap import _core

__all__ = ["VmaInfo", "VmaTuple", "pagemap_scan", "pagemap_stretches", "procmap_entries", "procmap_query"]


class VmaInfo(NamedTuple):
    """One entry of the address space, as /proc/PID/maps and PROCMAP_QUERY tell it."""

    start: int
    end: int
    protection: int
    shared: bool
    page_nbytes: int
    offset: int
    dev: int
    inode: int
    name: str


# the fields of a VmaInfo: of 60,000 of these the garbage collector takes no notice
VmaTuple = tuple[int, int, int, bool, int, int, int, int, str]


def procmap_query(fd: int, address: int, *, following: bool = False) -> VmaInfo | None:
    """ioctl(PROCMAP_QUERY) on an open /proc/PID/maps (Linux 6.11).

    Returns: the entry covering `address`, or with `following` else the first behind; or None.
    Raises: OSError ENOTTY, where the kernel is older.
    """
    try:
        return VmaInfo._make(_core.vma(fd, address, following))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise


def procmap_entries(fd: int) -> list[VmaTuple]:
    """All of an open /proc/PID/maps, by PROCMAP_QUERY. OSError ESRCH: the process has ended."""
    return _core.vmas(fd)


def pagemap_scan(fd: int, start: int, end: int) -> tuple[int, int]:
    """ioctl(PAGEMAP_SCAN) on an open /proc/PID/pagemap (Linux 6.7).

    Returns: bytes with a page-table entry, and bytes of those under huge entries.
    Raises: OSError ENOTTY, where the kernel is older.
    """
    return _core.scan(fd, start, end)


def pagemap_stretches(fd: int, start: int, end: int, pages: int = 0) -> tuple[bytes, int]:
    """One step of ioctl(PAGEMAP_SCAN) over what is present or swapped (Linux 6.7).

    Args: end: below the kernel's addresses. pages: the most to find before returning; 0: any number.
    Returns: stretches as packed uint64 (start, end, PAGE_IS_*), and the address to go on from.
    Raises: OSError ENOTTY, where the kernel is older; ESRCH for a process that has ended.
    """
    return _core.stretches(fd, start, end, pages)
