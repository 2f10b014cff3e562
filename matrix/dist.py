"""make dist: the sdist and a manylinux wheel each for x86-64 and aarch64, installed and tried where no compiler is.

Wheels are of the stable ABI, so one serves every Python from 3.11 on. The foreign one is cross-built, and
both are tried in a guest that has a Debian, a Python and nothing else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import build
import debian
import guest
from cells import CELLS
from debian import run
from rich.console import Console
from run import fetched

DIST = build.ROOT / "dist"
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
SMOKE = """
export PYTHONPATH=/t/site NO_COLOR=1
python3 -m mirrormap --version && python3 -m mirrormap check && python3 -m mirrormap demo &&
python3 -c "
import numpy as np, mirrormap as mm
ring = mm.Ring(1000, 'i4'); ring.extend(range(1500)); assert ring.latest(1000)[-1] == 1499
array = mm.share(np.arange(10)); mm.mirror(array)[3] = 7; assert array[3] == 7
" && ! command -v cc gcc clang
"""


def sdist_and_wheel() -> None:
    """Into a fresh dist/."""
    shutil.rmtree(DIST, ignore_errors=True)
    uv = Path(sys.executable).with_name("uv")
    run(uv, "build", "--quiet", "--sdist", "--no-build-isolation", "--out-dir", DIST, build.ROOT)
    with tempfile.TemporaryDirectory() as folder:
        for arch, machine in MACHINES.items():
            out = Path(folder) / arch
            options: list[str | Path] = []
            environment = {**os.environ}
            if build.COMPILERS[arch] is not None:
                cross = build.cross_file(arch)
                options = ["-C", f"setup-args=--cross-file={cross}"]
                environment["_PYTHON_HOST_PLATFORM"] = f"linux-{machine}"
            command = [uv, "build", "--quiet", "--wheel", "--no-build-isolation", *options]
            # from the sdist: what is shipped is what is built
            run(*command, "--out-dir", out, next(DIST.glob("*.tar.gz")), env=environment)
            repaired(next(out.glob("*.whl")))


def repaired(wheel: Path) -> None:
    """The wheel with the manylinux tag that its symbols allow. Raises: UnavailableError."""
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", DIST, wheel)


def tried(arch: str) -> str:
    """What the wheel's smoke test says on its own machine. Raises: UnavailableError."""
    cell = next(cell for cell in CELLS if cell.arch == arch and cell.kernel == "6.12")
    kernel, root, _ = fetched(cell)
    (wheel,) = DIST.glob(f"*{MACHINES[arch]}.whl")
    uv = Path(sys.executable).with_name("uv")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        install = [uv, "pip", "install", "--quiet", "--only-binary", ":all:", "--target", work / "site"]
        platform = ["--python-platform", f"{MACHINES[arch]}-manylinux_2_36", "--python-version", cell.python]
        run(*install, *platform, f"{wheel}[demo]")
        outcome = guest.boot(kernel, root, arch, work, SMOKE)
    if outcome.status != 0:
        raise debian.UnavailableError(f"{wheel.name}: {outcome.output[-3000:]}")
    return outcome.output


def main() -> int:
    """Build, check and try. Returns: 0, or 1 with what went wrong."""
    console = Console()
    try:
        with console.status("sdist and wheels"):
            sdist_and_wheel()
        for path in sorted(DIST.glob("mirrormap-*")):
            console.print(f"{path.stat().st_size:>10,}  {path.name}", highlight=False)
        for arch in MACHINES:
            with console.status(f"{arch}: installed and tried"):
                output = tried(arch)
            console.print(f"{arch}: {output.splitlines()[0]}: installed, checked and demonstrated")
    except (debian.UnavailableError, subprocess.CalledProcessError, StopIteration) as error:
        console.print(f"make dist: {error}", markup=False, highlight=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
