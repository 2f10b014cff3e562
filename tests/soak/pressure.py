"""A memory cgroup for the soak, and what eats in it: allocations are refused there, or somebody is killed."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")
STEP_NBYTES = 4 << 20
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


class Eater:
    """A process in the group that takes memory until little of it is left, and gives it back; and so on.

    The kernel may choose it like anybody else: then there is another.
    """

    def __init__(self, group: Cgroup, seed: int) -> None:
        self.group, self.seed = group, seed
        self.process: subprocess.Popen[bytes] | None = None
        self.go_on()

    def go_on(self) -> None:
        """Start it, if it does not run."""
        if self.process is None or self.process.poll() is not None:
            self.seed += 1
            command = [sys.executable, "-c", EATER, str(self.group.folder), str(self.seed)]
            plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
            self.process = subprocess.Popen(command, preexec_fn=self.group.join, env=plain)  # noqa: PLW1509 - no threads here

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def left(folder: Path) -> int:
    """Bytes that may still be charged to a group."""
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    if not (folder / names[0]).exists():
        names = ("memory.max", "memory.current")
    limit, used = (int((folder / name).read_text()) for name in names)
    return limit - used


def eat() -> None:
    """What it does."""
    folder, chance = Path(sys.argv[1]), random.Random(sys.argv[2])
    while True:
        held = []
        spare = chance.randint(4, 200) << 20
        until = time.monotonic() + chance.uniform(1, 15)
        while time.monotonic() < until:
            if left(folder) > spare + STEP_NBYTES:
                held.append(b"\1" * STEP_NBYTES)
            else:
                time.sleep(0.01)
            if left(folder) < spare // 2 and held:
                held.pop()
        held.clear()
        time.sleep(chance.uniform(0.1, 3))
