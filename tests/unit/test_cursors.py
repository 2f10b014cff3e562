"""The cursor code by itself: a native hammer, plain and under ThreadSanitizer; tokens and deadlines."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hammer import NATIVE, build, run
from mirrormap.cursors import Deadline, is_alive, own_token


@pytest.mark.parametrize("way", ["lossless", "overwriting"])
def test_nothing_is_lost_or_torn_between_threads(tmp_path: Path, way: str) -> None:
    done = run(build(tmp_path, "hammer", [NATIVE / "cursors.c"]), way, "2000000")
    assert done.returncode == 0, done.stderr


def test_thread_sanitizer_sees_no_race(tmp_path: Path) -> None:
    done = run(build(tmp_path, "hammer", [NATIVE / "cursors.c"], "-fsanitize=thread"), "lossless", "100000")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("sound", "broken"),
    [
        ("&shared->written, upto, memory_order_release", "&shared->written, upto, memory_order_relaxed"),
        (
            "&slot->position, position, memory_order_release",
            "&slot->position, position, memory_order_relaxed",
        ),
    ],
)
def test_thread_sanitizer_would_see_one(tmp_path: Path, sound: str, broken: str) -> None:
    text = (NATIVE / "cursors.c").read_text()
    assert text.count(sound) == 1
    source = tmp_path / "broken.c"
    source.write_text(text.replace(sound, broken))
    program = build(tmp_path, "hammer", [source], "-fsanitize=thread")
    # it is a race: whether one run meets it is chance
    runs = (run(program, "lossless", str(count)) for count in (100_000, 200_000, 300_000, 300_000))
    assert any(done.returncode != 0 and "data race" in done.stderr for done in runs)


def test_tokens_tell_processes_apart() -> None:
    assert is_alive(own_token())
    assert own_token() >> 32 == os.getpid()
    for token in (own_token() + 1, 0, -1, 1 << 60, (1 << 22) << 32):  # another start time; no such process
        assert not is_alive(token)
    child = subprocess.Popen(["true"])
    assert os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT) is not None
    assert not is_alive(child.pid << 32)  # a zombie
    child.wait()


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan")])
def test_timeouts_that_cannot_be(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        Deadline(timeout)


def test_deadlines_come_in_slices() -> None:
    assert Deadline(None).slice_ms() == 100
    assert Deadline(1000).slice_ms() == 100
    assert 0 < Deadline(0.05).slice_ms() <= 50
    assert Deadline(0).slice_ms() == 0
