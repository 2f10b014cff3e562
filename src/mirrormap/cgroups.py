"""What memory cgroups and strict overcommit still allow: beyond it comes no errno but a signal: look first.

Best effort: other processes take memory meanwhile, and the kernel may reclaim more than is counted here.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Final

__all__ = ["SPARE_NBYTES", "commit_left", "least_left", "memory_left"]

SPARE_NBYTES: Final = 4 << 20
"""To be left over, for page tables and whoever else is in the group."""

_OWN: Final = "/proc/self/cgroup"
_MOUNTS: Final = "/proc/self/mountinfo"
_SWAPS: Final = "/proc/swaps"
_VM: Final = Path("/proc/sys/vm")
_MEMINFO: Final = "/proc/meminfo"
_STATM: Final = "/proc/self/statm"
_UNLIMITED: Final = 1 << 60  # version 1 writes its largest number for none
# by version: the limit, the use, and the lines of memory.stat that the kernel drops before it kills
_FILES: Final = {
    2: ("memory.max", "memory.current", ("inactive_file", "active_file")),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
}


def memory_left() -> int | None:
    """Bytes that this process may still be charged for before something is killed.

    The least over its memory cgroup and all above it, of either version; clean pages of files count as
    free. Returns: None without a limit, where there is swap to give way to, or where nothing is told.
    """
    left: int | None = None
    for version, mount, root in _mounts():
        folder = _folder(version, mount, root)
        while folder is not None:
            here = _left_in(folder, version)
            if here is not None:
                left = here if left is None else min(left, here)
            folder = folder.parent if folder != mount else None
    return None if left is None or _has_swap() else max(left, 0)


def commit_left() -> int | None:
    """Bytes that may still be committed under strict overcommit (vm.overcommit_memory = 2).

    A page of a memfd is committed when it is first touched, which is a SIGBUS beyond the limit. The kernel
    keeps something back, for root and for other processes, and does its sums in parts of 1/256 of memory.
    Returns: None where overcommit is not strict.
    """
    try:
        if (_VM / "overcommit_memory").read_text().strip() != "2":
            return None
        with open(_MEMINFO) as file:
            told = {words[0]: int(words[1]) << 10 for words in map(str.split, file) if len(words) == 3}
        with open(_STATM) as file:
            shown = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        kept = [int((_VM / f"{whose}_reserve_kbytes").read_text()) << 10 for whose in ("admin", "user")]
        left = told["CommitLimit:"] - told["Committed_AS:"] - told["MemTotal:"] // 256
    except (OSError, KeyError, ValueError):
        return None
    return max(left - kept[0] - min(kept[1], shown // 32), 0)


def least_left() -> int | None:
    """The less of memory_left() and commit_left(); None where neither limits."""
    return min((left for left in (memory_left(), commit_left()) if left is not None), default=None)


@functools.cache
def _mounts() -> tuple[tuple[int, Path, str], ...]:
    """(version, where it is mounted, which part of the hierarchy that shows)."""
    found: list[tuple[int, Path, str]] = []
    try:
        with open(_MOUNTS, errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return ()
    for line in lines:
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.partition(" ")
        version = {"cgroup2": 2, "cgroup": 1}.get(kind, 0)
        if version == 2 or (version == 1 and "memory" in options.split()[-1].split(",")):
            found.append((version, Path(fields.split()[4]), fields.split()[3]))
    return tuple(found)


def _folder(version: int, mount: Path, root: str) -> Path | None:
    """This process's own group."""
    try:
        with open(_OWN, errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        if (controllers == "") if version == 2 else ("memory" in controllers.split(",")):
            inside = os.path.relpath(path, root) if root != "/" else path.lstrip("/")
            folder = mount / inside
            return folder if not inside.startswith("..") and folder.is_dir() else mount
    return None


def _left_in(folder: Path, version: int) -> int | None:
    limit_name, use_name, reclaimed = _FILES[version]
    try:
        text = (folder / limit_name).read_text().strip()
        if not text.isdecimal() or int(text) >= _UNLIMITED:
            return None
        used = int((folder / use_name).read_text())
        stat = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    free = sum(int(value) for name, _, value in (line.partition(" ") for line in stat) if name in reclaimed)
    return int(text) - used + free


def _has_swap() -> bool:
    try:
        with open(_SWAPS) as file:
            return len(file.read().splitlines()) > 1
    except OSError:
        return False
