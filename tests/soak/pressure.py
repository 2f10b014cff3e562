"""A memory cgroup for the soak, and what eats in it: allocations are refused there, or somebody is killed."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")
EATER = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import pressure; pressure.eat()"


class Cgroup:
    """A group of its own with a limit, of either version."""

    def __init__(self, folder: Path, limit_nbytes: int) -> None:
        self.folder = folder
        folder.mkdir()
        self.version = 1 if (folder / "memory.limit_in_bytes").exists() else 2
        name = "memory.limit_in_bytes" if self.version == 1 else "memory.max"
        try:
            (folder / name).write_text(str(limit_nbytes))
        except OSError:
            folder.rmdir()
            raise

    def join(self) -> None:
        """In a child, before it becomes another program."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def kills(self) -> int:
        """How often the kernel killed somebody here for memory."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        words = (self.folder / name).read_text().split()
        return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0

    @property
    def shared_nbytes(self) -> int:
        """Shared memory that is charged here: pages of memfds that somebody still holds."""
        words = (self.folder / "memory.stat").read_text().split()
        return int(words[words.index("shmem") + 1]) if "shmem" in words else 0


@contextlib.contextmanager
def limited(limit_nbytes: int) -> Generator[Cgroup | None]:
    """A cgroup for the block; None where none can be made."""
    made = None
    for parent in (V1, V2):
        if (parent / "cgroup.procs").exists() and os.access(parent, os.W_OK):
            with contextlib.suppress(OSError):
                made = Cgroup(parent / f"mirrormap-soak-{os.getpid()}", limit_nbytes)
                break
    try:
        yield made
    finally:
        if made is not None:
            for _ in range(100):
                with contextlib.suppress(OSError):
                    made.folder.rmdir()
                    break
                time.sleep(0.1)


@contextlib.contextmanager
def eater(group: Cgroup, limit_nbytes: int, seed: int, environment: dict[str, str]) -> Generator[None]:
    """A process in the group that takes and gives back memory, up to all but a little of it."""
    command = [sys.executable, "-c", EATER, str(limit_nbytes), str(seed)]
    plain = {name: value for name, value in environment.items() if name != "LD_PRELOAD"}
    process = subprocess.Popen(command, preexec_fn=group.join, env=plain)  # noqa: PLW1509 - no threads here
    try:
        yield
    finally:
        process.kill()
        process.wait()


def eat() -> None:
    """The eater. A thing that the kernel may kill as well as any other of the group."""
    limit, chance = int(sys.argv[1]), random.Random(sys.argv[2])
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    while True:
        held = mmap.mmap(-1, int(limit * chance.uniform(0.2, 0.65)), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for at in range(0, len(held), mmap.PAGESIZE):
            held[at] = 1
        time.sleep(chance.uniform(0.1, 4))
        held.close()
        time.sleep(chance.uniform(0.1, 3))
