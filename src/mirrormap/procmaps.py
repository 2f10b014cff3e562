"""Evidence from /proc and /sys: what is mapped where, what is resident, what pools hold."""

from __future__ import annotations

import bisect
import errno
import os
import re
import resource
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from mirrormap import kernel
from mirrormap.kernel import PAGE_NBYTES, VmaInfo

__all__ = [
    "ENTRY_LINE",
    "AddressSpace",
    "HugePool",
    "Residency",
    "default_huge_nbytes",
    "descriptors_of",
    "frames",
    "huge_pool",
    "huge_sizes",
    "map_count",
    "max_map_count",
    "parse_smaps",
    "pmd_nbytes",
    "present_nbytes",
    "present_stretches",
    "private_ranges",
    "process_start",
    "residency",
]

_MAPS = Path("/proc/self/maps")
_HUGE_POOLS = Path("/sys/kernel/mm/hugepages")
_THP = Path("/sys/kernel/mm/transparent_hugepage")
_DEFAULT_MAX_MAP_COUNT = 65_530  # of the kernel

# ioctls that this kernel or sandbox refuses; found out once
_NO_IOCTL = (errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES)


class AddressSpace:
    """The entries of this process's address space, looked up by address.

    PROCMAP_QUERY answers in constant time; before Linux 6.11 the text of smaps is parsed once
    and the answers are those of that moment. A context manager; not for sharing among threads.
    """

    def __init__(self) -> None:
        self._fd = os.open(_MAPS, os.O_RDONLY | os.O_CLOEXEC)
        self._parsed: list[VmaInfo] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    @property
    def is_current(self) -> bool:
        """Do answers follow changes, or are they those of one moment?"""
        return self._parsed is None

    def at(self, address: int, *, following: bool = False) -> VmaInfo | None:
        """The entry covering `address`; with `following`, else the first one behind it."""
        if self._parsed is None:
            try:
                return kernel.procmap_query(self._fd, address, following=following)
            except OSError as error:
                if error.errno not in _NO_IOCTL:
                    raise
                self._parsed = list(parse_smaps(Path("/proc/self/smaps").read_text(errors="replace")))
        index = bisect.bisect_right(self._parsed, address, key=lambda vma: vma.end)
        vma = self._parsed[index] if index < len(self._parsed) else None
        return vma if vma is None or following or vma.start <= address else None


_ENTRY = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) ([r-])([w-])([x-])([sp]) ([0-9a-f]+) "
    r"([0-9a-f]{1,5}):([0-9a-f]{1,5}) ([0-9]{1,20}) *(.*)"
)
_PAGE_SIZE = re.compile(r"KernelPageSize: +([0-9]{1,15}) kB")
ENTRY_LINE = re.compile(f"^{_ENTRY.pattern}$", re.MULTILINE)


def parse_smaps(text: str) -> Iterator[VmaInfo]:
    """Entries of an smaps text; a maps text too, with ordinary page sizes."""
    vma: VmaInfo | None = None
    for line in text.split("\n"):  # a name may hold what splitlines() takes for the end of a line
        if (match := _ENTRY.fullmatch(line)) is not None:
            if vma is not None:
                yield vma
            start, end, r, w, x, s, offset, major, minor, inode, name = match.groups()
            vma = VmaInfo(
                int(start, 16), int(end, 16),
                (r == "r") * kernel.PROT_READ
                | (w == "w") * kernel.PROT_WRITE
                | (x == "x") * kernel.PROT_EXEC,
                s == "s", PAGE_NBYTES, int(offset, 16),
                os.makedev(int(major, 16), int(minor, 16)), int(inode), name,
            )  # fmt: skip
        elif vma is not None and (size := _PAGE_SIZE.fullmatch(line)) is not None:
            vma = vma._replace(page_nbytes=int(size[1]) << 10)
    if vma is not None:
        yield vma


def map_count() -> int:
    """How many entries this process's address space has, as the kernel counts them."""
    # in small blocks: who asks may have no mapping left for a larger one
    with _opened("/proc/self/maps") as fd:
        return sum(block.count(b"\n") for block in iter(lambda: os.read(fd, 1 << 15), b""))


def max_map_count() -> int:
    """vm.max_map_count: the most entries an address space may have; the kernel's default without /proc."""
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except OSError:
        return _DEFAULT_MAX_MAP_COUNT


def advice_for_enomem(nbytes: int) -> str:
    """Why an ordinary mapping was refused with ENOMEM: the limit that is hit, and its cure."""
    count, limit = map_count(), max_map_count()
    if count >= limit - 16:
        return (
            f"{count:,} of {limit:,} mappings are used: close some, or raise the limit with "
            f"`sysctl -w vm.max_map_count={limit * 4}`"
        )
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE_NBYTES
        if used + nbytes > soft:
            return (
                f"The address space is limited to {soft:,} bytes (RLIMIT_AS, `ulimit -v`) "
                f"and {used:,} are used; every mirror counts"
            )
    return "Not enough memory or address space for this much at once"


# --- page tables ---------------------------------------------------------------------------


class Residency(NamedTuple):
    """Page-table entries of a range, in the bytes they map."""

    present: int
    huge: int


def residency(address: int, nbytes: int) -> Residency:
    """What of [address, address + nbytes) has page-table entries, and what of it huge ones.

    mincore(2) cannot tell: it asks about the object. PAGEMAP_SCAN, before Linux 6.7 pagemap
    bit 63, with smaps for the huge part. The range is widened to whole pages.
    """
    start = address & -PAGE_NBYTES
    end = (address + nbytes + PAGE_NBYTES - 1) & -PAGE_NBYTES
    with _opened("/proc/self/pagemap") as fd:
        try:
            return Residency(*kernel.pagemap_scan(fd, start, end))
        except OSError as error:
            if error.errno not in _NO_IOCTL:
                raise
        present = sum(1 for entry in _pagemap(fd, start, end) if entry >> 63) * PAGE_NBYTES
    return Residency(present, min(present, _huge_by_smaps(start, end)))


def present_nbytes(address: int, nbytes: int) -> int | None:
    """Bytes of a range that have page-table entries, or None where only a slow answer can be had."""
    try:
        with _opened("/proc/self/pagemap") as fd:
            return kernel.pagemap_scan(fd, address, address + nbytes)[0]
    except OSError:
        return None


def present_stretches(address: int, nbytes: int) -> list[tuple[int, int]]:
    """Stretches of a range that have page-table entries, as (byte in the range, nbytes).

    Empty before Linux 6.7, whose answers are too slow for looking at something in passing.
    """
    found: list[tuple[int, int]] = []
    at, end = address, address + nbytes
    with _opened("/proc/self/pagemap") as fd:
        while at < end:
            try:
                step, at = kernel.pagemap_stretches(fd, at, end)
            except OSError:
                return []
            words = memoryview(step).cast("Q").tolist()
            for start, stop, sort in zip(words[::3], words[1::3], words[2::3], strict=True):
                if sort & kernel.PAGE_IS_PRESENT:
                    found.append((start - address, stop - start))
    return found


def frames(address: int, nbytes: int) -> list[int] | None:
    """Physical frame number of every page; 0 where there is no entry. None without CAP_SYS_ADMIN."""
    with _opened("/proc/self/pagemap") as fd:
        entries = list(_pagemap(fd, address, address + nbytes))
    numbers = [entry & (1 << 55) - 1 if entry >> 63 else 0 for entry in entries]
    if any(entry >> 63 for entry in entries) and not any(numbers):
        return None
    return numbers


def private_ranges(address: int, nbytes: int) -> list[tuple[int, int]]:
    """Which bytes of a private view of an object lie on pages of its own, because they were written.

    Pagemap bits: 63 present or 62 swapped, and not 61, which says that the page is the object's.
    Returns: [first, last) from `address` on; where pagemap cannot be read, the whole.
    """
    found: list[tuple[int, int]] = []
    step = PAGE_NBYTES << 15
    try:
        with _opened("/proc/self/pagemap") as fd:
            for at in range(0, nbytes, step):
                count = min(step, nbytes - at) // PAGE_NBYTES
                entries = np.frombuffer(os.pread(fd, count * 8, (address + at) // PAGE_NBYTES * 8), "=u8")
                written = (entries >> np.uint64(62) != 0) & (entries >> np.uint64(61) & np.uint64(1) == 0)
                edges = np.flatnonzero(np.diff(written, prepend=False, append=False)) * PAGE_NBYTES + at
                found += zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    except OSError:
        return [(0, nbytes)]
    return found


@contextmanager
def _opened(path: str) -> Generator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _pagemap(fd: int, start: int, end: int) -> Iterator[int]:
    step = PAGE_NBYTES << 15
    for address in range(start, end, step):
        count = (min(step, end - address)) // PAGE_NBYTES * 8
        yield from memoryview(os.pread(fd, count, address // PAGE_NBYTES * 8)).cast("Q")


_HUGE_LINE = re.compile(
    r"(?:AnonHugePages|ShmemPmdMapped|FilePmdMapped|Shared_Hugetlb|Private_Hugetlb): +(\d+) kB"
)


def _huge_by_smaps(start: int, end: int) -> int:
    nbytes, inside = 0, False
    with open("/proc/self/smaps", errors="replace") as file:
        for line in file:
            if (entry := _ENTRY.fullmatch(line.rstrip("\n"))) is not None:
                inside = int(entry[1], 16) < end and int(entry[2], 16) > start
            elif inside and (huge := _HUGE_LINE.match(line)) is not None:
                nbytes += int(huge[1]) << 10
    return nbytes


# --- descriptors ---------------------------------------------------------------------------


def process_start(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None once it is gone or a zombie.

    A pid alone proves nothing: it is given to somebody else sooner or later. -1: it is there, but
    /proc does not say more (hidepid).
    """
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:  # who waits asks again and again
            fields = file.read(4 << 10).rpartition(b")")[2].split()
    except OSError:
        try:
            os.close(os.pidfd_open(pid))
        except OSError as error:
            return None if error.errno == errno.ESRCH else -1
        return -1
    return None if fields[0] in b"ZX" else int(fields[19])


def descriptors_of(dev: int, inode: int) -> list[int]:
    """Open descriptors of this process that name the same object, lowest first."""
    found: list[int] = []
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            info = os.fstat(fd)
        except OSError:  # the listing's own descriptor, or another thread closed it
            continue
        if (info.st_dev, info.st_ino) == (dev, inode):
            found.append(fd)
    return sorted(found)


def descriptor_name(fd: int) -> str:
    """What a descriptor names: a path, or "/memfd:NAME (deleted)"."""
    return os.readlink(f"/proc/self/fd/{fd}")


def reopened(fd: int, flags: int) -> int:
    """A new descriptor of the same object, opened with other rights. Raises: OSError."""
    return kernel.open_file(f"/proc/self/fd/{fd}", flags)


def map_file(vma: VmaInfo, flags: int) -> int:
    """Open /proc/self/map_files/START-END: the object behind an entry, without its descriptor.

    Raises: OSError EPERM without CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE in the initial user
        namespace.
    """
    return kernel.open_file(f"/proc/self/map_files/{vma.start:x}-{vma.end:x}", flags)


def map_file_nbytes(vma: VmaInfo) -> int | None:
    """Length of the file behind an entry; None for devices, or where map_files is not permitted."""
    try:
        info = os.stat(f"/proc/self/map_files/{vma.start:x}-{vma.end:x}")
    except OSError:
        return None
    return info.st_size if stat.S_ISREG(info.st_mode) else None


# --- huge pages ----------------------------------------------------------------------------


class HugePool(NamedTuple):
    """The kernel's pool of huge pages of one size, in pages."""

    page_nbytes: int
    total: int
    free: int
    reserved: int

    @property
    def available(self) -> int:
        """Pages that a new mapping could still get."""
        return max(0, self.free - self.reserved)

    @property
    def path(self) -> str:
        """The file that sets how many there are."""
        return f"{_HUGE_POOLS}/hugepages-{self.page_nbytes >> 10}kB/nr_hugepages"


def huge_sizes() -> list[int]:
    """Huge page sizes in bytes this kernel has, ascending; empty without hugetlb."""
    try:
        names = os.listdir(_HUGE_POOLS)
    except OSError:
        return []
    return sorted(int(name.removeprefix("hugepages-").removesuffix("kB")) << 10 for name in names)


def default_huge_nbytes() -> int | None:
    """The size "huge" stands for: Hugepagesize of /proc/meminfo."""
    match = re.search(r"^Hugepagesize: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(match[1]) << 10 if match else None


def huge_pool(page_nbytes: int) -> HugePool:
    """The pool of pages of this size, as it stands now."""
    folder = _HUGE_POOLS / f"hugepages-{page_nbytes >> 10}kB"
    total, free, reserved = (
        int((folder / name).read_text()) for name in ("nr_hugepages", "free_hugepages", "resv_hugepages")
    )
    return HugePool(page_nbytes, total, free, reserved)


@cache
def pmd_nbytes() -> int:
    """Bytes one huge page-table entry maps: the alignment transparent huge pages need."""
    try:
        return int((_THP / "hpage_pmd_size").read_text())
    except OSError:
        return default_huge_nbytes() or PAGE_NBYTES


def transparent_setting(name: str) -> str | None:
    """The chosen word of /sys/kernel/mm/transparent_hugepage/NAME, or None without THP."""
    try:
        match = re.search(r"\[(\S+)\]", (_THP / name).read_text())
    except OSError:
        return None
    return match[1] if match else None
