"""One boot: a kernel, a root and a folder of work in QEMU, without KVM, disk or network."""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from debian import run

HERE = Path(__file__).parent

# by Debian's name of the architecture: the program and its machine, the console, where output goes; without
# AVX, since QEMU 7.2's makes NumPy sort wrongly
MACHINES = {
    "amd64": ("qemu-system-x86_64 -M q35 -cpu max,-avx,-avx2 -serial null -serial", "ttyS0"),
    "arm64": ("qemu-system-aarch64 -M virt -cpu max,pauth-impdef=on -serial", "ttyAMA0"),
    "ppc64el": ("qemu-system-ppc64 -M pseries -cpu power9 -vga none -serial", "hvc0"),
    "s390x": ("qemu-system-s390x -M s390-ccw-virtio -cpu max -serial", "ttyS0"),
}


@dataclass(frozen=True)
class Outcome:
    """What a guest said.

    Attributes:
        status: the command's exit status; None when the guest died or did not end in time.
        output: everything the command wrote. seconds: the boot and the shutdown included.
    """

    status: int | None
    output: str
    seconds: float


def version(arch: str) -> str:
    """QEMU's, as 7.2.22."""
    said = run(shlex.split(MACHINES[arch][0])[0], "--version")
    found = re.search(r"version ([\d.]+)", said)
    return found[1] if found else said


def overlay(work: Path, command: str, archive: Path) -> None:
    """The init, the command and the work at /t, as a cpio archive to follow the root's."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        tree.chmod(0o755)  # it becomes the root of the guest, where others than root work too
        run("cp", "-a", work, tree / "t")
        (tree / "command").write_text(command + "\n")
        run("install", "-m", "755", HERE / "init.sh", tree / "init")
        run("bash", "-c", f"find . | cpio -o -H newc --quiet > {archive}", cwd=tree)


def boot(
    kernel: Path,
    root: Path,
    arch: str,
    work: Path,
    command: str,
    *,
    memory_mib: int = 3072,
    append: str = "",
    timeout: float = 4 * 3600,
    watch: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Run a shell command in the folder `work` under a kernel.

    Args: watch: called every second with what the command has written so far.
    """
    program, console = MACHINES[arch]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        output = folder / "output"
        overlay(work, command, folder / "overlay.cpio")
        with (folder / "initrd").open("wb") as initrd:
            subprocess.run(["cat", root, folder / "overlay.cpio"], stdout=initrd, check=True)
        # nowatchdog: a busy host may let an emulated processor wait for longer than one takes for a lockup
        words = [
            "setpriv", "--pdeathsig", "KILL",  # who starts it may be killed
            *shlex.split(program), f"file:{output}", "-accel", "tcg,thread=multi", "-smp", "2", "-m", str(memory_mib),
            "-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot", "-kernel", str(kernel),
            "-initrd", str(folder / "initrd"),
            "-append", f"console={console} quiet loglevel=3 panic=-1 nowatchdog rdinit=/init {append}",
        ]  # fmt: skip
        begun = time.monotonic()
        trouble = ran(words, output, timeout, watch)
        if "@@BEGIN@@" not in text_of(output) and time.monotonic() - begun < timeout:
            # on a busy machine an emulated timer may come too late for a kernel that is starting
            trouble = ran(words, output, timeout, watch)
        said = text_of(output)
        status = re.search(r"^@@STATUS (\d+)@@$", said, re.MULTILINE)
        text = written(output) if status else f"{said[-2000:]}\n{trouble[-2000:]}"
        return Outcome(int(status[1]) if status else None, text, time.monotonic() - begun)


def ran(words: list[str], output: Path, timeout: float, watch: Callable[[str], None]) -> str:
    """Run QEMU to its end or out of time. Returns: what it complained of."""
    begun = time.monotonic()
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as machine:
        while machine.poll() is None:
            time.sleep(1)
            watch(written(output))
            if time.monotonic() - begun > timeout:
                machine.kill()
        return machine.stderr.read().decode(errors="replace") if machine.stderr else ""


def text_of(output: Path) -> str:
    """All that came over the line."""
    return output.read_text(errors="replace").replace("\r", "") if output.exists() else ""


def written(output: Path) -> str:
    """What the command wrote, without what firmware and kernel say before and after."""
    _, begun, text = text_of(output).rpartition("@@BEGIN@@\n")
    return re.split(r"^@@STATUS", text, flags=re.MULTILINE)[0] if begun else ""
