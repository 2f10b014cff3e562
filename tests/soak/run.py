"""make soak: every public object under random operations in several processes, with all that can go wrong.

    make soak                         an hour, with a seed that is printed
    make soak SECONDS=600 SEED=1      ten minutes of that seed
    make soak SEED=1 EPISODE=calm/0/3/17   one episode again, alone: its operations are those of its seed

Processes of three roles act (worker.py): calm ones do everything, pressed ones live in a memory cgroup that
somebody else eats from, huge ones share a pool of huge pages that is too small. This process kills them with
SIGKILL, stops them, and storms them with signals; after each death it looks for what was left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent)]

import pressure  # noqa: E402
import pytest  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

import hammer  # noqa: E402
from support import default_huge_nbytes, reserved  # noqa: E402

LIMIT_NBYTES = 3 << 29  # of the cgroup of pressed workers
HUGE_PAGES = 12
TOKEN = "MIRRORMAP_SOAK"


class SoakError(Exception):
    """Something was found: what, and how to see it again."""


def processes(token: str) -> Iterator[int]:
    """Everyone whose environment holds the token, the dead that nobody has waited for left out."""
    wanted = f"{TOKEN}={token}".encode()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    yield int(name)


def waited_ns(token: str) -> dict[str, int]:
    """How long each thread of these processes has waited for a processor so far."""
    waited = {}
    for pid in processes(token):
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                waited[str(path)] = int(path.read_text().split()[1])
    return waited


class Worker:
    """One role's place: a process, and the next when that has died."""

    def __init__(self, soak: Soak, role: str, number: int) -> None:
        self.soak, self.role, self.number = soak, role, number
        self.name = f"{role}/{number}"
        self.token = f"{soak.token}-{role}-{number}"
        self.folder = soak.folder / f"{role}-{number}"
        self.life = -1
        self.start()

    def start(self) -> None:
        self.life += 1
        self.episode, self.act, self.killed, self.stopped = 0, "", False, False
        self.heard = time.monotonic()
        self.until = math.inf  # killed then
        options = self.soak.options
        left = max(0.0, self.soak.until - self.heard)
        self.errors = open(self.soak.folder / f"{self.role}-{self.number}.errors", "w+")  # noqa: SIM115
        group = self.soak.group if self.role == "pressed" else None
        self.process = subprocess.Popen(
            [
                sys.executable, str(HERE / "worker.py"), "--role", self.role, "--folder", self.folder,
                "--seed", str(options.seed), "--number", str(self.number), "--life", str(self.life),
                "--seconds", str(left),
            ],
            stdout=subprocess.PIPE, stderr=self.errors,
            env={**os.environ, TOKEN: self.token}, preexec_fn=group.join if group else None,  # noqa: PLW1509 - no threads here
        )  # fmt: skip
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.rest = b""
        self.soak.selector.register(self.process.stdout, selectors.EVENT_READ, self)

    def hear(self) -> None:
        """Take what it says; an end of what it says is its death."""
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            told = json.loads(line)
            self.heard = time.monotonic()
            if self.until == math.inf:
                self.until = self.heard + self.soak.chance.expovariate(1 / 60)
            if "begun" in told:
                self.episode, self.act = told["begun"], told["act"]
            else:
                self.soak.acts[self.act] += 1
                self.soak.refused += told["refused"]
                self.soak.felt[self.name, self.life] = told["signals"]
        if not data:
            self.died()

    def died(self) -> None:
        """Its process has ended: was it to be? Nothing of it may be there any more."""
        self.soak.selector.unregister(self.process.stdout)
        assert self.process.stdout is not None
        self.process.stdout.close()
        status = self.process.wait()
        self.nothing_is_left()
        by_kernel = status == -signal.SIGKILL and not self.killed and self.role == "pressed"
        self.soak.kernel_kills += by_kernel
        told = self.soak.group.kills if self.soak.group else 0
        if (status != 0 and not self.killed and not by_kernel) or self.soak.kernel_kills > told:
            raise SoakError(f"{self.where()} ended with {status}:\n{self.said()}")
        self.errors.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        if status != 0 and time.monotonic() < self.soak.until:
            self.start()

    def nothing_is_left(self) -> None:
        """Its children die with it, whoever killed it."""
        limit = time.monotonic() + 60
        while left := list(processes(self.token)):
            if time.monotonic() > limit:
                raise SoakError(f"{self.where()} left processes behind: {left}")
            time.sleep(0.05)

    def said(self) -> str:
        self.errors.seek(0)
        return self.errors.read()[-6000:]

    def where(self) -> str:
        episode = f"{self.name}/{self.life}/{self.episode}"
        return f"{self.act} (make soak SEED={self.soak.options.seed} EPISODE={episode})"

    def is_stuck(self) -> bool:
        if time.monotonic() - self.heard < self.soak.options.patience:
            return False
        before = waited_ns(self.token)
        time.sleep(2)
        # on a busy machine the lowest priority may get no processor for minutes: who waits for one hangs nowhere
        return all(now - before.get(task, now) < 5e8 for task, now in waited_ns(self.token).items())

    def show_stacks(self) -> str:
        """Where each thread of a process that hangs is."""
        for pid in processes(self.token):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)
        with contextlib.suppress(OSError):
            self.process.send_signal(signal.SIGUSR2)
        time.sleep(3)
        return self.said()


class Soak:
    """The whole: workers, the trouble they are in, and what was counted."""

    def __init__(self, options: argparse.Namespace, folder: Path, group: pressure.Cgroup | None) -> None:
        self.options, self.folder, self.group = options, folder, group
        self.chance = random.Random(f"{options.seed}/conductor")
        self.token = secrets.token_hex(8)
        self.begun = time.monotonic()
        self.until = self.begun + options.seconds
        self.selector = selectors.DefaultSelector()
        self.acts: Counter[str] = Counter()
        self.trouble: Counter[str] = Counter()
        self.felt: dict[tuple[str, int], int] = {}
        self.last = ""
        self.refused = 0
        self.kernel_kills = 0  # of workers; it may choose their children, too
        self.workers: list[Worker] = []

    def run(self, roles: list[str], console: Console, eater: pressure.Eater | None) -> None:
        """Until the time is over and everybody has ended. Raises: SoakError."""
        self.workers = [Worker(self, role, number) for number, role in enumerate(roles)]
        shown = 0.0
        try:
            with console.status("") as status:
                while self.selector.get_map():
                    for key, _ in self.selector.select(timeout=0.05):
                        key.data.hear()
                    if time.monotonic() < self.until:
                        self.disturb()
                        if eater is not None:
                            eater.go_on()
                    for worker in self.workers:
                        if worker.process.returncode is None and worker.is_stuck():
                            raise SoakError(f"{worker.where()} hangs:\n{worker.show_stacks()}")
                    status.update(self.summary())
                    if not console.is_terminal and time.monotonic() - shown > 60:
                        shown = time.monotonic()
                        console.print(self.summary(), highlight=False)
        finally:
            for worker in self.workers:
                worker.process.kill()
                worker.process.wait()

    def summary(self) -> str:
        elapsed = time.monotonic() - self.begun
        trouble = ", ".join(f"{count:,} {what}" for what, count in sorted(self.trouble.items()))
        return (
            f"{elapsed:,.0f} of {self.options.seconds:,.0f} s: {sum(self.acts.values()):,} acts, {trouble}, "
            f"{self.refused:,} refusals, {self.group.kills if self.group else 0} kills for memory"
        )

    def disturb(self) -> None:
        """A little of what happens to processes: kill -9, SIGSTOP and SIGCONT, hundreds of signals."""
        living = [worker for worker in self.workers if worker.process.poll() is None and not worker.killed]
        for worker in living:
            if time.monotonic() > worker.until:
                worker.killed = True
                self.trouble["kills"] += 1
                worker.process.kill()
        living = [worker for worker in living if not worker.killed]
        if not living or self.chance.random() > 0.2:
            return
        worker = self.chance.choice(living)
        one = self.chance.choice(list(processes(worker.token)) or [worker.process.pid])
        with contextlib.suppress(OSError), pidfd(one, worker.token) as fd:
            if self.chance.random() < 0.3:
                self.trouble["stops"] += 1
                signal.pidfd_send_signal(fd, signal.SIGSTOP)
                time.sleep(self.chance.uniform(0, 0.05))
                signal.pidfd_send_signal(fd, signal.SIGCONT)
                return
            if not handles(one):
                return
            for _ in range(self.chance.randint(1, 300)):
                signal.pidfd_send_signal(fd, self.chance.choice([signal.SIGUSR1, signal.SIGALRM]))
                self.trouble["signals"] += 1
                time.sleep(self.chance.choice([0, 0, 0, 1e-4, 1e-3]))


@contextlib.contextmanager
def pidfd(pid: int, token: str) -> Iterator[int]:
    """A descriptor of a process that certainly is one of ours: its number may be a stranger's by now."""
    fd = os.pidfd_open(pid)
    try:
        if pid not in set(processes(token)):
            raise ProcessLookupError(pid)
        yield fd
    finally:
        os.close(fd)


def handles(pid: int) -> bool:
    """Does a process handle the signals of a storm? Programs that act run do not, nor one that just begins."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return all(caught >> number - 1 & 1 for number in (signal.SIGUSR1, signal.SIGALRM))


def build_hammer(folder: Path) -> None:
    """The program of one of the acts, once for all who act; none without a compiler."""
    if shutil.which(os.environ.get("CC", "cc")) is not None:
        files = [hammer.NATIVE / name for name in ("cursors.c", "frames.c", "groups.c")]
        hammer.build(folder, "hammer_channel", files)


def names_in_shm() -> set[str]:
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


def soaked(options: argparse.Namespace, console: Console) -> Soak:
    """Run it and look at what is left of it all. Raises: SoakError."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mirrormap-soak-")))
        group = stack.enter_context(pressure.limited(LIMIT_NBYTES))
        eater = None
        roles = ["calm"] * options.workers
        if group is None:
            console.print("no memory pressure: no memory cgroup can be made here")
        else:
            roles += ["pressed"] * 2
            eater = pressure.Eater(group, options.seed)
            stack.callback(eater.stop)
        if options.huge:
            try:
                stack.enter_context(reserved(default_huge_nbytes(), HUGE_PAGES))
                roles += ["huge"] * 2
            except pytest.skip.Exception as why:
                console.print(f"no huge pages: {why}", highlight=False)
        before = names_in_shm()
        build_hammer(folder)
        soak = Soak(options, folder, group)
        soak.run(roles, console, eater)
        if strangers := [name for name in names_in_shm() - before if "psm_" not in name]:
            raise SoakError(f"names are left in /dev/shm: {strangers}")
        if eater is not None and group is not None:
            eater.stop()
            if group.shared_nbytes:
                raise SoakError(f"{group.shared_nbytes:,} bytes of shared memory outlived all who held it")
        soak.last = soak.summary()
    return soak


def again(options: argparse.Namespace) -> int:
    """One episode, with this terminal for its output. Returns: its status."""
    role, number, life, episode = options.episode.split("/")
    with tempfile.TemporaryDirectory(prefix="mirrormap-soak-") as folder:
        build_hammer(Path(folder))
        command = [
            sys.executable, HERE / "worker.py", "--role", role, "--folder", Path(folder) / "again", "--seed", options.seed,
            "--number", number, "--life", life, "--episode", episode,
        ]  # fmt: skip
        return subprocess.run([str(word) for word in command], check=False).returncode


def main() -> int:
    """Returns: 0, or 1 with what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--workers", type=int, default=3, help="calm ones")
    parser.add_argument("--huge", action=argparse.BooleanOptionalAction, default=os.geteuid() == 0)
    parser.add_argument(
        "--patience",
        type=float,
        default=600,
        help="seconds that one act may take, if a processor is to be had",
    )
    parser.add_argument("--episode")
    options = parser.parse_args()
    options.seed = secrets.randbelow(1 << 31) if options.seed is None else options.seed
    console = Console()
    console.print(f"seed {options.seed}", highlight=False)
    if options.episode:
        return again(options)
    try:
        soak = soaked(options, console)
    except SoakError as error:
        console.print(str(error), markup=False, highlight=False)
        return 1
    table = Table("act", "times", title=soak.last)
    for act, count in sorted(soak.acts.items()):
        table.add_row(act, f"{count:,}")
    console.print(table)
    console.print(f"nothing was found with seed {options.seed}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
