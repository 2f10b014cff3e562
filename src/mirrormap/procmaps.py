"""Evidence from /proc and /sys: what is mapped where, how many mappings there may be, what pools hold."""

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

from mirrormap import kernel
from mirrormap.kernel import PAGE_NBYTES, VmaInfo

__all__ = [
    "ENTRY_LINE",
    "NO_IOCTL",
    "AddressSpace",
    "HugePool",
    "default_huge_nbytes",
    "descriptors_of",
    "huge_pool",
    "huge_sizes",
    "map_count",
    "max_map_count",
    "opened",
    "parse_smaps",
    "pmd_nbytes",
    "process_start",
]

_MAPS, _SMAPS = Path("/proc/self/maps"), Path("/proc/self/smaps")
_HUGE_POOLS = Path("/sys/kernel/mm/hugepages")
_THP = Path("/sys/kernel/mm/transparent_hugepage")
_DEFAULT_MAX_MAP_COUNT = 65_530  # of the kernel

# ioctls that this kernel or sandbox refuses; found out once
NO_IOCTL = (errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES)


@contextmanager
def opened(path: str) -> Generator[int]:
    """A descriptor of a file in /proc for reading."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


class AddressSpace:
    """The entries of this process's address space, looked up by address.

    PROCMAP_QUERY answers in constant time; before Linux 6.11 the text of maps is read once, and
    where an entry may be of huge pages that of smaps, which alone says so and costs ten times as
    much; the answers are those of that moment. A context manager; not for sharing among threads.
    """

    def __init__(self) -> None:
        self._fd = os.open(_MAPS, os.O_RDONLY | os.O_CLOEXEC)
        self._moment: _Moment | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    @property
    def is_current(self) -> bool:
        """Do answers follow changes, or are they those of one moment?"""
        return self._moment is None

    def at(self, address: int, *, following: bool = False) -> VmaInfo | None:
        """The entry covering `address`; with `following`, else the first one behind it."""
        if self._moment is None:
            try:
                return kernel.procmap_query(self._fd, address, following=following)
            except OSError as error:
                if error.errno not in NO_IOCTL:
                    raise
                self._moment = _Moment(_MAPS)
        vma = self._moment.at(address)
        if vma is not None and self._moment.path != _SMAPS and _may_be_huge(vma):
            self._moment = _Moment(_SMAPS)
            vma = self._moment.at(address)
        return vma if vma is None or following or vma.start <= address else None


class _Moment:
    """What maps or smaps said at one moment. An entry is parsed when it is asked for: of 65,530 perhaps."""

    __slots__ = ("_ends", "_starts", "_text", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._text = path.read_text(errors="replace")
        self._starts: list[int] = []
        self._ends: list[int] = []
        for entry in ENTRY_LINE.finditer(self._text):
            self._starts.append(entry.start())
            self._ends.append(int(entry[2], 16))
        self._starts.append(len(self._text))

    def at(self, address: int) -> VmaInfo | None:
        """The first entry that ends behind `address`."""
        index = bisect.bisect_right(self._ends, address)
        if index == len(self._ends):
            return None
        return next(parse_smaps(self._text[self._starts[index] : self._starts[index + 1]]), None)


@cache
def _smallest_huge() -> int:
    return min(huge_sizes(), default=2 * PAGE_NBYTES)


def _may_be_huge(vma: VmaInfo) -> bool:
    """May its pages be larger than ordinary ones? It is aligned if so: of hugetlbfs, or a DAX device's."""
    return vma.dev != 0 and (vma.start | vma.end | vma.offset) % _smallest_huge() == 0


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
    with opened("/proc/self/maps") as fd:
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
    """The size "huge" stands for: Hugepagesize of /proc/meminfo. None: no such pages, or no /proc."""
    try:
        told = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    match = re.search(r"^Hugepagesize: +(\d+) kB", told, re.MULTILINE)
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
