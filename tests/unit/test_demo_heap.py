"""mirrormap demo heap: the shipped words, others, and what is wrong with them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from mirrormap.cli import demo_heap
from support import command as run


def shown(output: str) -> str:
    """The text as one line, whatever the terminal's width."""
    return " ".join(output.split())


def number(pattern: str, text: str) -> int:
    return int(re.findall(pattern, text)[0].replace(",", ""))


@pytest.mark.skipif(importlib.util.find_spec("symspellpy") is None, reason="no words are installed")
def test_the_shipped_words() -> None:
    done = run("demo", "heap")
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stderr == ""
    text = shown(done.stdout)
    assert number(r"([\d,]+) words", text) == 82_834
    entries = number(r"([\d,]+) records and entries", text)
    marked = number(r"([\d,]+) objects marked", text)
    letters = number(r"([\d,]+) letters read", text)
    assert letters == entries - 82_834  # a record each, with the top
    assert marked == letters + 27_612  # one entry in three
    assert number(r"([\d,]+) objects marked, [\d,]+ moved", text) > 0
    assert number(r"([\d,]+) moved", text) > 0
    assert number(r"([\d,]+) references, checked", text) == marked - 1


def test_other_words_and_their_counts(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("\ufeffalpha 12\nalp\n\nbeta x\nalpha 3\nböse 99999999999999999999\n")
    done = run("demo", "heap", "--cache", "64KiB", str(path))
    assert done.returncode == 0, done.stderr + done.stdout
    assert number(r"([\d,]+) words", done.stdout) == 5
    assert number(r"([\d,]+) letters read", done.stdout) == 1 + len(
        "alphabetaöse"
    )  # the top, and letters of all, some shared


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("\n \n")
    binary.write_bytes(b"\xff\xfe\x00")
    for arguments, reason in (
        ([str(empty)], "no words"),
        ([str(binary)], "can't decode"),
        ([str(tmp_path / "none")], "No such file"),
        (["--cache", "x", str(empty)], "no words"),
    ):
        done = run("demo", "heap", *arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("mirrormap: ")
        assert reason in done.stderr
    empty.write_text("word\n")
    done = run("demo", "heap", "--cache", "1KiB", str(empty))
    assert done.returncode == 1
    assert "--cache" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_picture_of_blocks() -> None:
    full, half, pinned, large, moved = (
        (3, 1 << 18, 1 << 18, 1 << 18, 0), (2, 1 << 17, 1 << 18, 1 << 18, 0), (2, 1, 16, 4096, 1), (4, 0, 0, 1 << 18, 0), (6, 0, 9, 0, 0),
    )  # fmt: skip
    lines = demo_heap.picture([full, half, pinned, large, moved, (0, 0, 0, 0, 0)], 4)
    assert [line.plain for line in lines[:-1]] == ["█▄▁", "█· "]
    assert [span.style for span in lines[0].spans] == ["green", "yellow", "yellow underline"]
