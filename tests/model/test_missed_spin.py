"""missed.pml checked by SPIN: a group's count of missed messages, in every interleaving, and one fault put into each rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from spin import holds, holds_in_hours, is_broken, needs_spin

MODEL = Path(__file__).with_name("missed.pml")

pytestmark = [needs_spin, pytest.mark.apart]


@pytest.mark.parametrize("options", ["-DTOTAL=1 -DKILL", "-DTOTAL=2"])
def test_every_message_is_taken_or_told_once(tmp_path: Path, options: str) -> None:
    holds(MODEL, tmp_path, options)


@pytest.mark.parametrize(
    "options",
    ["-DTOTAL=2", "-DTOTAL=2 -DKILL", "-DTOTAL=2 -DMOST=2 -DKILL", "-DTOTAL=1 -DKILL -DDROP -DLATE"],
)
def test_larger_spaces(tmp_path: Path, options: str, soak: bool) -> None:
    holds_in_hours(MODEL, tmp_path, options, soak)


@pytest.mark.parametrize(
    "options",
    [
        "-DNO_COUNT -DTOTAL=2 -DKILL",
        "-DLATE_COUNT -DTOTAL=2",
        "-DNUMBER_FIRST -DTOTAL=2",
        "-DNO_LOOK -DTOTAL=2",
        "-DHELD_FIRST -DTOTAL=2 -DMOST=2 -DKILL",
        "-DVACATE -DTOTAL=2 -DKILL",
        "-DEND_0 -DTOTAL=2",
        "-DFROM_HEAD -DTOTAL=2 -DKILL",
    ],
)
def test_each_rule_is_needed(tmp_path: Path, options: str) -> None:
    is_broken(MODEL, tmp_path, options)
