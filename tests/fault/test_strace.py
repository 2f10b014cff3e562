"""The system calls of the built package, failed from outside: strace attached to a live interpreter.

Every call that an operation makes and that the native header names is failed in turn, with every errno.
The extension is the one that users have; nothing in it knows of this.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from traced import ONCE, OPERATIONS

from support import SANITIZED

pytestmark = [
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
    pytest.mark.skipif(SANITIZED, reason="the extension that users have is what is tested here"),
    pytest.mark.apart,
    pytest.mark.leaks_by_nature,  # counted in the process that is traced
]

# by what strace calls them: those of _native/sys.h and sys_mount.c
CALLS = (
    "mmap", "munmap", "mremap", "mprotect", "madvise", "memfd_create", "ftruncate", "fallocate", "fcntl",
    "fstat", "newfstatat", "fstatfs", "fdatasync", "msync", "ioctl", "close", "futex", "process_madvise",
    "openat", "unlinkat", "fsopen", "fsconfig", "fsmount",
    "pwrite64", "write", "unshare", "clone", "wait4",
)  # fmt: skip
ERRORS = ("ENOMEM", "EPERM", "ENOSYS", "EINTR", "EAGAIN", "EFAULT")
UNDOING = ("munmap", "close")  # what cannot be given back stays
MOST = 2  # of one kind in one operation: which of them is failed


class Traced:
    """The server of cases, and strace on one case at a time."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "strace"
        reading, self.go = os.pipe()
        script = Path(__file__).with_name("traced.py")
        self.server = subprocess.Popen(
            [sys.executable, str(script), str(reading)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[reading], start_new_session=True,
            env={**os.environ, "TMPDIR": str(folder)},  # of cases that die
        )  # fmt: skip
        os.close(reading)
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline().strip()

    def run(self, name: str, calls: str, *options: str) -> tuple[dict[str, Any], str]:
        """One case. Returns: what it told, and what strace saw."""
        assert self.server.stdin is not None
        self.server.stdin.write(f"{name}\n")
        self.server.stdin.flush()
        pid = int(self.line())
        self.log.write_text("")
        tracer = subprocess.Popen(
            ["strace", "-f", "-qq", "-p", str(pid), "-o", str(self.log), "-e", f"trace=getppid,{calls}", *options],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            while "getppid()" not in self.log.read_text():
                if tracer.poll() is not None:
                    assert tracer.stderr is not None
                    pytest.skip(f"strace may not attach here: {tracer.stderr.read().strip()}")
                time.sleep(0.002)
            os.write(self.go, b"x")
            said = self.line()
        finally:
            tracer.terminate()
            tracer.communicate()
        if said != "worked":
            return {"died": said}, self.seen()
        os.write(self.go, b"x")
        told = self.line()
        if told.startswith("ended"):
            return {"died": told}, self.seen()
        assert self.line() == "ended 0"
        return json.loads(told), self.seen()

    def seen(self) -> str:
        """What strace wrote of the case itself."""
        return "".join(line for line in self.log.read_text().splitlines(True) if "getppid()" not in line)

    def close(self) -> None:
        os.close(self.go)
        os.killpg(self.server.pid, signal.SIGKILL)  # a case that never ends holds the pipe as well
        self.server.communicate()


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Generator[Traced]:
    server = Traced(tmp_path_factory.mktemp("strace"))
    yield server
    server.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", OPERATIONS | ONCE)
def test_every_call_of_an_operation_may_fail(traced: Traced, name: str) -> None:
    told, seen = traced.run(name, ",".join(CALLS))
    assert told == {"error": None, "left": {}} or name == "mremap", told
    by_process = Counter(re.findall(r"^(?:(\d+) +)?(\w+)\(", seen, re.MULTILINE))
    assert by_process, "it makes no call at all"
    made: Counter[str] = Counter()  # strace counts those of each process by themselves
    for (_, call), count in by_process.items():
        made[call] = max(made[call], count)
    for call, count in made.items():
        for nth in range(1, min(count, MOST) + 1):
            for error in ERRORS:
                inject = f"inject={call}:error={error}:when={nth}"
                told, seen = traced.run(name, call, "-e", inject)
                what = f"{name}: {call} number {nth} answering {error}: {told}"
                assert "(INJECTED)" in seen, what
                assert "died" not in told, what
                if told["error"] is not None and told.get("errno") is not None:
                    assert told["errno"] == getattr(errno, error), what
                if call not in UNDOING and name != "mremap":
                    assert not told["left"], what
