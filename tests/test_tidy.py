"""Style rules that a machine can keep."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "mirrormap"
PYTHON = sorted(SOURCE.rglob("*.py"))
NATIVE = sorted((SOURCE / "_native").rglob("*.[ch]"))


def tracked() -> list[Path]:
    if shutil.which("git") is None:
        pytest.skip("git is not installed: nothing says which files belong to the project")
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout: nothing says which files belong to the project")
    return [ROOT / name for name in listing.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize("path", [*PYTHON, *NATIVE], ids=lambda path: path.name)
def test_files_are_small_enough_to_hold_in_the_head(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.name)
def test_functions_are_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False) or ""
            length = (node.end_lineno or 0) - node.lineno + 1 - len(docstring.splitlines())
            assert length <= 70, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", NATIVE, ids=lambda path: path.name)
def test_c_functions_are_short(path: Path) -> None:
    bodies = re.findall(r"^(\w[^\n;]*\([^;{]*\)\n\{\n.*?^\}$)", path.read_text(), re.MULTILINE | re.DOTALL)
    for body in bodies:
        assert body.count("\n") < 60, body.splitlines()[0]
    assert bodies or path.suffix == ".h" or path.name == "module.c"


def test_a_free_threaded_build_has_a_front_for_every_function() -> None:
    """guard.c takes them out of pools; where one is too small, such a build cannot be imported."""
    guard = (SOURCE / "_native" / "guard.c").read_text()
    few, many = (int(count) for count in re.findall(r"(?:FEW|MANY)_COUNT = (\d+)", guard))
    text = "\n".join(path.read_text() for path in NATIVE if path.name != "guard.c")
    slots = [
        word for names in re.findall(r"case (Py_.*?): return", guard) for word in re.findall(r"Py_\w+", names)
    ]
    assert len(slots) >= 10
    for slot in slots:
        assert len(re.findall(rf"{{{slot},", text)) <= few // (
            2 if slot in ("Py_tp_repr", "Py_tp_hash") else 1
        ), slot
    # a garbage collection has every other thread stand still; the others are no functions, or made of some
    harmless = {"Py_tp_traverse", "Py_tp_doc", "Py_tp_members", "Py_tp_methods", "Py_tp_getset"}
    used = set(re.findall(r"{(Py_(?:tp|sq|mp|nb|bf|am)_\w+),", text))
    assert used - set(slots) - harmless == set(), "guard.c takes no lock in front of these"
    methods = re.findall(r"\b(METH_\w+(?: \| METH_\w+)*)", text)
    assert 100 < len(methods) <= many
    assert sum(how.endswith("METH_KEYWORDS") for how in methods) <= few


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.name)
def test_no_variable_is_called_size(path: Path) -> None:
    """nbytes, count and index are different words."""
    names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
    assert "size" not in names or path.name in ("units.py", "procmaps.py", "capabilities.py", "backing.py")


def test_no_page_size_is_written_as_a_number() -> None:
    sums = {"test_units.py", "test_tidy.py", "test_demo_heap.py"}  # of numbers that are given
    for path in [*PYTHON, *(path for path in (ROOT / "tests").rglob("*.py") if path.name not in sums)]:
        numbers = {
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, int)
        }
        assert not numbers & {4096, 2 << 20, *([65536] if path in PYTHON else [])}, path.name


def test_the_project_names_no_machine_and_no_registry() -> None:
    words = "|".join(("/ro" + "ot/", "/ho" + "me/", "/wo" + "rk/", "py" + "pi\\.org", "python" + "hosted"))
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        assert not re.search(words, text), path
