"""Which route the package takes on which kernel: pinned by version, as the kernel's history has it.

`probe()` finds out by trying. Here its answers are held against what each release brought, so that a route
that was lost, or is taken where the better one exists, does not go unseen.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys

import numpy as np
import pytest

import mirrormap as mm
from mirrormap import population, procmaps
from support import PAGE

RELEASE = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
SINCE = {
    "populate by madvise": (5, 14),
    "move_shared": (5, 13),
    "procmap_query": (6, 11),
    "pagemap_scan": (6, 7),
}


@pytest.fixture(scope="module")
def found() -> mm.Capabilities:
    return mm.probe()


def test_every_kernel_mirrors_and_populates(found: mm.Capabilities) -> None:
    assert found.works
    assert found.mirror_shared
    assert found.mirror_file
    assert found.mirror_route == "mremap"
    assert found.populate
    assert found.page_size == PAGE == os.sysconf("SC_PAGE_SIZE")
    assert not found.refused or os.geteuid() != 0


def test_population_is_by_madvise_since_5_14(found: mm.Capabilities) -> None:
    newer = SINCE["populate by madvise"] <= RELEASE
    assert found.populate_route == ("madvise" if newer else "touch")
    assert population.populates_by_madvise() is newer


@pytest.mark.parametrize("field", ["move_shared", "procmap_query", "pagemap_scan"])
def test_each_call_is_used_from_its_first_release_on(found: mm.Capabilities, field: str) -> None:
    assert getattr(found, field) is (SINCE[field] <= RELEASE)


def test_what_needs_privilege_is_had_by_root_alone(found: mm.Capabilities) -> None:
    privileged = os.geteuid() == 0
    assert found.frames is privileged
    assert found.map_files is privileged


def test_a_snapshot_is_cut_by_moving_since_5_13_and_overlaid_before(found: mm.Capabilities) -> None:
    live = mm.full(4 << 20, 1, "u1")
    with mm.snapshot(live) as frozen:
        live[:] = 2
        assert (frozen == 1).all()
    assert (live == 2).all()
    taken = mm.snapshot(live)
    with taken:
        assert taken.route == ("moved" if SINCE["move_shared"] <= RELEASE else "overlaid")


def test_huge_pages_of_every_size_this_machine_has(found: mm.Capabilities, huge: int) -> None:
    assert huge in procmaps.huge_sizes()
    with mm.Pages(2 * huge, page_size=huge) as pages, pages.map() as view, view.mirror() as other:
        assert view.page_size == other.page_size == huge
        view.array()[:: huge // 2] = 7
        assert np.array_equal(view.array()[::huge], other.array()[::huge])
        view.resize(huge)
        assert view.nbytes == huge


def test_the_command_tells_the_same(found: mm.Capabilities) -> None:
    wide = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, "-m", "mirrormap", "check"]
    told = subprocess.run(command, capture_output=True, text=True, env=wide).stdout
    assert ("by touching" in told) is (found.populate_route == "touch")
    for line, works in (
        ("look up addresses (PROCMAP_QUERY)", found.procmap_query),
        ("scan page tables (PAGEMAP_SCAN)", found.pagemap_scan),
        ("move shared page tables (DONTUNMAP)", found.move_shared),
    ):
        assert re.search(rf"^{'yes' if works else 'no '}  {re.escape(line)}", told, re.MULTILINE), told
