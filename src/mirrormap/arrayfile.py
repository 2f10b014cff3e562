"""The header of an array in a file: what it is, and how many rows of it are there.

    byte 0      magic, version, where the data begin, length and checksum of the text
         64     rows at this moment: stored after each append, for whoever reads at the same time
        128     a commit: sequence, rows, checksum
        192     another; the one with the higher sequence counts, so that a torn one costs nothing
        256     the text: dtype and shape of a row
       one page the rows, as they lie in memory

Numbers are little-endian. Nothing in it is trusted.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np

from mirrormap import kernel
from mirrormap.backing import Backing
from mirrormap.errors import CorruptError
from mirrormap.kernel import PAGE_NBYTES, Region
from mirrormap.layouts import read_layout, write_layout
from mirrormap.pages import Pages
from mirrormap.room import Room
from mirrormap.units import LIMIT_NBYTES, round_up

__all__ = ["LIVE_AT", "ArrayFile", "commit", "create_array", "open_array"]

LIVE_AT = 64
_COMMITS_AT = (128, 192)
_TEXT_AT = 256

_MAGIC = b"mirrormap array\n"
_VERSION = 1
_FIRST = struct.Struct("<16sIIII")
_COMMIT = struct.Struct("<QQI")
_COUNTS = struct.Struct("<QQ")


class ArrayFile(NamedTuple):
    """What a header says. `offset`: of the first row, in bytes."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * self.dtype.itemsize


def create_array(
    path: str | os.PathLike[str], file: ArrayFile, reserve_nbytes: int
) -> tuple[ArrayFile, Room, int]:
    """A new file (0600) without rows, with room to write; nothing is left of it if that fails.

    Raises: ValueError when dtype and shape do not fit in a header; OSError; MapError.
    """
    _text_of(file)
    backing = Backing.create_file(path, PAGE_NBYTES)
    try:
        backing.lock()
        file = file._replace(offset=max(PAGE_NBYTES, backing.kind.nbytes))
        backing.hold_space(0, file.offset)
        backing.grow(file.offset)
        room = Room(Pages._of(backing), reserve_nbytes, writes=True)
        _describe(room.region, file)
        room.pages.flush()
    except BaseException:
        os.unlink(path)
        raise
    return file, room, 0


def open_array(
    path: str | os.PathLike[str], reserve_nbytes: int, *, writes: bool, expected: ArrayFile | None = None
) -> tuple[ArrayFile, Room, int]:
    """An existing file: what it holds, room that shows it, and the rows of its last commit.

    Raises: ValueError for another dtype or shape than `expected`; CorruptError; BusyError; OSError.
    """
    if writes:
        backing = Backing.adopt(kernel.open_file(path, os.O_RDWR))
        backing.lock()
    else:
        backing = Backing.open(path, None)
    head = os.pread(backing.fd, PAGE_NBYTES, 0)
    file = _read_header(head, backing.label)
    if expected is not None and expected[:2] != file[:2]:
        raise ValueError(
            f"{backing.label!r} holds rows of dtype {file.dtype} and shape {file.shape}, "
            f"not {expected.dtype} and {expected.shape}; Growable.open() takes them as they are"
        )
    rows, length = _committed(head, backing.label), backing.nbytes
    if rows > (length - file.offset) // file.row_nbytes:
        raise CorruptError(
            f"{backing.label!r} says it has {rows:,} rows and ends before them, at byte {length:,}"
        )
    if writes:
        backing.grow(round_up(length, backing.kind.nbytes))
    return file, Room(Pages._of(backing), reserve_nbytes, writes=writes), rows


def _describe(region: Region, file: ArrayFile) -> None:
    """Write the header of an empty array. Raises: ValueError when it does not fit in a page."""
    text = _text_of(file)
    checksum = zlib.crc32(_FIRST.pack(_MAGIC, _VERSION, file.offset, len(text), 0) + text)
    _put(region, _TEXT_AT, text)
    commit(region, 0)
    _put(region, 0, _FIRST.pack(_MAGIC, _VERSION, file.offset, len(text), checksum))


def _text_of(file: ArrayFile) -> bytes:
    text = write_layout(file.dtype, shape=file.shape).encode()
    if len(text) > PAGE_NBYTES - _TEXT_AT:
        raise ValueError(f"the dtype takes {len(text):,} bytes to describe, more than a header holds")
    return text


def _read_header(head: bytes, label: str) -> ArrayFile:
    """What the first bytes of a file say. Raises: CorruptError."""
    if len(head) < _TEXT_AT or not head.startswith(_MAGIC):
        raise CorruptError(f"{label!r} is no array file of mirrormap's")
    magic, version, offset, nbytes, checksum = _FIRST.unpack_from(head)
    if version != _VERSION:
        raise CorruptError(f"{label!r} has version {version} of the format; this is {_VERSION}")
    text = head[_TEXT_AT : _TEXT_AT + nbytes]
    if len(text) != nbytes or checksum != zlib.crc32(_FIRST.pack(magic, version, offset, nbytes, 0) + text):
        raise CorruptError(f"the header of {label!r} is damaged")
    if offset % PAGE_NBYTES or not offset:
        raise CorruptError(
            f"the rows of {label!r} begin at byte {offset:,}, which is no multiple of the page size "
            f"{PAGE_NBYTES:,} of this machine"
        )
    dtype, shape = read_layout(text.decode(errors="replace"), "shape")
    if min(shape, default=1) < 1 or not dtype.itemsize:
        raise CorruptError(f"{label!r} has rows of no bytes")
    return ArrayFile(dtype, shape, offset)


def _committed(head: bytes, label: str) -> int:
    """Rows of the last whole commit. Raises: CorruptError when there is none."""
    found = [number for number in (_commit_at(head, at) for at in _COMMITS_AT) if number is not None]
    if not found:
        raise CorruptError(f"both commits of {label!r} are damaged")
    return max(found)[1]


def _commit_at(head: bytes, at: int) -> tuple[int, int] | None:
    sequence, rows, checksum = _COMMIT.unpack_from(head, at)
    counts = sequence, rows
    valid = sequence and rows <= LIMIT_NBYTES and checksum == zlib.crc32(_COUNTS.pack(*counts))
    return counts if valid else None


def commit(region: Region, rows: int) -> None:
    """Write how many rows there are beside the last commit, not over it."""
    head = bytes(memoryview(kernel.span(region, 0, _TEXT_AT, readonly=True)))
    newest = max((_commit_at(head, at) or (0, 0))[0] for at in _COMMITS_AT)
    counts = newest + 1, rows
    _put(region, _COMMITS_AT[counts[0] % 2], _COMMIT.pack(*counts, zlib.crc32(_COUNTS.pack(*counts))))


def _put(region: Region, at: int, data: bytes) -> None:
    with memoryview(kernel.span(region, at, len(data))) as view:
        view[:] = data
