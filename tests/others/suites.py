"""CPython's test_mmap and test_shared_memory and NumPy's tests of memmap, run on this package's memory.

python tests/others/suites.py cpython|numpy     the last line of the output is JSON: by suite its outcomes
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import adapters

Outcome = dict[str, Any]


# tests that ask for more than the package has, and why it has not
DIFFERENT = {
    "test_madvise": "a Mapping has populate(), discard() and inherit in place of madvise()",
    "test_repr": "a Mapping shows its name, size, address, protection and page size",
}


def new_outcome() -> Outcome:
    return {"status": 0, "passed": [], "failed": [], "skipped": {}, "words": {}, "explained": DIFFERENT}


class Kept(unittest.TestResult):
    """What became of each test, by name; a failing part of a test is the test's."""

    def __init__(self) -> None:
        super().__init__()
        self.outcome = new_outcome()

    def name(self, test: unittest.TestCase) -> str:
        return str(getattr(test, "test_case", test).id()).rpartition(".")[2]

    def addSuccess(self, test: unittest.TestCase) -> None:
        if self.name(test) not in self.outcome["failed"]:
            self.outcome["passed"].append(self.name(test))

    def addError(self, test: Any, err: Any) -> None:
        self.outcome["failed"].append(self.name(test))
        self.outcome["words"][self.name(test)] = f"{err[0].__name__}: {err[1]}"

    addFailure = addError  # noqa: N815

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self.outcome["skipped"][self.name(test)] = reason

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            self.addError(test, err)


def ran(case: type[unittest.TestCase]) -> Outcome:
    """Every test of one class."""
    result = Kept()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    return result.outcome


def test_package() -> None:
    """Have Python's own tests: those installed with it, or the rest of them in MIRRORMAP_TESTSUITE, a folder."""
    if folder := os.environ.get("MIRRORMAP_TESTSUITE"):
        sys.path.append(folder)
        importlib.import_module("test").__path__.append(f"{folder}/test")
    importlib.import_module("test.test_mmap")


def of_mmap(route: str) -> Outcome:
    """test_mmap with memory made as `route` says."""
    module = importlib.reload(importlib.import_module("test.test_mmap"))
    module.mmap = adapters.as_module(route)  # type: ignore[attr-defined]
    return ran(module.MmapTests)


def of_shared_memory() -> Outcome:
    """Every test of SharedMemory and what is built on it, between forked processes."""
    from multiprocessing import managers, shared_memory

    from test import _test_multiprocessing as module

    shared_memory.SharedMemory = managers.shared_memory.SharedMemory = adapters.SharedMemory  # type: ignore[misc,assignment,attr-defined]
    found: dict[str, Any] = {"__name__": __name__}
    module.install_tests_in_module_dict(found, "fork")
    (case,) = (value for name, value in found.items() if name.endswith("ProcessesTestSharedMemory"))
    found["setUpModule"]()
    try:
        return ran(case)
    finally:
        found["tearDownModule"]()


def cpython() -> dict[str, Outcome]:
    test_package()
    version = ".".join(map(str, sys.version_info[:3]))
    return {
        f"test_mmap {version} on Pages": of_mmap(""),
        f"test_mmap {version} on a mirror": of_mmap(adapters.MIRRORED),
        f"test_shared_memory {version} on Pages": of_shared_memory(),
    }


class Plugin:
    """Counts what pytest reports."""

    def __init__(self) -> None:
        self.outcome = new_outcome()

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid.partition("::")[2]
        if report.skipped:
            self.outcome["skipped"][name] = str(report.longrepr[2] if report.longrepr else "").removeprefix(
                "Skipped: "
            )
        elif report.failed:
            self.outcome["failed"].append(name)
            self.outcome["words"][name] = str(report.longrepr.reprcrash.message).splitlines()[0]
        elif report.when == "call":
            self.outcome["passed"].append(name)


NUMPY = {"test_memmap": ("numpy._core.tests.test_memmap", ""), "test_format": ("numpy.lib.tests.test_format", "memmap or mmap"),
         "test_io": ("numpy.lib.tests.test_io", "memmap or mmap")}  # fmt: skip


def numpy() -> dict[str, Outcome]:
    import numpy as np
    import pytest

    found = {}
    for route, words in (("", "Pages"), (adapters.MIRRORED, "a mirror")):
        sys.modules["mmap"] = adapters.as_module(route)
        for name, (module, chosen) in NUMPY.items():
            plugin = Plugin()
            options = [
                "-q",
                "-p",
                "no:cacheprovider",
                "--pyargs",
                module,
                *(["-k", chosen] if chosen else []),
            ]
            with contextlib.redirect_stdout(sys.stderr):
                pytest.main(options, plugins=[plugin])
            found[f"{name} {np.__version__} on {words}"] = plugin.outcome
    return found


SUITES: dict[str, Callable[[], dict[str, Outcome]]] = {"cpython": cpython, "numpy": numpy}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with tempfile.TemporaryDirectory(prefix="mirrormap-others-") as folder, contextlib.chdir(folder):
        print(json.dumps(SUITES[sys.argv[1]]()))
