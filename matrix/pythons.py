"""The one wheel under every Python that is here: installed into a fresh environment each, and tested.

make pythons            every version from 3.11 on that is on PATH or under pyenv
python matrix/pythons.py --tests tests/unit/test_ring.py
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import build
from debian import run
from rich.console import Console
from rich.table import Table

WANTED = ("3.11", "3.12", "3.13", "3.14", "3.15")
TESTS = ["tests/unit", "tests/model", "tests/kernel"]
# what they compare with may have no wheel for a new Python yet: those tests skip and say so
NEEDED = ["numpy>=2", "rich>=13", "pytest>=9", "hypothesis>=6.150", "pytest-timeout>=2.3", "psutil>=6"]
COMPARED = ["matplotlib", "scipy", "pandas"]


def interpreter(version: str) -> Path | None:
    """A working python of that version, if there is one."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places = [*(path / f"python{version}" for path in sorted(pyenv.glob(f"{version}.*/bin"), reverse=True))]
    if found := shutil.which(f"python{version}"):
        places.append(Path(found))
    for place in places:
        asked = subprocess.run([place, "-c", "import venv"], capture_output=True, check=False)
        if asked.returncode == 0:
            return place
    return None


def tested(python: Path, wheel: Path, tests: list[str]) -> tuple[str, str]:
    """How the tests ended, and the last lines if any failed."""
    uv = Path(sys.executable).with_name("uv")
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "venv"
        run(uv, "venv", "--quiet", "--python", python, environment)
        here = {**os.environ, "VIRTUAL_ENV": str(environment)}
        install = [uv, "pip", "install", "--quiet", "--only-binary", ":all:"]
        run(*install, *NEEDED, wheel, env=here)
        for name in COMPARED:
            subprocess.run([*install, name], env=here, capture_output=True, check=False)
        command = [environment / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(command, cwd=build.ROOT, env=here, capture_output=True, text=True, check=False)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-300:]
    summary = re.sub(r"^=+ | =+$", "", last)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR", "SKIPPED"))]
    return summary, "" if done.returncode == 0 else "\n".join(lines)


def main() -> int:
    """Test under each and print a table. Returns: 1 if any failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tests", nargs="+", default=TESTS)
    parser.add_argument("--python", nargs="+", default=list(WANTED), choices=WANTED)
    options = parser.parse_args()
    console, wheel = Console(), build.wheel()
    shown = Table("Python", "tests", "seconds", title=wheel.name)
    failed = False
    for version in options.python:
        python = interpreter(version)
        if python is None:
            shown.add_row(version, "not on this machine", "")
            continue
        begun = time.monotonic()
        with console.status(f"{version}: {python}"):
            summary, trouble = tested(python, wheel, options.tests)
        failed |= bool(trouble)
        shown.add_row(version, summary, f"{time.monotonic() - begun:.0f}")
        if trouble:
            console.print(trouble, markup=False, highlight=False)
    console.print(shown)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
