"""mirrormap demo channel: the shipped film, other films, and what is wrong with them."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mirrormap.cli import film
from support import command as run

pytest.importorskip("PIL")  # frames are resized by it


def missing() -> str:
    """What the demo needs and this machine does not have."""
    try:
        film.shipped()
        subprocess.run([film.decoder(), "-version"], check=True, capture_output=True)
    except (film.MirrorError, OSError) as error:  # or it is of another architecture
        return str(error)
    return ""


needs_film = pytest.mark.skipif(bool(missing()), reason=missing() or "nothing is missing")


def counts(output: str) -> dict[str, list[int]]:
    """The numbers after each heading of the summary."""
    lines = (line.split(maxsplit=1) for line in output.splitlines() if " " in line)
    return {head: [int(n) for n in re.findall(r"\d+", rest.replace(",", ""))] for head, rest in lines}


def decoded(path: Path) -> str:
    """Digest of what the decoder says of a film, all of it."""
    digest = hashlib.sha256()
    with film.decoding(path) as pipe:
        while data := pipe.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


@needs_film
def test_the_shipped_film(tmp_path: Path) -> None:
    picture, kept = tmp_path / "film.png", tmp_path / "film.pam"
    before = sorted(os.listdir("/dev/shm"))
    done = run("demo", "channel", "--output", str(picture), "--keep", str(kept))
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stderr == ""
    found = counts(done.stdout)
    assert found["film"][0] == 132
    *shares, total = found["queue"]
    assert len(shares) == 3
    assert sum(shares) == total == 132
    assert found["copies"] == [0]
    assert found["written"] == [kept.stat().st_size]
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == decoded(film.shipped())
    data = picture.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) == (4 * 320, 3 * 180)
    for name in ("camera", "writer", "statistics", "resizer 3"):
        assert name in done.stdout
    assert sorted(os.listdir("/dev/shm")) == before


def grey(path: Path, levels: list[int], width: int = 66, height: int = 34) -> Path:
    """A film of even frames, as YUV4MPEG."""
    with open(path, "wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F25:1 Ip A1:1 C444\n".encode())
        for level in levels:
            planes = np.full((3, height, width), 128, "u1")
            planes[0] = level
            file.write(b"FRAME\n" + planes.tobytes())
    return path


@needs_film
@pytest.mark.parametrize("in_flight", [1, 5])
def test_another_film(tmp_path: Path, in_flight: int) -> None:
    path = grey(tmp_path / "my film.y4m", [60] * 7 + [180] * 6 + [70])
    done = run(
        "demo", "channel", str(path), "--in-flight", str(in_flight), "--output", str(tmp_path / "out.png")
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "2 cuts (before frame 7, 13)" in done.stdout
    assert counts(done.stdout)["queue"][-1] == 14
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my film.y4m", "out.png"]


def refused(*arguments: str, **environment: str) -> str:
    done = run("demo", "channel", *arguments, **environment)
    assert done.returncode == 1, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


@needs_film
def test_what_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    output = "--output", str(tmp_path / "out.png")
    assert "no such film" in refused(str(tmp_path / "missing.mp4"), *output)
    assert "no such film" in refused(str(tmp_path), *output)
    text = tmp_path / "text.mp4"
    text.write_text("not a film")
    assert "text.mp4" in refused(str(text), *output)
    path = str(grey(tmp_path / "film.y4m", [1, 2, 3]))
    for number in ("0", "101", "-1"):
        assert "--in-flight must be" in refused(path, "--in-flight", number, *output)
    assert "cannot write" in refused(path, *output, "--keep", str(tmp_path / "no" / "film.pam"))
    assert "cannot write" in refused(path, "--output", str(tmp_path / "no" / "out.png"))
    assert "cannot write" in refused(path, "--output", str(tmp_path / "out.nonsense"))
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"P6\n1 1\n255\n", "did not send PAM"),
        (b"P7\nWIDTH 2\nENDHDR\n", "did not send PAM"),
        (b"P7\nWIDTH x\nHEIGHT 1\nDEPTH 4\nENDHDR\n", "did not send PAM"),
        (b"P7\nWIDTH 70000\nHEIGHT 70000\nDEPTH 4\nENDHDR\n", "70000 x 70000"),
        (b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 3\nENDHDR\n", "pixels of 3 bytes"),
        (b"P7\nWIDTH 1\nHEIGHT 2\nDEPTH 4\nENDHDR\nshort", "ended within"),
    ],
)
def test_a_decoder_that_sends_something_else(tmp_path: Path, sent: bytes, why: str) -> None:
    path = tmp_path / "sent"
    path.write_bytes(sent)
    with open(path, "rb") as pipe, pytest.raises(film.MirrorError, match=why):
        shape = film.header(pipe)
        assert shape is not None
        film.read_pixels(pipe, bytearray(int(np.prod(shape))))
