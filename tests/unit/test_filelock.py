"""One writer a file, and a writer that was killed is none: also while somebody looks at what its memory was."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

import mirrormap as mm
from kin import ended, killed, no_child_is_left, started  # noqa: F401
from mirrormap import filelock
from support import scaled

MIB = 1 << 20


def write_for_ever(path: Path, nbytes: int, ready: Any) -> None:
    """Hold a file, and much memory, which takes long to look at."""
    held = [mmap.mmap(-1, MIB) for _ in range(nbytes // MIB)]
    for piece in held:
        piece.write(bytes(MIB))
    with mm.Growable("u1", path=path) as rows:
        rows.append(1)
        rows.flush()
        ready.set()
        multiprocessing.Event().wait()


def look(pid: int) -> None:
    """What every tool that shows memory does. While it reads, the kernel keeps the memory of one that has ended."""
    with contextlib.suppress(OSError):
        while True:
            Path(f"/proc/{pid}/smaps").read_bytes()


def test_a_killed_writer_s_file_is_free_at_once_though_its_memory_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    for count in range(1, scaled(8, 3) + 1):
        ready = multiprocessing.Event()
        writer = started(write_for_ever, path, 256 * MIB, ready)
        assert ready.wait(60)
        looker = started(look, writer.pid)
        killed(writer)
        with mm.Growable.open(path) as rows:
            assert len(rows) == count
        ended(looker)


def test_a_living_writer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filelock, "_PATIENCE_SECONDS", 3600.0)
    path = tmp_path / "rows"
    ready = multiprocessing.Event()
    writer = started(write_for_ever, path, 0, ready)
    assert ready.wait(60)
    with pytest.raises(mm.BusyError, match="has a writer already; open it with mode='r'"):
        mm.Growable.open(path)
    killed(writer)


def test_whom_proc_does_not_tell_of_is_waited_for_a_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A holder in another pid namespace is the number 0 there, as a dead one is."""
    told = tmp_path / "locks"
    monkeypatch.setattr(filelock, "_LOCKS", told)
    path = tmp_path / "rows"
    with mm.Growable("u1", path=path):
        inode = path.stat().st_ino
        told.write_text(
            f"1: POSIX  ADVISORY  WRITE 1 08:01:{inode} 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 1 08:01:{inode} 0 EOF\n"
            f"2: FLOCK  ADVISORY  WRITE 0 08:01:{inode} 0 EOF\n"
        )
        monkeypatch.setattr(filelock, "_PATIENCE_SECONDS", 0.1)
        with pytest.raises(mm.BusyError, match="writer"):
            mm.Growable.open(path)
        told.unlink()
        monkeypatch.setattr(filelock, "_PATIENCE_SECONDS", 3600.0)
        with pytest.raises(mm.BusyError, match="writer"):
            mm.Growable.open(path)
