"""mirrormap demo ring: the shipped recording, other recordings, and what is wrong with them."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from support import command as run
from support import tone

pytest.importorskip("matplotlib")  # the picture is drawn by it


def counts(output: str) -> dict[str, list[int]]:
    """The numbers after each heading."""
    lines = (line.split(maxsplit=1) for line in output.splitlines() if " " in line)
    return {head: [int(n) for n in re.findall(r"\d+", rest.replace(",", ""))] for head, rest in lines}


def png_shape(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


@pytest.mark.skipif(importlib.util.find_spec("opensoundscape") is None, reason="no recording is installed")
def test_the_shipped_recording(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    done = run("demo", "ring", "--lossless", "--speed", "0", "--output", str(picture))
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stderr == ""
    found = counts(done.stdout)
    expected = (324_263 - 1024) // 256 + 1
    assert found["windows"] == [expected, 1024, 256, 12]
    assert found["copies"] == [0]
    assert found["overruns"] == [0, 0]
    width, height = png_shape(picture)
    assert width > 500
    assert height > 200


def test_an_overwriting_ring_counts_what_it_missed(tmp_path: Path) -> None:
    frames, rate, window, step = 500_000, 8000, 512, 128
    sound = tone(tmp_path / "tone.wav", rate, frames, 1, 2)
    done = run(
        "demo", "ring", str(sound), "--speed", "0", "--window", str(window), "--step", str(step),
        "--output", str(tmp_path / "a.svg"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    found = counts(done.stdout)
    windows, (overruns, missed) = found["windows"][0], found["overruns"]
    assert 0 < windows <= (frames - window) // step + 1
    assert (overruns == 0) == (missed == 0)
    if not overruns:
        assert windows == (frames - window) // step + 1
    assert (windows + 2 * overruns + 1) * step + missed + window >= frames
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(("nbytes", "channels"), [(1, 1), (2, 2), (4, 6)])
def test_other_recordings(tmp_path: Path, nbytes: int, channels: int) -> None:
    sound = tone(tmp_path / "tone.wav", 16_000, 40_000, channels, nbytes)
    picture = tmp_path / "out.png"
    done = run("demo", "ring", str(sound), "--lossless", "--speed", "0", "--output", str(picture))
    assert done.returncode == 0, done.stderr + done.stdout
    assert counts(done.stdout)["windows"][0] == (40_000 - 1024) // 256 + 1
    png_shape(picture)


def refused(*arguments: str, **environment: str) -> str:
    done: subprocess.CompletedProcess[str] = run("demo", "ring", *arguments, **environment)
    assert done.returncode == 1, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    output = "--output", str(tmp_path / "out.png")
    assert "No such file" in refused(str(tmp_path / "missing.wav"), *output)
    text = tmp_path / "text.wav"
    text.write_text("not a recording")
    assert "text.wav" in refused(str(text), *output)
    text.write_bytes(b"")
    assert "no WAV file" in refused(str(text), *output)
    assert "24 bit" in refused(str(tone(tmp_path / "24.wav", 8000, 9000, 1, 3)), *output)
    sound = str(tone(tmp_path / "tone.wav", 8000, 9000, 1, 2))
    assert "--window must be" in refused(sound, "--step", "2000", *output)
    assert "--window must be" in refused(sound, "--window", "16001", *output)
    assert "--window must be" in refused(sound, "--speed", "-1", *output)
    assert "cannot write" in refused(sound, "--speed", "0", "--output", str(tmp_path / "no" / "out.png"))
    assert "cannot write" in refused(sound, "--speed", "0", "--output", str(tmp_path / "out.nonsense"))
    short = str(tone(tmp_path / "short.wav", 8000, 100, 1, 2))
    assert "shorter than one window" in refused(short, "--speed", "0", *output)
    assert not (tmp_path / "out.png").exists()
