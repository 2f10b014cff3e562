"""Other processes' memory, as /proc shows it to whoever may look.

Everything here is read-only and takes a pid. A process that has ended is ProcessGone, one that belongs
to somebody else NotPermittedError; what only root may see comes back as None.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import mmap
import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mirrormap import kernel, procmaps
from mirrormap.errors import MirrorError, NotPermittedError, ProcessGone
from mirrormap.kernel import PAGE_NBYTES, VmaInfo, VmaTuple

__all__ = [
    "USER_END",
    "Smaps",
    "calls_all_merged",
    "command_name",
    "descendants",
    "device_of_nodes",
    "entries",
    "frames_of",
    "gone",
    "huge_nbytes",
    "hugetlb_nbytes",
    "ipc_namespace",
    "ksm_works",
    "network_namespace",
    "merged_frames",
    "named",
    "parse_fields",
    "parse_smaps",
    "pids",
    "private_nbytes",
    "rollup",
    "smaps",
    "status",
    "stretches",
]

_PROC: Final = Path("/proc")
_KPAGEFLAGS: Final = Path("/proc/kpageflags")
_KSM: Final = Path("/sys/kernel/mm/ksm/pages_shared")

_STEP_PAGES: Final = 1 << 19  # between two steps of a walk signals are served, and progress is told
_PF_KTHREAD: Final = 1 << 21
USER_END: Final = 1 << 63  # entries above it, [vsyscall], are the kernel's
_NO_IOCTL: Final = (errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES)

Progress = Callable[[int], None]
"""Called with the bytes found so far."""


@contextlib.contextmanager
def _looking_at(pid: int) -> Generator[None]:
    """The errors of /proc in words. Raises: ProcessGone, NotPermittedError."""
    try:
        yield
    except PermissionError:
        raise NotPermittedError(
            f"process {pid} belongs to somebody else, or hides its memory (prctl PR_SET_DUMPABLE): root "
            "(CAP_SYS_PTRACE) may look at it"
        ) from None
    except (FileNotFoundError, ProcessLookupError):
        raise gone(pid) from None


def gone(pid: int) -> MirrorError:
    """Why there is nothing to read about a process."""
    if procmaps.process_start(pid) is None:
        return ProcessGone(f"process {pid} has ended, or there is none")
    with contextlib.suppress(OSError, ValueError):
        if int(_stat(pid)[6]) & _PF_KTHREAD:
            return MirrorError(f"process {pid} has no memory of its own: it is a thread of the kernel")
    return ProcessGone(f"process {pid} is about to end, or has begun another program meanwhile")


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on."""
    return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()


# --- what is mapped ------------------------------------------------------------------------


def entries(pid: int) -> list[VmaTuple]:
    """The entries of an address space, by address.

    PROCMAP_QUERY, an entry at a time; before Linux 6.11 the text of maps, and that of smaps for a
    process that uses huge pages, because nothing else tells their size.
    Raises: ProcessGone, NotPermittedError.
    """
    with _looking_at(pid):
        fd = os.open(_PROC / str(pid) / "maps", os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = kernel.procmap_entries(fd)
        except OSError as error:
            if error.errno not in _NO_IOCTL:
                raise
            huge = _fields_of(pid, "status").get("HugetlbPages", 0)
            text = _text(pid, "smaps" if huge else "maps")
            found = list[VmaTuple](procmaps.parse_smaps(text))
        finally:
            os.close(fd)
    if not found:
        raise gone(pid)
    return found


def _text(pid: int, name: str) -> str:
    # a path may hold any byte, a carriage return too: nothing is translated, equal names stay equal
    return (_PROC / str(pid) / name).read_bytes().decode(errors="surrogateescape")


class Smaps(NamedTuple):
    """What smaps says of an entry, in bytes."""

    vma: VmaInfo
    rss: int
    pss: int
    private: int
    swap: int
    huge: int


_FIELD: Final = re.compile(r"^(\w+): +(\d+) kB$", re.MULTILINE)
_TRANSPARENT: Final = ("AnonHugePages", "ShmemPmdMapped", "FilePmdMapped")
_HUGETLB: Final = ("Shared_Hugetlb", "Private_Hugetlb")


def parse_fields(text: str) -> dict[str, int]:
    """The "Name: 12 kB" lines of status, smaps_rollup or one entry of smaps, in bytes."""
    return {name: int(number) << 10 for name, number in _FIELD.findall(text)}


def parse_smaps(text: str) -> Iterator[Smaps]:
    """Entries of an smaps text with their sums; of a maps text too, with zeros."""
    heads = [match.start() for match in procmaps.ENTRY_LINE.finditer(text)]
    for start, end in itertools.pairwise([*heads, len(text)]):
        part = text[start:end]
        fields = parse_fields(part)
        for vma in procmaps.parse_smaps(part):
            yield Smaps(
                vma,
                fields.get("Rss", 0),
                fields.get("Pss", 0),
                private_nbytes(fields),
                fields.get("Swap", 0),
                huge_nbytes(fields),
            )


def private_nbytes(fields: dict[str, int]) -> int:
    """USS: what nobody else has."""
    return fields.get("Private_Clean", 0) + fields.get("Private_Dirty", 0)


def huge_nbytes(fields: dict[str, int]) -> int:
    """Bytes under huge page-table entries, transparent or hugetlb."""
    return sum(fields.get(name, 0) for name in (*_TRANSPARENT, *_HUGETLB))


def hugetlb_nbytes(fields: dict[str, int]) -> int:
    """Bytes in hugetlb pages, which RSS and PSS leave out."""
    return sum(fields.get(name, 0) for name in _HUGETLB)


def smaps(pid: int) -> list[Smaps]:
    """Every entry with its sums: slow, the kernel walks all page tables and writes it down as text."""
    with _looking_at(pid):
        return list(parse_smaps(_text(pid, "smaps")))


def rollup(pid: int) -> dict[str, int]:
    """The sums over all entries, in bytes (smaps_rollup, Linux 4.14).

    Raises: ProcessGone, NotPermittedError.
    """
    with _looking_at(pid):
        return parse_fields(_text(pid, "smaps_rollup"))


def status(pid: int) -> dict[str, int]:
    """The sizes in /proc/PID/status, in bytes; anybody may read them. Raises: ProcessGone."""
    with _looking_at(pid):
        return _fields_of(pid, "status")


def _fields_of(pid: int, name: str) -> dict[str, int]:
    try:
        return parse_fields(_text(pid, name).replace("\t", " "))
    except (FileNotFoundError, ProcessLookupError):
        return {}


# --- what is resident ----------------------------------------------------------------------


def stretches(pid: int, found: Sequence[VmaTuple], progress: Progress) -> NDArray[np.uint64] | None:
    """What is present or swapped in an address space.

    Returns: uint64, shape ``(n, 3)``: start, end, PAGE_IS_* bits, by address; None where the kernel has no
        PAGEMAP_SCAN (before Linux 6.7) or does not show this page table.
    """
    last = next((vma[1] for vma in reversed(found) if vma[0] < USER_END), 0)
    steps: list[bytes] = []
    nbytes = 0
    with _looking_at(pid):
        try:
            fd = os.open(_PROC / str(pid) / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError:
            return None
        try:
            at, end = found[0][0], last
            while at < end:
                step, at = kernel.pagemap_stretches(fd, at, end, _STEP_PAGES)
                steps.append(step)
                nbytes += _nbytes(_rows(step))
                progress(nbytes)
        except OSError as error:
            if error.errno not in _NO_IOCTL:
                raise
            return None
        finally:
            os.close(fd)
    return _rows(b"".join(steps))


def _rows(packed: bytes) -> NDArray[np.uint64]:
    return np.frombuffer(packed, np.uint64).reshape(-1, 3)


def _nbytes(rows: NDArray[np.uint64]) -> int:
    return int((rows[:, 1] - rows[:, 0]).sum())


def frames_of(pid: int, rows: NDArray[np.uint64]) -> NDArray[np.uint64] | None:
    """Physical frames of the pages in some stretches.

    Returns: uint64, shape ``(pages, 2)``: address, frame number; None without CAP_SYS_ADMIN.
    """
    parts: list[NDArray[np.uint64]] = []
    with _looking_at(pid):
        fd = os.open(_PROC / str(pid) / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            for index in range(len(rows)):
                start, end = rows[index, 0], rows[index, 1]
                count = int(end - start) // PAGE_NBYTES
                read = np.frombuffer(os.pread(fd, count * 8, int(start) // PAGE_NBYTES * 8), np.uint64)
                part = np.empty((len(read), 2), np.uint64)
                part[:, 0] = start + np.arange(len(read), dtype=np.uint64) * np.uint64(PAGE_NBYTES)
                part[:, 1] = read & np.uint64((1 << 55) - 1)
                parts.append(part[read >> np.uint64(63) == 1])
        finally:
            os.close(fd)
    pages = np.concatenate(parts) if parts else np.empty((0, 2), np.uint64)
    return None if len(pages) and not pages[:, 1].any() else pages


_KPF_KSM: Final = np.uint64(1 << 21)
_NEAR: Final = 512  # frames: what lies so close is read at once


def merged_frames(frames: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of some frames, in ascending order, hold pages that KSM has merged; none if it is not told."""
    if not ksm_works() or calls_all_merged():
        return np.zeros(len(frames), bool)
    return _flagged(frames)


@functools.cache
def calls_all_merged() -> bool:
    """Whether this kernel flags every private page as merged by KSM, as 6.12 does: one of our own tells."""
    with mmap.mmap(-1, PAGE_NBYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as own:
        own[0] = 1
        shown = np.frombuffer(own, "u1")
        start = shown.__array_interface__["data"][0]
        del shown  # it would keep the page from being unmapped
        pages = frames_of(os.getpid(), np.array([[start, start + PAGE_NBYTES]], np.uint64))
        return pages is not None and bool(_flagged(pages[:, 1]).any())


def _flagged(frames: NDArray[np.uint64]) -> NDArray[np.bool_]:
    merged = np.zeros(len(frames), bool)
    try:
        fd = os.open(_KPAGEFLAGS, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return merged
    try:
        breaks = np.flatnonzero(np.diff(frames) > _NEAR) + 1
        for first, last in zip([0, *breaks.tolist()], [*breaks.tolist(), len(frames)], strict=True):
            part = frames[first:last]
            if len(part):
                low, high = int(part[0]), int(part[-1])
                words = np.frombuffer(os.pread(fd, (high - low + 1) * 8, low * 8), np.uint64)
                merged[first:last] = words[(part - part[0]).astype(np.intp)] & _KPF_KSM != 0
    except (OSError, IndexError):  # memory that was taken out meanwhile
        return merged
    finally:
        os.close(fd)
    return merged


def ksm_works() -> bool:
    """Does the kernel merge equal private pages at present (KSM)?"""
    try:
        return int(_KSM.read_text()) > 0
    except (OSError, ValueError):
        return False


# --- which processes -----------------------------------------------------------------------


def pids() -> list[int]:
    """Every process, by number."""
    return sorted(int(name) for name in os.listdir(_PROC) if name.isdecimal())


def command_name(pid: int) -> str:
    """The name of a process, as ps shows it; "?" once it is gone."""
    try:
        return (_PROC / str(pid) / "comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return "?"


def named(name: str) -> list[int]:
    """Processes of this name: that of ps, or the file name of the program or of its first argument."""
    return [pid for pid in pids() if pid != os.getpid() and name in _names(pid)]


def _names(pid: int) -> set[str]:
    names = {command_name(pid)}
    with contextlib.suppress(OSError):
        first = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")[0]
        names.add(os.path.basename(os.fsdecode(first)))
    with contextlib.suppress(OSError):
        names.add(os.path.basename(os.readlink(_PROC / str(pid) / "exe")))
    return names - {""}


def descendants(pid: int) -> list[int]:
    """Children of a process, and theirs, in no special order."""
    parents: dict[int, list[int]] = {}
    for child in pids():
        with contextlib.suppress(OSError, ValueError):
            fields = _stat(child)
            if fields[0] not in "ZX":
                parents.setdefault(int(fields[1]), []).append(child)
    found: list[int] = []
    todo = [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def ipc_namespace(pid: int) -> int:
    """The inode of its IPC namespace, within which numbers of SysV segments are unique; 0: not told."""
    try:
        return (_PROC / str(pid) / "ns" / "ipc").stat().st_ino
    except OSError:
        return 0


def device_of_nodes() -> int:
    """The device of /dev, whose nodes show whatever their driver likes."""
    return os.stat("/dev").st_dev


def network_namespace() -> int:
    """Which network this process is in, abstract sockets among it; 0 where /proc does not say."""
    try:
        return os.stat("/proc/self/ns/net").st_ino
    except OSError:
        return 0
