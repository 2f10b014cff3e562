"""ring.pml checked by SPIN: every interleaving of whole lives, and one fault put into each rule to see it found."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).with_name("ring.pml")
COMPILER = shutil.which("cc") or shutil.which("gcc")

pytestmark = pytest.mark.skipif(
    not shutil.which("spin") or not COMPILER, reason="spin is not installed: apt-get install spin"
)


def errors(folder: Path, options: str, seconds: float = 240) -> tuple[int, str]:
    """How many errors an exhaustive search finds (it ends at the first), and what it printed."""
    spin = subprocess.run(
        ["spin", "-a", *options.split(), str(MODEL)], cwd=folder, capture_output=True, text=True
    )
    assert spin.returncode == 0, spin.stdout + spin.stderr
    build = [str(COMPILER), "-O2", "-w", "-DSAFETY", "-DVECTORSZ=2048", "-DCOLLAPSE", "-DMEMLIM=4000"]
    subprocess.run([*build, "-o", "pan", "pan.c"], cwd=folder, check=True)
    found = subprocess.run(
        ["./pan", "-m100000", "-n"], cwd=folder, capture_output=True, text=True, timeout=seconds
    ).stdout
    counted = re.search(r"errors: (\d+)", found)
    assert counted, found
    assert "search depth" not in found, found
    assert "out of memory" not in found, found
    assert int(counted[1]) or "Search not completed" not in found, found
    return int(counted[1]), found


@pytest.mark.parametrize(
    "options",
    [
        "-DTOTAL=2",
        "-DTOTAL=2 -DCAPACITY=2",
        "-DTOTAL=3 -DREADERS=1 -DWRITERS=2 -DKILL_WRITER",
        "-DTOTAL=5 -DREADERS=1 -DWRITERS=2 -DCAPACITY=2 -DKILL_WRITER -DKILL_READER",
        "-DTOTAL=3 -DREADERS=1 -DWRITERS=2 -DKILL_WRITER -DKILL_READER -DOVERWRITE",
        "-DTOTAL=2 -DOVERWRITE",
    ],
)
def test_nothing_is_lost_torn_or_waited_for_in_vain(tmp_path: Path, options: str) -> None:
    count, found = errors(tmp_path, options)
    assert not count, found


def test_a_reader_may_die_beside_another(tmp_path: Path, soak: bool) -> None:
    """The largest space; without hours only a flag that counts too little is looked for, and found."""
    count, found = errors(tmp_path, f"-DTOTAL=2 -DKILL_READER -DWAKES={4 if soak else 2}", 3000)
    assert bool(count) != soak, found


@pytest.mark.parametrize(
    "options",
    [
        "-DLATE_CLAIM -DOVERWRITE -DREADERS=1",
        "-DNO_QUESTION -DOVERWRITE -DREADERS=1",
        "-DNO_INTENT",
        "-DNO_LOOK -DREADERS=1",
        "-DNO_EVICTION -DKILL_READER -DREADERS=1",
        "-DFORGETFUL -DOVERWRITE -DKILL_WRITER -DWRITERS=2 -DREADERS=1",
        "-DHASTY -DKILL_WRITER -DREADERS=1",
        "-DPLAIN_FLAG",
        "-DQUIET_ARRIVAL",
    ],
)
def test_each_rule_is_needed(tmp_path: Path, options: str) -> None:
    count, found = errors(tmp_path, options)
    assert count == 1, found
