"""Frames and groups by themselves: a native hammer, plain and under ThreadSanitizer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hammer import NATIVE, build, run

pytestmark = pytest.mark.apart

FILES = ("cursors.c", "frames.c", "groups.c")


def built(folder: Path, *options: str, broken: tuple[str, str, str] | None = None) -> str:
    """The hammer with the extension's own files, or with one of them changed."""
    sources = []
    for name in FILES:
        source = NATIVE / name
        if broken is not None and broken[0] == name:
            text = source.read_text()
            assert text.count(broken[1]) == 1, name
            source = folder / name
            source.write_text(text.replace(*broken[1:]))
        sources.append(source)
    return build(folder, "hammer_channel", sources, *options)


def sanitized(program: str, count: str) -> tuple[int, str]:
    done = run(program, count)
    return done.returncode, done.stderr


def test_each_message_is_whole_and_a_group_s_is_done_once(tmp_path: Path, soak: bool) -> None:
    done = run(built(tmp_path), "20000000" if soak else "300000")
    assert done.returncode == 0, done.stderr


def test_thread_sanitizer_sees_no_race(tmp_path: Path) -> None:
    code, errors = sanitized(built(tmp_path, "-fsanitize=thread"), "30000")
    assert code == 0, errors


@pytest.mark.parametrize(
    ("name", "sound", "broken"),
    [
        (
            "frames.c",
            "&stream->shared->written, next->start, memory_order_release",
            "&stream->shared->written, next->start, memory_order_relaxed",
        ),
        (
            "groups.c",
            "all ? UINT64_MAX : position, memory_order_release",
            "all ? UINT64_MAX : position, memory_order_relaxed",
        ),
    ],
)
def test_thread_sanitizer_would_see_one(tmp_path: Path, name: str, sound: str, broken: str) -> None:
    program = built(tmp_path, "-fsanitize=thread", broken=(name, sound, broken))
    # it is a race: whether one run meets it is chance
    runs = (sanitized(program, str(count)) for count in (30_000, 100_000, 200_000, 300_000, 300_000))
    assert any(code != 0 and "data race" in errors for code, errors in runs)


@pytest.mark.parametrize(
    ("name", "sound", "broken", "why"),
    [
        (
            "groups.c",
            "atomic_load_explicit(&slot->group, memory_order_acquire) != number",
            "number == 77",
            "stranger's intention",
        ),
        (
            "frames.c",
            "next->sequence += header.kind != MM_SKIP;",
            "next->sequence++;",
            "out of order|successor|wrong",
        ),
    ],
)
def test_the_hammer_would_see_a_fault(tmp_path: Path, name: str, sound: str, broken: str, why: str) -> None:
    program, told = built(tmp_path, "-Wno-error", broken=(name, sound, broken)), ""
    for _ in range(5):  # each run sees something; which of the checks is the first to is chance
        done = run(program, "300000")
        assert done.returncode != 0
        told += done.stderr
        if re.search(why, told):
            break
    assert re.search(why, told), told
