"""Who holds which place round a ring, how long one waits for another, and what the header says.

The words themselves are in cursors.h; this is the policy: a place belongs to a process that lives,
whoever waits looks every now and then whether the other still does, and nothing that stands in shared
memory is believed before it was checked.
"""

from __future__ import annotations

import ast
import math
import os
import struct
import time
import zlib
from typing import Any, Final, NamedTuple

import numpy as np

from mirrormap import procmaps
from mirrormap.drawing import Mark
from mirrormap.errors import CorruptError, Overrun
from mirrormap.kernel import Region, RingBase, Span

__all__ = [
    "CONTROL_NBYTES",
    "GEOMETRY_NBYTES",
    "Attached",
    "Deadline",
    "Geometry",
    "is_alive",
    "own_token",
]

CONTROL_NBYTES: Final = 16384
"""Bytes in front of the data: geometry, cursors, slots of readers (mm_control)."""

GEOMETRY_NBYTES: Final = CONTROL_NBYTES // 4
"""Bytes at its start that say what the ring is made of."""

SLICE_SECONDS: Final = 0.1
"""How long a wait goes on without looking whether the other side still lives."""

_MAGIC: Final = b"mirrring"
_HEAD: Final = struct.Struct("<8sIIQQQII")  # magic, version, checksum, sizes, flags, length of the text
_VERSION: Final = 1

_own: tuple[int, int] = (0, 0)


def own_token() -> int:
    """This process, as it stands in an owner's word: the pid, and when it started."""
    global _own
    pid = os.getpid()
    if _own[0] != pid:
        _own = pid, pid << 32 | (procmaps.process_start(pid) or 0) & 0xFFFFFFFF
    return _own[1]


def is_alive(token: int) -> bool:
    """Does the process that wrote this token still run? A zombie does not, nor does its pid's heir."""
    pid = token >> 32
    start = procmaps.process_start(pid) if 0 < pid < 1 << 31 else None  # whatever a damaged header says
    return start is not None and (start < 0 or start & 0xFFFFFFFF == token & 0xFFFFFFFF)


class Attached(RingBase):
    """What Ring and Reader share: a hold on the pages, and the reader's slots."""

    __slots__ = ()

    def _overrun(self, start: int, oldest: int) -> None:
        """Called from C."""
        raise Overrun(oldest - start)

    def _evict_dead(self) -> bool:
        """Free the slots of readers that died. Returns: whether there were any."""
        _, _, readers = self._owners()
        gone = [(slot, owner) for slot, (owner, _) in readers.items() if not is_alive(owner)]
        for slot, owner in gone:
            self._evict(slot, owner)
        return bool(gone)


class Deadline:
    """A timeout in seconds, counted from now; None: for ever."""

    __slots__ = ("_end",)

    def __init__(self, timeout: float | None) -> None:
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout {timeout!r} must be None or >= 0 seconds")
        self._end = math.inf if timeout is None else time.monotonic() + timeout

    def slice_ms(self) -> int:
        """Milliseconds to sleep before looking round again; 0: the time is over."""
        left = self._end - time.monotonic()
        return 0 if left <= 0 else math.ceil(min(left, SLICE_SECONDS) * 1e3)


class Geometry(NamedTuple):
    """What a ring is made of; never changes.

    Attributes:
        offset: of the first data byte in the object. nbytes: of data, whole pages.
        dtype, shape: of one item. overwrite: whether the writer ever waits.
    """

    offset: int
    nbytes: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    overwrite: bool

    @property
    def item_nbytes(self) -> int:
        """Bytes an item."""
        return self.dtype.itemsize * math.prod(self.shape)

    def marks(self, **items: int) -> list[Mark]:
        """Where items lie among the data bytes, by name, for a drawing."""
        return [
            Mark(f"{name} {item:,}", item * self.item_nbytes % self.nbytes) for name, item in items.items()
        ]

    def attach(self, ring: RingBase, control: Region, data: Region, shown: Span) -> None:
        """Let `ring` work on regions of this geometry, of which `data` shows the bytes twice."""
        ring._attach(
            control, data, shown, self.nbytes, self.dtype, self.item_nbytes, self.shape, self.overwrite
        )

    def packed(self) -> bytes:
        """As it stands at the start of the object. Raises: ValueError if the dtype is too long."""
        text = repr((np.lib.format.dtype_to_descr(self.dtype), self.shape)).encode()
        if _HEAD.size + len(text) > GEOMETRY_NBYTES:
            raise ValueError(f"the description of the dtype takes {len(text):,} bytes; too many fields")
        sizes = self.offset, self.nbytes, self.item_nbytes, int(self.overwrite), len(text)
        checksum = zlib.crc32(_HEAD.pack(b"", _VERSION, 0, *sizes) + text)
        return _HEAD.pack(_MAGIC, _VERSION, checksum, *sizes) + text

    @classmethod
    def parsed(cls, head: bytes, object_nbytes: int, page_nbytes: int) -> Geometry:
        """What stands at the start of an object, if it can be.

        Raises: CorruptError, saying what is wrong.
        """
        if len(head) < _HEAD.size:
            raise CorruptError("this is no ring: it is shorter than a header")
        magic, version, checksum, offset, nbytes, item_nbytes, overwrite, count = _HEAD.unpack_from(head)
        if magic != _MAGIC:
            raise CorruptError("this is no ring, or not one yet: it does not begin with a ring's mark")
        if version != _VERSION:
            raise CorruptError(f"a ring of version {version}; this package knows version {_VERSION}")
        text = head[_HEAD.size : _HEAD.size + count]
        sizes = offset, nbytes, item_nbytes, overwrite, count
        if len(text) != count or zlib.crc32(_HEAD.pack(b"", _VERSION, 0, *sizes) + text) != checksum:
            raise CorruptError("the ring's header is damaged: its checksum is wrong")
        try:
            descr, shape = ast.literal_eval(text.decode())
            dtype = np.lib.format.descr_to_dtype(descr)
            found = cls(offset, nbytes, dtype, tuple(map(int, shape)), bool(overwrite))
            sound = not dtype.hasobject and all(items > 0 for items in found.shape)
        except (ValueError, TypeError, SyntaxError, KeyError, IndexError, MemoryError, RecursionError):
            raise CorruptError("the ring's header is damaged: it names no dtype") from None
        if not (
            sound
            and overwrite in (0, 1)
            and found.item_nbytes == item_nbytes
            and 0 < item_nbytes <= nbytes
            and offset >= CONTROL_NBYTES
            and not offset % page_nbytes
            and not nbytes % page_nbytes
        ):
            raise CorruptError("the ring's header is damaged: its sizes do not fit together")
        if offset + nbytes > object_nbytes:
            raise CorruptError(
                f"the ring was truncated: {object_nbytes:,} bytes are left of {offset + nbytes:,}"
            )
        return found
