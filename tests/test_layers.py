"""The architecture, checked: imports point down, and each thing is done in one place."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "mirrormap"

RANK = {
    "_core": 0, "errors": 0, "units": 0, "drawing": 0, "ribbons_page": 0, "lifetime": 0, "dtypes": 0,
    "kernel": 1,
    "procmaps": 2, "protections": 2, "handover": 2, "cgroups": 2,
    "filelock": 3, "procfs": 3, "residency": 3,
    "backing": 4, "pagetables": 4,
    "placement": 5, "cursors": 5, "allocator": 5, "sameness": 5,
    "views": 6, "population": 6, "frames": 6, "portraits": 6, "bell": 6, "members": 6,
    "mapping": 7, "layouts": 7,
    "pages": 8,
    "foreign": 9, "reader": 9, "room": 9, "sender": 9, "receiver": 9,
    "mirror": 10, "channel": 10, "ring": 10, "remap": 10, "arrayfile": 10, "arrays": 10, "aliasing": 10, "inspect": 10,
    "growable": 11, "capabilities": 11, "stitch": 11, "handles": 11, "snapshot": 11, "ribbons": 11,
    "heap": 12,
    "cli": 13,
    "__init__": 14, "__main__": 15,
}  # fmt: skip


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "mirrormap":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("mirrormap."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mirrormap.")}
    return found


def layer(path: Path) -> str:
    return path.parent.name if path.parent != SOURCE else path.stem


FILES = sorted(path for path in SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down_only(path: Path) -> None:
    mine = layer(path)
    for other in imported(path):
        if mine == other and mine in ("cli", "heap", "kernel"):
            continue
        assert RANK[other] < RANK[mine], f"{mine} imports {other}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_are_absolute(path: Path) -> None:
    """A relative import would pass the rule above unseen."""
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"line {node.lineno}"


def test_every_module_has_a_rank() -> None:
    assert {layer(path) for path in FILES} | {"_core"} == set(RANK)


def test_only_kernel_imports_the_extension() -> None:
    assert {layer(path) for path in FILES if "_core" in imported(path)} == {"kernel"}


def test_few_modules_read_proc_and_sys() -> None:
    """procmaps and residency of this process and the machine, procfs and pagetables of any other process,
    cgroups, filelock of who locked a file. A path is a string that begins with it, whether it is opened on the
    spot or kept in a constant; advice and docstrings only mention one. probe() tries the files themselves."""
    holders = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and re.match(r"/(proc|sys)/\S*$", str(node.value)):
                holders.add(layer(path))
    assert holders <= {
        "procmaps",
        "residency",
        "procfs",
        "pagetables",
        "cgroups",
        "filelock",
        "capabilities",
    }, holders


def test_nothing_in_the_package_uses_ctypes() -> None:
    assert not [
        path for path in FILES if re.search(r"^\s*(import|from) ctypes", path.read_text(), re.MULTILINE)
    ]


CALLS = r"\b(mmap|munmap|mremap|mprotect|madvise|msync|memfd_create|ftruncate|fallocate|ioctl|syscall|fcntl|open|close|fstat)\("


def test_system_calls_stand_in_files_that_know_no_python() -> None:
    native = SOURCE / "_native"
    for path in sorted(native.rglob("*.c")):
        code = re.sub(r"/\*.*?\*/|\"[^\"]*\"", "", path.read_text(), flags=re.DOTALL)
        if path.name in ("sys.c", "sys_mount.c"):
            assert "Python.h" not in code
        else:
            assert not re.search(CALLS, code), f"{path.name} makes a system call itself"
    assert "Python.h" not in re.sub(r"/\*.*?\*/", "", (native / "sys.h").read_text(), flags=re.DOTALL)
