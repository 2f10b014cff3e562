"""heap_mesh.pml checked by SPIN: any order of what a heap, one who writes and one who reads do; and one fault in each rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from spin import holds, is_broken, needs_spin

MODEL = Path(__file__).with_name("heap_mesh.pml")

pytestmark = [needs_spin, pytest.mark.apart]


@pytest.mark.parametrize("options", ["-DPAGES=2", "-DPAGES=3 -DACTS=6"])
def test_views_show_what_lives_there_at_every_moment(tmp_path: Path, options: str) -> None:
    holds(MODEL, tmp_path, options)


def test_longer_lives(tmp_path: Path, soak: bool) -> None:
    """Seven million states with hours; a tenth of that without."""
    holds(MODEL, tmp_path, f"-DPAGES=3 -DACTS={9 if soak else 7}", 3000)


@pytest.mark.parametrize(
    "fault",
    [
        "MAPS_FIRST",
        "PUNCHES_FIRST",
        "OVERLAPPING",
        "PUNCHES_SHARED",
        "MESHES_WRITTEN",
        "WRITES_SHARED",
        "REUSES_FRAMES",
        "NEVER_RESTORED",
    ],
)
def test_each_rule_is_needed(tmp_path: Path, fault: str) -> None:
    is_broken(MODEL, tmp_path, f"-D{fault}")


def test_a_page_s_own_frame_is_the_last_to_be_left(tmp_path: Path) -> None:
    is_broken(MODEL, tmp_path, "-DOWN_FIRST -DPAGES=3 -DACTS=9")
