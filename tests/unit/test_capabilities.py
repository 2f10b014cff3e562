"""probe(): every answer is checked against what then really happens."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import seccomp
from mirrormap import Capabilities, Pages, mirror, probe, procmaps
from support import PATIENCE_S, reserved


def test_this_machine_mirrors_and_the_probe_says_so() -> None:
    found = probe()
    assert isinstance(found, Capabilities)
    assert found.works
    assert found.mirror_shared
    assert found.mirror_file
    assert found.page_size == mmap.PAGESIZE


def test_every_missing_thing_comes_with_its_cure() -> None:
    for check in probe().checks:
        assert check.detail
        assert check.ok or check.cure, check.name


def test_huge_pages_are_reported_as_they_are(huge: int) -> None:
    found = probe()
    assert found.huge_pools[huge] >= 16
    assert found.mirror_hugetlb
    with Pages(huge, page_size=huge) as pages, pages.map() as view, view.mirror() as other:
        other.array()[5] = 9
        assert view.array()[5] == 9


def test_a_gigantic_page_is_mirrored_but_not_taken() -> None:
    giga = 1 << 30
    with reserved(giga, 1), ThreadPoolExecutor(1) as pool:
        if any(procmaps.huge_pool(size).available for size in procmaps.huge_sizes() if size < giga):
            pytest.skip("this machine keeps smaller huge pages reserved")
        free = {procmaps.huge_pool(giga).free}
        future = pool.submit(probe)
        while not future.done():
            free.add(procmaps.huge_pool(giga).free)
        assert future.result().mirror_hugetlb
        assert min(free) == procmaps.huge_pool(giga).free


def test_an_empty_pool_is_no_and_names_the_command() -> None:
    found = probe()
    if any(found.huge_pools.values()):
        pytest.skip("this machine keeps huge pages reserved")
    assert not found.mirror_hugetlb
    needed = "nr_hugepages" if found.huge_pools else "CONFIG_HUGETLBFS"
    assert any(needed in check.cure for check in found.checks)


def test_map_files_agrees_with_privilege() -> None:
    status = Path("/proc/self/status").read_text()
    effective = int(status.split("CapEff:")[1].split()[0], 16)
    admin, restore = effective >> 21 & 1, effective >> 40 & 1
    if not (admin or restore):
        assert not probe().map_files
    elif os.readlink("/proc/self/ns/user") == "user:[4026531837]":
        assert probe().map_files


def test_counts_are_those_of_the_process() -> None:
    found = probe()
    assert 0 < found.map_count < found.max_map_count
    assert found.max_map_count == int(Path("/proc/sys/vm/max_map_count").read_text())


def test_it_leaves_nothing_and_can_be_repeated() -> None:
    assert [check.name for check in probe().checks] == [check.name for check in probe().checks]


def _sandboxed(call: str, script: str) -> str:
    if call not in seccomp.numbers():
        pytest.skip("system call numbers of this architecture are not listed in tests/seccomp.py")
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\nimport seccomp\n"
    code += f"seccomp.refuse({call!r})\n{script}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_sandbox_without_mremap_is_noticed_and_named() -> None:
    found = json.loads(
        _sandboxed("mremap", "import json, mirrormap\nprint(json.dumps(mirrormap.probe().as_dict()))")
    )
    assert found["mirror_file"], "CPython's mmap keeps a descriptor of a file, which is the other route"
    assert not found["move_shared"]
    assert "mremap" in found["refused"]
    if found["mirror_shared"]:
        assert found["mirror_route"] == "descriptor"
        assert found["map_files"]


def test_without_mremap_a_file_mapping_is_mirrored_by_its_descriptor() -> None:
    script = """
import mmap, mirrormap, tempfile
with tempfile.TemporaryFile() as file:
    file.truncate(2 * mmap.PAGESIZE)
    with mmap.mmap(file.fileno(), 0) as source, mirrormap.mirror(source, mmap.PAGESIZE) as other:
        other.array()[3] = 77
        print(source[mmap.PAGESIZE + 3])
"""
    assert _sandboxed("mremap", script).strip() == "77"


def test_without_memfd_create_the_probe_survives_and_says_so() -> None:
    found = json.loads(
        _sandboxed("memfd_create", "import json, mirrormap\nprint(json.dumps(mirrormap.probe().as_dict()))")
    )
    assert "memfd_create" in found["refused"]
    assert not found["populate"]


def test_populate_is_judged_by_page_table_entries_not_by_the_answer() -> None:
    found = probe()
    with mmap.mmap(-1, mmap.PAGESIZE * 4) as source, mirror(source, populate=True) as view:
        assert found.populate == (view.resident == view.nbytes)
