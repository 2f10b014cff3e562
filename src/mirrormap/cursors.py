"""Who holds which place round a ring, how long one waits for another, and what the header says.

The words themselves are in cursors.h; this is the policy: a place belongs to a process that lives,
whoever waits looks every now and then whether the other still does, and nothing that stands in shared
memory is believed before it was checked.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import struct
import time
import zlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from mirrormap import dtypes, procmaps
from mirrormap.drawing import Mark
from mirrormap.errors import BusyError, CorruptError, Overrun
from mirrormap.kernel import Places, Region, RingBase, Span

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirrormap.backing import Backing

__all__ = [
    "CONTROL_NBYTES",
    "GEOMETRY_NBYTES",
    "Attached",
    "Deadline",
    "Geometry",
    "Header",
    "Sort",
    "described",
    "evict_dead",
    "inscribe",
    "is_alive",
    "is_still_alive",
    "own_token",
    "read_header",
    "take_writer",
    "understood",
]

CONTROL_NBYTES: Final = 16384
"""Bytes in front of the data: geometry, cursors, slots of readers (mm_control)."""

GEOMETRY_NBYTES: Final = CONTROL_NBYTES // 4
"""Bytes at its start that say what the ring is made of."""

SLICE_SECONDS: Final = 0.1
"""How long a wait goes on at first without looking whether the other side still lives."""

LONGEST_SLICE_SECONDS: Final = 1.0
"""And at most, later on."""

_HEAD: Final = struct.Struct("<8sIIQQQII")  # magic, version, checksum, sizes, flags, length of the text

_own: tuple[int, int] = (0, 0)
_asked: tuple[int, int] = (0, 0)  # who was alive, and how often that was believed since
_TRUSTED_TIMES: Final = 8


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


def _has_ended(pid: int) -> bool:
    """pidfd_open(2): no such process, or a zombie. Raises: OSError where the call is not allowed."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        ends = select.poll()
        ends.register(fd, select.POLLIN)
        return bool(ends.poll(0))
    finally:
        os.close(fd)


def is_still_alive(token: int) -> bool:
    """As is_alive, for who asks about the same process again and again: most times only whether it ended.

    That costs a tenth of reading /proc, but cannot tell a process from the heir of its pid.
    """
    global _asked
    known, times = _asked
    if known == token and times < _TRUSTED_TIMES:
        _asked = token, times + 1
        with contextlib.suppress(OSError):
            return not _has_ended(token >> 32)
    alive = is_alive(token)
    _asked = token if alive else 0, 0
    return alive


def evict_dead(places: Places) -> bool:
    """Free the slots of readers that died. Returns: whether there were any."""
    _, _, readers = places._owners()
    gone = [(slot, owner) for slot, (owner, _) in readers.items() if not is_alive(owner)]
    for slot, owner in gone:
        places._evict(slot, owner)
    return bool(gone)


def take_writer(places: Places, noun: str, verb: str, role: str) -> None:
    """Take the writer's place, which a dead writer has left or nobody holds. Raises: BusyError."""
    holder, _, _ = places._owners()
    if holder and is_alive(holder):
        raise BusyError(f"process {holder >> 32} {verb} to this {noun}: there can be one {role} at a time")
    if not places._seize_writer(holder, own_token()):
        raise BusyError(f"another {role} took this {noun}'s place just now")


class Attached(RingBase):
    """What Ring and Reader share: a hold on the pages."""

    __slots__ = ()

    def _overrun(self, start: int, oldest: int) -> None:
        """Called from C."""
        raise Overrun(oldest - start)


class Deadline:
    """A timeout in seconds, counted from now; None: for ever."""

    __slots__ = ("_end", "_slice")

    def __init__(self, timeout: float | None) -> None:
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout {timeout!r} must be None or >= 0 seconds")
        self._end = math.inf if timeout is None else time.monotonic() + timeout
        self._slice = SLICE_SECONDS

    def slice_ms(self) -> int:
        """Milliseconds to sleep before looking round again; 0: the time is over.

        The first is short: most deaths are of who was at work just now. Who has waited for long hears of one
        within LONGEST_SLICE_SECONDS: each look costs a fifth of a millisecond of CPU, with all caches cold.
        """
        left, length = self._end - time.monotonic(), self._slice
        self._slice = LONGEST_SLICE_SECONDS
        return 0 if left <= 0 else math.ceil(min(left, length) * 1e3)

    def is_over(self) -> bool:
        """Has the time passed? Who looks round after the last slice need not do so once more."""
        return time.monotonic() >= self._end


class Sort(NamedTuple):
    """A sort of object that begins with a header. Attributes: magic: its mark. noun: what users call it."""

    magic: bytes
    version: int
    noun: str


RING: Final = Sort(b"mirrring", 1, "ring")


def described(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """A dtype and a shape as JSON that `understood` reads: ["<f4", [3, 2]]."""
    return json.dumps([dtypes.told(dtype), shape], ensure_ascii=False).encode()


def understood(text: bytes, where: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """The dtype and shape that a text describes.

    Raises: CorruptError for anything else, dtypes with Python objects among it.
    """
    try:
        descr, shape = json.loads(text.decode())
        dtype = dtypes.dtype_from(descr)
        dims = tuple(map(int, shape))
        if dtype.hasobject or any(items < 0 for items in dims):
            raise ValueError
    except (ValueError, TypeError, SyntaxError, KeyError, IndexError, MemoryError, RecursionError):
        raise CorruptError(f"{where} is damaged: it names no dtype") from None
    return dtype, dims


class Header(NamedTuple):
    """What stands at the start of an object, before anything is known of its sort.

    Attributes:
        offset: of the first data byte. nbytes: of data, whole pages.
        unit_nbytes, flags, text: what each sort makes of them.
    """

    offset: int
    nbytes: int
    unit_nbytes: int
    flags: int
    text: bytes

    def packed(self, sort: Sort) -> bytes:
        """With mark and checksum. Raises: ValueError if the text is too long."""
        if _HEAD.size + len(self.text) > GEOMETRY_NBYTES:
            raise ValueError(f"the description of the dtype takes {len(self.text):,} bytes; too many fields")
        sizes = *self[:4], len(self.text)
        checksum = zlib.crc32(_HEAD.pack(b"", sort.version, 0, *sizes) + self.text)
        return _HEAD.pack(sort.magic, sort.version, checksum, *sizes) + self.text

    @classmethod
    def parsed(
        cls, head: bytes, sort: Sort, control_nbytes: int, object_nbytes: int, page_nbytes: int
    ) -> Header:
        """Read and check what every sort has in common. Raises: CorruptError, saying what is wrong."""
        noun = sort.noun
        if len(head) < _HEAD.size:
            raise CorruptError(f"this is no {noun}: it is shorter than a header")
        magic, version, checksum, offset, nbytes, unit_nbytes, flags, count = _HEAD.unpack_from(head)
        if magic != sort.magic:
            raise CorruptError(f"this is no {noun}, or not one yet: it does not begin with a {noun}'s mark")
        if version != sort.version:
            raise CorruptError(f"a {noun} of version {version}; this package knows version {sort.version}")
        text = head[_HEAD.size : _HEAD.size + count]
        sizes = offset, nbytes, unit_nbytes, flags, count
        if len(text) != count or zlib.crc32(_HEAD.pack(b"", version, 0, *sizes) + text) != checksum:
            raise CorruptError(f"the {noun}'s header is damaged: its checksum is wrong")
        found = cls(offset, nbytes, unit_nbytes, flags, text)
        if not (
            found.offset >= control_nbytes
            and not found.offset % page_nbytes
            and not found.nbytes % page_nbytes
        ):
            raise CorruptError(f"the {noun}'s header is damaged: its sizes do not fit together")
        total = found.offset + found.nbytes
        if total > object_nbytes:
            raise CorruptError(f"the {noun} was truncated: {object_nbytes:,} bytes are left of {total:,}")
        return found


def inscribe(control: NDArray[np.uint8], head: bytes) -> None:
    """Write a header to an object that is complete otherwise. The mark comes last: only now it is one."""
    control[8 : len(head)] = np.frombuffer(head[8:], "u1")
    control[:8] = np.frombuffer(head[:8], "u1")


def read_header(backing: Backing, noun: str) -> bytes:
    """The bytes at the start of an object. Raises: CorruptError."""
    try:
        return os.pread(backing.fd, GEOMETRY_NBYTES, 0)
    except OSError as error:
        raise CorruptError(f"this is no {noun}: {error.strerror}") from None


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
        text = described(self.dtype, self.shape)
        return Header(self.offset, self.nbytes, self.item_nbytes, int(self.overwrite), text).packed(RING)

    @classmethod
    def parsed(cls, head: bytes, object_nbytes: int, page_nbytes: int) -> Geometry:
        """What stands at the start of an object, if it can be.

        Raises: CorruptError, saying what is wrong.
        """
        header = Header.parsed(head, RING, CONTROL_NBYTES, object_nbytes, page_nbytes)
        dtype, shape = understood(header.text, "the ring's header")
        found = cls(header.offset, header.nbytes, dtype, shape, bool(header.flags))
        if not (
            all(items > 0 for items in shape)
            and header.flags in (0, 1)
            and 0 < found.item_nbytes == header.unit_nbytes <= found.nbytes
        ):
            raise CorruptError("the ring's header is damaged: its sizes do not fit together")
        return found
