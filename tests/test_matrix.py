"""The matrix counts what its guests report, and writes down what whole cells ended with."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

MATRIX = Path(__file__).parents[1] / "matrix"
REPORT = """<testsuites><testsuite time="90.5">
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
    for name in ("run", "build", "debian", "guest", "cells", "record"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import run

    return run


def test_failures_and_errors_are_counted(run: ModuleType) -> None:
    counts = run.counted(REPORT)
    assert [counts[what] for what in ("passed", "failed", "skipped")] == [1, 2, 1]
    assert counts["failures"] == ["tests.a::fails: assert 1 == 2", "tests.a::cannot_start: failed on setup"]
    assert counts["skips"] == {"no huge pages": 1}
    assert counts["seconds"] == 90.5


def test_a_report_is_found_between_its_marks(run: ModuleType) -> None:
    output = f"@@JUNIT root@@\n{REPORT}\n@@END@@\nmore\n@@JUNIT user@@\n<x/>\n@@END@@\n"
    assert run.part(output, "JUNIT root") == REPORT
    assert run.part(output, "JUNIT user") == "<x/>"
    assert run.part(output, "JUNIT nobody") == ""
    assert run.part("@@JUNIT root@@\n\n@@END@@\n", "JUNIT root") == "", (
        "nothing, of an interpreter that crashed"
    )


def test_the_last_result_of_a_whole_cell_makes_the_page(run: ModuleType, tmp_path: Path) -> None:
    record: Any = run.record
    record.KEPT, record.PAGE = tmp_path / "last.json", tmp_path / "matrix.md"
    cell = run.CELLS[1]
    counts = run.counted(REPORT)
    result = {
        "cell": cell.name, "kernel": "6.1.0-50", "python": "3.11.2, 2.4.0", "qemu": "7.2.22", "date": "2026-11-26",
        "effort": 0.1, "routes": {"page_size": 1 << 12, "huge_pools": {"2097152": 64, "1073741824": 0}},
        "runs": {"root": counts, "user": counts},
    }  # fmt: skip
    record.kept(result)
    later = {
        **result,
        "cell": run.CELLS[0].name,
        "kernel": "5.10.0",
        "runs": {"root": counts | {"failures": []}},
    }
    record.kept(later)
    record.kept({**result, "date": "2026-11-27", "runs": {"root": counts}})
    page = record.PAGE.read_text()
    line = (
        "| 6.1.0-50 | amd64 | 4 KiB, 2 MiB | 3.11.2, 2.4.0 | 7.2.22 | 2026-11-{} | 0.1 | {} | 1 | 2 | 1 | 2 |"
    )
    assert page.count(line.format(27, "root")) == 1, "the last of those as root"
    assert page.count(line.format(26, "user")) == 1, "a user's run stays when root's was made anew"
    assert page.count(" | root | ") == 2
    assert page.index("5.10.0") < page.index("6.1.0-50"), "in the order of the cells"
    assert f"| no huge pages | {run.CELLS[0].name} root; {cell.name} root; {cell.name} user |" in page
    assert f"| tests.a::fails: assert 1 == 2 | {cell.name} root; {cell.name} user |" in page


def test_what_a_skip_says_stays_in_its_cell_of_the_table(run: ModuleType) -> None:
    assert run.record.escaped("a|b\nc_d `e`") == r"a\|b c\_d \`e\`"


def test_the_page_of_the_documentation_is_that_of_the_last_results(run: ModuleType) -> None:
    assert run.record.PAGE.read_text() == run.record.page(run.record.last())
