"""A real list of words for a demonstration: one that is named, one a package ships, or the system's."""

from __future__ import annotations

from pathlib import Path

from mirrormap.cli.shipped import shipped_by
from mirrormap.errors import MirrorError

_SYSTEM = Path("/usr/share/dict/words")
_PACKAGE, _WORDS = "symspellpy", "symspellpy/frequency_dictionary_en_82_765.txt"
_PINNED = "symspellpy==6.10.1"


def shipped() -> Path:
    """The words that a package ships, else the system's.

    Raises: MirrorError saying how to get them.
    """
    path = shipped_by(_PACKAGE, _WORDS) or _SYSTEM
    if not path.exists():
        raise MirrorError(
            f"name a file of words, or get one: pip install --no-deps {_PINNED}, or apt install wamerican"
        )
    return path


def read(path: Path) -> list[tuple[str, int]]:
    """Words, one a line, and the number that may stand behind each, else 1. Raises: MirrorError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MirrorError(f"{path}: {error}") from None
    found: list[tuple[str, int]] = []
    for line in lines:
        word, _, count = line.strip().partition(" ")
        if word:
            found.append((word, int(count) if count.isdecimal() and len(count) < 19 else 1))
    if not found:
        raise MirrorError(f"{path}: no words")
    return found
