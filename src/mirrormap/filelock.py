"""The one writer of a file: flock(2), and who holds it."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Final

from mirrormap import procmaps
from mirrormap.errors import BusyError

__all__ = ["give", "take"]

_LOCKS: Final = Path("/proc/locks")
_PATIENCE_SECONDS: Final = 2.0
_PAUSE_SECONDS: Final = 0.002


def take(fd: int, label: str) -> None:
    """Be the only one that writes this file, until all that was opened or mapped by this descriptor is gone.

    A process that was killed may hold it for a moment yet: whoever reads its /proc/pid/smaps meanwhile
    keeps its memory, the memory the file, and the file the lock. That is waited for.

    Raises: BusyError while another process, or another object here, holds it.
    """
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if _lives_its_holder(os.fstat(fd).st_ino) or time.monotonic() > until:
                raise BusyError(f"{label!r} has a writer already; open it with mode='r'") from None
        else:
            return
        time.sleep(_PAUSE_SECONDS)


def give(fd: int) -> None:
    """Let another write this file."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def _lives_its_holder(inode: int) -> bool:
    """Is whoever locked it still there, as far as /proc tells? A dead one is 0 there, or its own number.

    Devices are not compared: some file systems, Btrfs among them, tell stat(2) of another.
    """
    try:
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return True
    for line in lines:  # 1: FLOCK  ADVISORY  WRITE 4711 08:01:131075 0 EOF
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
            pid = int(fields[4])
            if pid > 0 and procmaps.process_start(pid) is not None:
                return True
    return False
