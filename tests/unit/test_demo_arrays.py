"""mirrormap demo arrays: the shipped recording, others, and what is wrong with them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from support import PAGE, tone
from support import command as run


def shown(output: str) -> str:
    """The text as one line, whatever the terminal's width."""
    return " ".join(output.split())


def check(output: str, frames: int) -> None:
    text = shown(output)
    assert f"{frames:,} samples" in text
    assert "moved: False; the first block's array still shows the same memory: True" in text
    assert "shows in the middle of the recording: True; pages copied: 0" in text
    assert "stored through the mirror: (1+0j), seen in the array: (1+0j)" in text
    before, after = re.findall(r"went from pass ([\d,]+) to ([\d,]+)", text)[0]
    assert int(before.replace(",", "")) < int(after.replace(",", ""))
    assert "the file holds one moment: True; what was written meanwhile is there: True" in text


@pytest.mark.skipif(importlib.util.find_spec("opensoundscape") is None, reason="no recording is installed")
def test_the_shipped_recording() -> None:
    done = run("demo", "arrays")
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stderr == ""
    check(done.stdout, 324_263)


@pytest.mark.parametrize(("nbytes", "channels"), [(1, 2), (2, 3), (4, 6)])
def test_other_recordings_and_which_samples_the_child_changes(
    tmp_path: Path, nbytes: int, channels: int
) -> None:
    rate, frames = 8000, 10 * PAGE
    sound = tone(tmp_path / "tone.wav", rate, frames, channels, nbytes)
    done = run("demo", "arrays", str(sound))
    assert done.returncode == 0, done.stderr + done.stdout
    check(done.stdout, frames)
    first, last = re.findall(r"changed samples ([\d,]+) to ([\d,]+)", shown(done.stdout))[0]
    assert int(last.replace(",", "")) - int(first.replace(",", "")) == rate - 1


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    short = tone(tmp_path / "short.wav", 8000, 100, 1, 2)
    small = tone(tmp_path / "small.wav", 100, 200, 1, 1)
    text = tmp_path / "text.wav"
    text.write_bytes(b"")
    for path, reason in (
        (short, "shorter than one second"),
        (small, "shorter than two pages"),
        (text, "no WAV file"),
        (tmp_path / "none.wav", "No such file"),
    ):
        done = run("demo", "arrays", str(path))
        assert done.returncode == 1
        assert reason in done.stderr
        assert "Traceback" not in done.stderr
