"""heap.pml checked by SPIN: any order of a program's acts and a collector's steps, and one fault put into each rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from spin import holds, is_broken, needs_spin

MODEL = Path(__file__).with_name("heap.pml")

pytestmark = [needs_spin, pytest.mark.apart]


@pytest.mark.parametrize("options", ["-DOBJECTS=2 -DACTS=4", "-DOBJECTS=2 -DACTS=3 -DCYCLES=4", "-DACTS=3"])
def test_whatever_is_followed_leads_where_it_should(tmp_path: Path, options: str) -> None:
    holds(MODEL, tmp_path, options)


def test_longer_lives(tmp_path: Path, soak: bool) -> None:
    """Ten million states with hours; a tenth of that without."""
    holds(MODEL, tmp_path, f"-DOBJECTS=2 -DACTS={6 if soak else 3} -DCYCLES=3", 3000)


@pytest.mark.parametrize(
    "fault",
    [
        "NO_STORE_BARRIER",
        "NO_DROP_BARRIER",
        "UNMARKED_BIRTH",
        "UNSWEPT_BIRTH",
        "WEAK_UNMARKED",
        "WEAK_TOO_LATE",
        "GOOD_TOO_SOON",
        "NO_TURN",
        "EARLY_DROP",
        "MOVES_PINNED",
        "PINS_LEAVING",
        "DEAF_WEAK",
        "TWO_COLOURS",
        "BARE_WEAK",
        "ASKS_ALWAYS",
    ],
)
def test_each_rule_is_needed(tmp_path: Path, fault: str) -> None:
    acts = 5 if fault == "NO_DROP_BARRIER" else 3
    is_broken(MODEL, tmp_path, f"-D{fault} -DOBJECTS=2 -DACTS={acts}")
