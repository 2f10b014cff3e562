"""What tests of the native protocol code share: building a hammer, plain or under a sanitizer, and running it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NATIVE = ROOT / "src" / "mirrormap" / "_native"

# a sanitizer preloaded for our own extension is not for the compiler, nor for a program with another
CLEAN = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "ASAN_OPTIONS")}


def build(folder: Path, name: str, sources: list[Path], *options: str) -> str:
    """A program of tests/native with some of the extension's files, or broken copies of them."""
    target = str(folder / name)
    if shutil.which(os.environ.get("CC", "cc")) is None:
        pytest.skip("no C compiler is installed")
    command = [
        os.environ.get("CC", "cc"),
        "-std=c11",
        "-O2",
        "-g",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-error=tsan",
    ]
    files = [str(ROOT / "tests" / "native" / f"{name}.c"), *map(str, sources)]
    command += [*options, f"-I{NATIVE}", *files, "-pthread", "-o", target]
    subprocess.run(command, check=True, capture_output=True, env=CLEAN)
    return target


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    # ThreadSanitizer's shadow does not know where newer kernels put things at random
    fixed = [shutil.which("setarch") or "", "-R"] if shutil.which("setarch") else []
    return subprocess.run(
        [*fixed, *command],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env={**CLEAN, **environment},
    )
