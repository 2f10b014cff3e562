"""ring.pml checked by SPIN: every interleaving of whole lives, and one fault put into each rule to see it found."""

from __future__ import annotations

from pathlib import Path

import pytest

from spin import errors, holds, is_broken, needs_spin

MODEL = Path(__file__).with_name("ring.pml")

pytestmark = [needs_spin, pytest.mark.apart]


@pytest.mark.parametrize(
    "options",
    [
        "-DTOTAL=2",
        "-DTOTAL=2 -DCAPACITY=2",
        "-DTOTAL=3 -DREADERS=1 -DWRITERS=2 -DKILL_WRITER",
        "-DTOTAL=5 -DREADERS=1 -DWRITERS=2 -DCAPACITY=2 -DKILL_WRITER -DKILL_READER",
        "-DTOTAL=3 -DREADERS=1 -DWRITERS=2 -DKILL_WRITER -DKILL_READER -DOVERWRITE",
        "-DTOTAL=2 -DOVERWRITE",
    ],
)
def test_nothing_is_lost_torn_or_waited_for_in_vain(tmp_path: Path, options: str) -> None:
    holds(MODEL, tmp_path, options)


def test_a_reader_may_die_beside_another(tmp_path: Path, soak: bool) -> None:
    """The largest space; without hours only a flag that counts too little is looked for, and found."""
    count, found = errors(MODEL, tmp_path, f"-DTOTAL=2 -DKILL_READER -DWAKES={4 if soak else 2}", 3000)
    assert bool(count) != soak, found


@pytest.mark.parametrize(
    "options",
    [
        "-DLATE_CLAIM -DOVERWRITE -DREADERS=1",
        "-DNO_QUESTION -DOVERWRITE -DREADERS=1",
        "-DNO_INTENT",
        "-DNO_LOOK -DREADERS=1",
        "-DNO_EVICTION -DKILL_READER -DREADERS=1",
        "-DFORGETFUL -DOVERWRITE -DKILL_WRITER -DWRITERS=2 -DREADERS=1",
        "-DHASTY -DKILL_WRITER -DREADERS=1",
        "-DPLAIN_FLAG",
        "-DQUIET_ARRIVAL",
    ],
)
def test_each_rule_is_needed(tmp_path: Path, options: str) -> None:
    is_broken(MODEL, tmp_path, options)
