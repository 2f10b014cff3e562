"""The one wheel under every Python: installed into a fresh environment each, and tested.

make pythons            every version from 3.11 on: on PATH, under pyenv, else in a root of Debian's; and
                        free-threaded ones, which have a wheel of their own each
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
import elsewhere
from debian import UnavailableError, run
from rich.console import Console
from rich.table import Table

WANTED = ("3.11", "3.12", "3.13", "3.14", "3.15", *elsewhere.FREE_THREADED)
TESTS = ["tests/unit", "tests/model", "tests/kernel"]
# what they compare with may have no wheel for a new Python yet: those tests skip and say so
NEEDED = ["numpy>=2", "rich>=13", "pytest>=9", "hypothesis>=6.150", "pytest-timeout>=2.3", "psutil>=6"]
BUILDING = ["meson-python>=0.18", "meson>=1.4", "ninja"]
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


def prepared(python: Path, wheel: Path, environment: Path) -> None:
    """Make an environment with the package and what its tests import. Raises: UnavailableError."""
    uv = Path(sys.executable).with_name("uv")
    run(uv, "venv", "--quiet", "--python", python, environment)
    path = f"{environment / 'bin'}:{os.environ['PATH']}"
    here = {**os.environ, "VIRTUAL_ENV": str(environment), "PATH": path}
    install = [uv, "pip", "install", "--quiet", "--only-binary", ":all:"]
    run(*install, *NEEDED, env=here)
    if python.name.removeprefix("python") in elsewhere.FREE_THREADED:
        run(*install, *BUILDING, env=here)
        # the stable ABI is not for interpreters without a lock
        options = ["--no-build-isolation", "--no-deps", "-C", "setup-args=-Dpython.allow_limited_api=false"]
        run(uv, "pip", "install", "--quiet", *options, build.ROOT, env=here)
    else:
        run(*install, wheel, env=here)
    for name in COMPARED:
        subprocess.run([*install, name], env=here, capture_output=True, check=False)


def tested(version: str, wheel: Path, tests: list[str]) -> tuple[str, str, str]:
    """Which Python it was, how the tests ended, and the last lines if any failed. Raises: UnavailableError."""
    python = elsewhere.free_threaded(version) if version in elsewhere.FREE_THREADED else interpreter(version)
    if python is None and version in elsewhere.SUITES:
        done = elsewhere.inside(version, wheel, NEEDED, tests)
    elif python is None:
        raise UnavailableError("not on this machine")
    else:
        with tempfile.TemporaryDirectory() as folder:
            environment = Path(folder) / "venv"
            prepared(python, wheel, environment)
            command = [environment / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
            here = {**os.environ, "VIRTUAL_ENV": str(environment)}
            done = subprocess.run(
                command, cwd=build.ROOT, env=here, capture_output=True, text=True, check=False
            )
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-300:]
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR", "SKIPPED"))]
    where = str(python) if python else f"Debian {elsewhere.SUITES[version]}"
    return where, re.sub(r"^=+ | =+$", "", last), "" if done.returncode == 0 else "\n".join(lines) or last


def main() -> int:
    """Test under each and print a table. Returns: 1 if any failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tests", nargs="+", default=TESTS)
    parser.add_argument("--python", nargs="+", default=list(WANTED), choices=WANTED)
    options = parser.parse_args()
    console, wheel = Console(), build.wheel()
    shown = Table("Python", "of", "tests", "seconds", title=wheel.name)
    failed = False
    for version in options.python:
        begun = time.monotonic()
        try:
            with console.status(version):
                where, summary, trouble = tested(version, wheel, options.tests)
        except UnavailableError as error:
            shown.add_row(version, str(error), "", "")
            continue
        failed |= bool(trouble)
        shown.add_row(version, where, summary, f"{time.monotonic() - begun:.0f}")
        if trouble:
            console.print(trouble, markup=False, highlight=False)
    console.print(shown)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
