"""The matrix counts what its guests report, and its caches do not share a name."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

MATRIX = Path(__file__).parents[1] / "matrix"
REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="passes"/>
<testcase classname="tests.a" name="fails"><failure message="assert 1 == 2">long</failure></testcase>
<testcase classname="tests.a" name="cannot_start"><error message="failed on setup"/></testcase>
<testcase classname="tests.a" name="skips"><skipped message="no huge pages"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """matrix/run.py, which finds its neighbours by the folder it is in."""
    if not MATRIX.is_dir():
        pytest.skip("the matrix itself is not in a guest")
    monkeypatch.syspath_prepend(str(MATRIX))
    for name in ("run", "build", "debian", "guest", "cells"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import run

    return run


def test_failures_and_errors_are_counted(run: ModuleType) -> None:
    counts = run.counted(REPORT)
    assert [counts[what] for what in ("passed", "failed", "skipped")] == [1, 2, 1]
    assert counts["failures"] == ["tests.a::fails: assert 1 == 2", "tests.a::cannot_start: failed on setup"]
    assert counts["skips"] == {"no huge pages": 1}


def test_a_report_is_found_between_its_marks(run: ModuleType) -> None:
    output = f"@@JUNIT root@@\n{REPORT}\n@@END@@\nmore\n@@JUNIT user@@\n<x/>\n@@END@@\n"
    assert run.part(output, "JUNIT root") == REPORT
    assert run.part(output, "JUNIT user") == "<x/>"
    assert run.part(output, "JUNIT nobody") == ""
