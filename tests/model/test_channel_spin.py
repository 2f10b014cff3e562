"""channel.pml checked by SPIN: every interleaving of whole lives, and one fault put into each rule to see it found."""

from __future__ import annotations

from pathlib import Path

import pytest

from spin import holds, holds_in_hours, is_broken, needs_spin

MODEL = Path(__file__).with_name("channel.pml")

pytestmark = [needs_spin, pytest.mark.apart]


@pytest.mark.parametrize(
    "options",
    [
        "-DTOTAL=2 -DRECEIVERS=1 -DSENDERS=2 -DKILL_SENDER",
        "-DTOTAL=3 -DRECEIVERS=1 -DKILL_RECEIVER -DLATE",
        "-DTOTAL=2 -DWORKERS=1 -DKILL_WORKER",
        "-DTOTAL=2 -DWORKERS=1 -DKILL_WORKER -DRECEIVERS=1 -DSHORT -DCAPACITY=1",
        "-DTOTAL=2 -DWORKERS=1 -DSENDERS=2 -DKILL_SENDER -DSHORT -DCAPACITY=1",
        "-DSENT -DTOTAL=2 -DWORKERS=2 -DKILL_WORKER",
    ],
)
def test_nothing_is_lost_taken_twice_torn_or_waited_for_in_vain(tmp_path: Path, options: str) -> None:
    holds(MODEL, tmp_path, options)


@pytest.mark.parametrize(
    "options",
    [
        "-DTOTAL=3 -DRECEIVERS=1 -DSENDERS=2 -DKILL_SENDER",
        "-DTOTAL=2 -DWORKERS=2 -DKILL_WORKER -DSHORT",
        "-DTOTAL=2 -DWORKERS=2 -DKILL_WORKER -DSHORT -DCAPACITY=1",
        "-DSENT -DTOTAL=1 -DWORKERS=3 -DKILL_WORKER",
    ],
)
def test_larger_spaces(tmp_path: Path, options: str, soak: bool) -> None:
    holds_in_hours(MODEL, tmp_path, options, soak)


@pytest.mark.parametrize(
    "options",
    [
        "-DONE_TALLY -DTOTAL=2 -DRECEIVERS=1 -DSENDERS=2 -DKILL_SENDER",
        "-DLATE_TALLY -DTOTAL=2 -DRECEIVERS=1 -DSENDERS=2 -DKILL_SENDER",
        "-DLATE_POSITION -DTOTAL=2 -DWORKERS=1 -DSHORT -DCAPACITY=1",
        "-DONE_LOOK -DTOTAL=2 -DWORKERS=1 -DSHORT -DCAPACITY=1",
        "-DCURSORS_FIRST -DTOTAL=2 -DWORKERS=1 -DLATE -DSHORT -DCAPACITY=1",
        "-DNO_SETTLE -DTOTAL=2 -DWORKERS=2 -DSHORT -DKILL_WORKER",
        "-DNO_EXCHANGE -DSENT -DTOTAL=1 -DWORKERS=3 -DKILL_WORKER",
        "-DCLEAR_HELD -DTOTAL=2 -DWORKERS=2 -DSHORT -DKILL_WORKER",
        "-DNO_ORPHANS -DTOTAL=2 -DWORKERS=2 -DSHORT -DKILL_WORKER",
        "-DNO_DROP -DTOTAL=2 -DWORKERS=1 -DSHORT -DCAPACITY=1 -DKILL_WORKER",
        "-DNO_LOOK -DTOTAL=2 -DRECEIVERS=1",
        "-DNO_LOOK -DTOTAL=2 -DWORKERS=1",
        "-DHASTY -DTOTAL=2 -DRECEIVERS=1 -DKILL_SENDER",
        "-DQUIET_DONE -DTOTAL=2 -DWORKERS=1 -DCAPACITY=1 -DSHORT",
        "-DQUIET_LOSER -DTOTAL=2 -DWORKERS=2 -DCAPACITY=1 -DSHORT",
        "-DTWO_CURSORS -DTOTAL=2 -DWORKERS=2 -DSHORT",
    ],
)
def test_each_rule_is_needed(tmp_path: Path, options: str) -> None:
    is_broken(MODEL, tmp_path, options)
