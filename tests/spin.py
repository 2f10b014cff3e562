"""What tests of SPIN models share: an exhaustive search, and how many errors it found."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

COMPILER = shutil.which("cc") or shutil.which("gcc")

needs_spin = pytest.mark.skipif(
    not shutil.which("spin") or not COMPILER, reason="spin is not installed: apt-get install spin"
)


def errors(model: Path, folder: Path, options: str, seconds: float = 240) -> tuple[int, str]:
    """How many errors an exhaustive search finds (it ends at the first), and what it printed."""
    spin = subprocess.run(
        ["spin", "-a", *options.split(), str(model)], cwd=folder, capture_output=True, text=True
    )
    assert spin.returncode == 0, spin.stdout + spin.stderr
    try:  # most searches last less than their optimisation
        found = searched(folder, "-O0", 4)
    except subprocess.TimeoutExpired:
        found = searched(folder, "-O2", seconds)
    counted = re.search(r"errors: (\d+)", found)
    assert counted, found
    assert "search depth" not in found, found
    assert "out of memory" not in found, found
    assert int(counted[1]) or "Search not completed" not in found, found
    return int(counted[1]), found


def searched(folder: Path, level: str, seconds: float) -> str:
    """What the model's verifier printed. Raises: subprocess.TimeoutExpired."""
    build = [str(COMPILER), level, "-w", "-DSAFETY", "-DVECTORSZ=2048", "-DCOLLAPSE", "-DMEMLIM=4000"]
    subprocess.run([*build, "-o", "pan", "pan.c"], cwd=folder, check=True)
    return subprocess.run(
        ["./pan", "-m100000", "-n"], cwd=folder, capture_output=True, text=True, timeout=seconds
    ).stdout


def holds(model: Path, folder: Path, options: str, seconds: float = 240) -> None:
    """No interleaving breaks it."""
    count, found = errors(model, folder, options, seconds)
    assert not count, found


def is_broken(model: Path, folder: Path, options: str) -> None:
    """A fault was put in, and some interleaving shows it."""
    count, found = errors(model, folder, options)
    assert count == 1, found


def holds_in_hours(model: Path, folder: Path, options: str, soak: bool) -> None:
    """A space that takes minutes: without hours it is left to `make soak`."""
    if not soak:
        pytest.skip("minutes of search: --soak runs it")
    holds(model, folder, options, 3000)
