"""CPython's own tests of mmap and SharedMemory and NumPy's of memmap pass on this package's memory, but for what is listed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import PATIENCE_S, SANITIZED

SUITES = Path(__file__).with_name("suites.py")
NEEDED = {"cpython": "test.test_mmap", "numpy": "numpy._core.tests.test_memmap"}
# fewer would mean that a suite was not found, or gave up at its first line
FEWEST = {"test_mmap": 25, "test_shared_memory": 10, "test_memmap": 15, "test_format": 2, "test_io": 3}


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("suite", NEEDED)
def test_suite(suite: str, tmp_path: Path) -> None:
    if SANITIZED:
        pytest.skip("the suites are about behaviour, and run in the ordinary build")
    if not installed(NEEDED[suite]):
        pytest.skip(f"{NEEDED[suite]} is not installed: make others fetches it")
    done = subprocess.run(
        [sys.executable, SUITES, suite], capture_output=True, text=True, cwd=tmp_path, timeout=2 * PATIENCE_S
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for name, outcome in found.items():
        failed = {case: outcome["words"][case] for case in outcome["failed"]}
        assert set(failed) <= set(outcome["explained"]), failed
        assert len(outcome["passed"]) >= FEWEST[name.partition(" ")[0]], outcome
