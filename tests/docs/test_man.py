"""The manual pages: installed with the package, rendered without complaint, complete."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mirrormap
from mirrormap.cli.main import parser

ROOT = Path(__file__).parents[2]
NAMES = ["mirrormap.1", "mirrormap-check.1", "mirrormap-demo.1", "mirrormap-maps.1", "mirror.3"]


def installed(name: str) -> Path:
    return Path(sys.prefix, "share", "man", f"man{name[-1]}", name)


@pytest.mark.parametrize("name", NAMES)
def test_the_wheel_installs_it_and_man_shows_it(name: str) -> None:
    page = installed(name)
    assert page.read_text() == (ROOT / "docs" / "man" / "roff" / name).read_text()
    if shutil.which("man") is None:
        pytest.skip("this machine has no man(1) to render it with")
    environment = {**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8"}
    environment.pop("LD_PRELOAD", None)  # a sanitizer's runtime is not for man
    done = subprocess.run(
        ["man", "--warnings", "-l", str(page)], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert "SYNOPSIS" in done.stdout


def _helps(command: argparse.ArgumentParser) -> Iterator[str]:
    """Of a command and of those under it."""
    yield command.format_help()
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _helps(below)


def test_every_option_is_in_the_manual() -> None:
    pages = "".join((ROOT / "docs" / "man" / f"{name}.md").read_text() for name in NAMES).replace("\\", "")
    for text in _helps(parser()):
        for option in re.findall(r"--[a-z-]+", text):
            assert option in pages
    for command in ("check", "demo", "maps"):
        assert f"**{command}**" in pages


def test_the_flag_s_value_and_every_errno_of_the_docstrings_are_in_mirror_3() -> None:
    page = (ROOT / "docs" / "man" / "mirror.3.md").read_text()
    assert mirrormap.MREMAP_MIRROR == 1 << 30
    assert "1 << 30" in page
    for documented in (mirrormap.mirror, mirrormap.mremap):
        for number in re.findall(r"\bE[A-Z]{3,}\b", documented.__doc__ or ""):
            assert f"**{number}**" in page
