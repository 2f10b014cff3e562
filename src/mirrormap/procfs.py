"""Other processes' memory, as /proc shows it to whoever may look.

Everything here is read-only and takes a pid. A process that has ended is ProcessGone, one that belongs
to somebody else NotPermittedError; what only root may see comes back as None.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from mirrormap import kernel, procmaps
from mirrormap.errors import MirrorError, NotPermittedError, ProcessGone
from mirrormap.kernel import VmaInfo, VmaTuple

__all__ = [
    "USER_END",
    "Smaps",
    "command_name",
    "descendants",
    "device_of_nodes",
    "entries",
    "gone",
    "huge_nbytes",
    "hugetlb_nbytes",
    "ipc_namespace",
    "looking_at",
    "named",
    "network_namespace",
    "opened",
    "parse_fields",
    "parse_smaps",
    "pids",
    "private_nbytes",
    "rollup",
    "smaps",
    "status",
]

_PROC: Final = Path("/proc")
_PF_KTHREAD: Final = 1 << 21
USER_END: Final = 1 << 63  # entries above it, [vsyscall], are the kernel's


@contextlib.contextmanager
def looking_at(pid: int) -> Generator[None]:
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


def opened(pid: int, name: str) -> contextlib.AbstractContextManager[int]:
    """A descriptor of /proc/PID/name for reading."""
    return procmaps.opened(f"{_PROC}/{pid}/{name}")


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
    with looking_at(pid), opened(pid, "maps") as fd:
        try:
            found = kernel.procmap_entries(fd)
        except OSError as error:
            if error.errno not in procmaps.NO_IOCTL:
                raise
            huge = _fields_of(pid, "status").get("HugetlbPages", 0)
            text = _text(pid, "smaps" if huge else "maps")
            found = list[VmaTuple](procmaps.parse_smaps(text))
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
    with looking_at(pid):
        return list(parse_smaps(_text(pid, "smaps")))


def rollup(pid: int) -> dict[str, int]:
    """The sums over all entries, in bytes (smaps_rollup, Linux 4.14).

    Raises: ProcessGone, NotPermittedError.
    """
    with looking_at(pid):
        return parse_fields(_text(pid, "smaps_rollup"))


def status(pid: int) -> dict[str, int]:
    """The sizes in /proc/PID/status, in bytes; anybody may read them. Raises: ProcessGone."""
    with looking_at(pid):
        return _fields_of(pid, "status")


def _fields_of(pid: int, name: str) -> dict[str, int]:
    try:
        return parse_fields(_text(pid, name).replace("\t", " "))
    except (FileNotFoundError, ProcessLookupError):
        return {}


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
