"""Channel: messages between processes, each one contiguous, written and read in place.

    control   cursors, places of receivers and groups      mapped by all, to be written
    data      |frame|frame|......|frame|  |frame|fra       the same pages twice: a frame that crosses the
                                                           seam goes straight on; receivers cannot write

A frame is a line of header, what an array is made of, and the payload. See frames.h for the protocol.
"""

from __future__ import annotations

import errno
import operator
import os
import socket as sockets
from typing import Any, Final, NamedTuple, Self

from mirrormap import handover, kernel, members, portraits, procmaps
from mirrormap.backing import Backing, page_kind
from mirrormap.cursors import CONTROL_NBYTES, Header, Sort, inscribe, read_header
from mirrormap.errors import ClosedError, CorruptError, MapError
from mirrormap.kernel import End
from mirrormap.lifetime import SelfClosing
from mirrormap.mapping import Mapping
from mirrormap.members import Peer
from mirrormap.pages import Pages
from mirrormap.receiver import Receiver, Start
from mirrormap.sender import Sender
from mirrormap.units import LIMIT_NBYTES, Size, as_nbytes, format_nbytes, round_up

__all__ = ["Channel"]

_SORT: Final = Sort(b"mirrchan", 1, "channel")
_LABEL: Final = "channel"
_CHANNEL_CONTROL_NBYTES: Final = 2 * CONTROL_NBYTES  # and the annex
_ROOM_NBYTES: Final = 1024  # for the header of the longest message, and what it says of an array
_MOST_INFLIGHT: Final = 1 << 20
_SPIN_US: Final = 30.0
_MOST_SPIN_US: Final = 1e6
_GREETING: Final = b"mirrchan"


class _Geometry(NamedTuple):
    """What a channel is made of; never changes. Attributes: inflight: 0: as many as fit."""

    offset: int
    nbytes: int
    capacity: int
    overwrite: bool
    inflight: int

    def packed(self) -> bytes:
        text = str(self.inflight).encode()
        return Header(self.offset, self.nbytes, self.capacity, int(self.overwrite), text).packed(_SORT)

    @classmethod
    def parsed(cls, backing: Backing) -> Self:
        head = read_header(backing, _LABEL)
        header = Header.parsed(head, _SORT, _CHANNEL_CONTROL_NBYTES, backing.nbytes, backing.kind.nbytes)
        inflight = int(header.text) if header.text.isdigit() and len(header.text) < 8 else -1
        if not (
            0 <= inflight <= _MOST_INFLIGHT
            and header.flags in (0, 1)
            and 0 < header.unit_nbytes <= header.nbytes - _ROOM_NBYTES
        ):
            raise CorruptError("the channel's header is damaged: its sizes do not fit together")
        return cls(header.offset, header.nbytes, header.unit_nbytes, bool(header.flags), inflight)


def _spin_ns(spin_us: float | None) -> int:
    """How long to look before sleeping. Raises: ValueError."""
    if spin_us is None:
        return int(_SPIN_US * 1e3) if len(os.sched_getaffinity(0)) > 1 else 0
    if not 0 <= spin_us <= _MOST_SPIN_US:
        raise ValueError(f"spin_us {spin_us!r} must be between 0 and {_MOST_SPIN_US:,.0f} microseconds")
    return int(spin_us * 1e3)


class Channel(SelfClosing):
    """Messages of any length from one sender to any number of receivers, with no copy on the way.

    Args:
        capacity: bytes of messages that are kept, and the length of the longest; "64MiB" say.
        overwrite: False: the sender waits for the slowest receiver, and nothing is lost. True: it never
            waits, the oldest messages give way, and a slow receiver gets Overrun.
        max_inflight: messages that may be unread at a time. A few, 2 say, keep large ones in the caches:
            their places are used again as soon as 8 MiB are. None: as many as fit.
        spin_us: microseconds to look for a message or for room before going to sleep, and to offer the
            processor to others once; None: 30, and 0 on one processor. This object's, not the channel's.
        page_size: as in Pages.
        path: a file to keep it in, created with mode 0600; it outlives the process, with what was sent.

    Without a path it has no name anywhere and goes with its last user. Whoever is killed, at whatever
    moment, blocks nobody: a message is seen whole or not at all, the sender's place is free again, and what
    a dead worker of a group had taken goes to another.

    Picklable between processes of one machine (the descriptor travels); a context manager. Thread-safe.

    Raises: ValueError, TypeError for what cannot be; FileExistsError for a path that is there (use
        Channel.open); MapError when memory is short.
    """

    __slots__ = (
        "__weakref__",
        "_control",
        "_end",
        "_geometry",
        "_pages",
        "_readable",
        "_spin_ns",
        "_writable",
    )
    _control: Mapping | None
    _end: End  # for those who only look
    _geometry: _Geometry
    _pages: Pages
    _readable: Mapping | None  # made when a receiver is; without the right to write
    _spin_ns: int
    _writable: Mapping | None

    def __init__(
        self,
        capacity: Size = "64MiB",
        *,
        overwrite: bool = False,
        max_inflight: int | None = None,
        spin_us: float | None = None,
        page_size: Size | None = None,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        longest = as_nbytes(capacity, "capacity")
        inflight = 0 if max_inflight is None else operator.index(max_inflight)
        if max_inflight is not None and not 1 <= inflight <= _MOST_INFLIGHT:
            raise ValueError(f"max_inflight {max_inflight} must be 1 to {_MOST_INFLIGHT:,} messages, or None")
        spin_ns = _spin_ns(spin_us)
        kind = page_kind(page_size)
        if longest > LIMIT_NBYTES >> 2:
            raise ValueError(f"a capacity of {longest:,} bytes is more than can be mapped")
        if path is not None and page_size is not None:
            raise ValueError("page_size= is for channels in memory: the file system decides for path=")
        geometry = _Geometry(
            round_up(_CHANNEL_CONTROL_NBYTES, kind.nbytes),
            round_up(longest + _ROOM_NBYTES, kind.nbytes),
            longest,
            bool(overwrite),
            inflight,
        )
        total = geometry.offset + geometry.nbytes
        backing = Backing.create(total, kind, _LABEL) if path is None else Backing.create_file(path, total)
        try:
            self._map(backing, geometry, spin_ns)
            if path is not None:
                # a full file system is an error here, and not a SIGBUS later
                self._pages.map(geometry.offset, geometry.nbytes, populate=True).close()
            inscribe(self._live.array(), geometry.packed())
        except BaseException:
            if path is not None:
                os.unlink(path)
            raise

    def _map(self, backing: Backing, geometry: _Geometry, spin_ns: int) -> None:
        self._pages, self._geometry, self._spin_ns = Pages._of(backing), geometry, spin_ns
        self._readable = self._writable = None
        self._end = End()
        self._control = self._pages.map(0, geometry.offset, populate=True)
        self._end._attach(False, self._control._live, None, geometry.nbytes, geometry.overwrite)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, spin_us: float | None = None) -> Self:
        """The channel in a file, with what was sent and not overwritten.

        Raises: FileNotFoundError; PermissionError when it belongs to somebody else, who could shorten it
            under our feet; CorruptError, saying what is wrong.
        """
        return cls._opened(Backing.adopt(kernel.open_file(path, os.O_RDWR)), _spin_ns(spin_us))

    @classmethod
    def from_fd(cls, fd: int, *, spin_us: float | None = None) -> Self:
        """The channel behind a descriptor, another's fileno() say. It is duplicated. Raises: as open."""
        return cls._opened(Backing.adopt(kernel.dup(fd)), _spin_ns(spin_us))

    @classmethod
    def _opened(cls, backing: Backing, spin_ns: int) -> Self:
        if backing.truncates:
            owner = os.fstat(backing.fd).st_uid
            if owner != os.geteuid():
                raise PermissionError(
                    errno.EACCES,
                    f"the channel's file belongs to user {owner}, who could shorten it at any time",
                )
        elif not kernel.get_seals(backing.fd) & kernel.F_SEAL_SHRINK:
            raise CorruptError("this is no channel: its memory is not sealed against shrinking")
        geometry = _Geometry.parsed(backing)
        channel = cls.__new__(cls)
        channel._map(backing, geometry, spin_ns)
        if not channel._end._cursors_fit:
            channel.close()
            raise CorruptError("the channel's cursors are damaged: they do not fit together")
        return channel

    # --- both ends -----------------------------------------------------------------------

    def sender(self) -> Sender:
        """Take the sender's place.

        Raises: BusyError while another sender lives; CorruptError when what it would follow is damaged.
        """
        control = self._live._live
        if self._writable is None:
            self._writable = self._arranged(self._pages, "rw")
        geometry = self._geometry
        return Sender._of(
            control,
            self._writable._live,
            geometry.nbytes,
            geometry.capacity,
            overwrite=geometry.overwrite,
            inflight=geometry.inflight,
            spin_ns=self._spin_ns,
        )

    def receiver(self, start: Start = "now", *, group: str | None = None) -> Receiver:
        """A receiver with a place of its own, or one of a group that shares a place.

        Args:
            start: "now": after what is sent; "oldest": at the oldest message left; a number: at that
                message, or if negative so many back, as far as they are left. The first of a group says.
            group: a work queue's name: each message goes to exactly one of its receivers.
        Raises: IndexError for a message not sent yet, Overrun for one that is overwritten; BusyError when
            all 184 places (an overwriting channel needs them only for groups) or 32 groups are taken.
        """
        control = self._live._live
        if self._readable is None:
            self._readable = self._arranged(self._read_only(), "r")
        return Receiver._of(
            control,
            self._readable._live,
            self._geometry.nbytes,
            start,
            group,
            overwrite=self._geometry.overwrite,
            spin_ns=self._spin_ns,
        )

    def _read_only(self) -> Pages:
        """The same pages by a descriptor that gives no right to write: mprotect(2) cannot get it back."""
        backing = self._pages._live
        try:
            fd = procmaps.reopened(backing.fd, os.O_RDONLY)
        except MapError:
            raise
        except OSError:  # no /proc in this sandbox: read-only by protection alone
            return self._pages
        return Pages._of(Backing.adopt(fd, nbytes=backing.nbytes))

    def _arranged(self, pages: Pages, protection: str) -> Mapping:
        run = self._geometry.offset, self._geometry.nbytes
        return pages.arrange([run, run], protection=protection)

    @property
    def _live(self) -> Mapping:
        """The control pages."""
        if self._control is None:
            raise ClosedError("this channel is closed")
        return self._control

    # --- what it is ----------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Bytes that the longest message may have."""
        return self._geometry.capacity

    @property
    def nbytes(self) -> int:
        """Bytes of data, counted once: the capacity and what its frame needs, in whole pages."""
        return self._geometry.nbytes

    @property
    def overwrite(self) -> bool:
        """Whether the oldest messages give way; otherwise the sender waits for its receivers."""
        return self._geometry.overwrite

    @property
    def max_inflight(self) -> int | None:
        """Messages that may be unread at a time; None: as many as fit."""
        return self._geometry.inflight or None

    @property
    def sequence(self) -> int:
        """How many messages were ever sent: the number of the next one. Raises: CorruptError."""
        _ = self._live
        newest = self._end._newest()
        if newest is None:
            raise CorruptError("the channel's count of messages is damaged")
        return newest[1]

    def peers(self) -> list[Peer]:
        """Who takes part, sender first: process, whether it lives, group, lag and loss."""
        _ = self._live
        return members.peers(self._end)

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._control is None

    def __repr__(self) -> str:
        if self.closed:
            return "<Channel closed>"
        way = "overwriting" if self.overwrite else "lossless"
        limit = f", {self.max_inflight} in flight" if self.max_inflight else ""
        return f"<Channel {way}, {format_nbytes(self.capacity)}{limit}, {len(self.peers())} peers>"

    def _repr_html_(self) -> str:
        return portraits.of_backing(None if self.closed else self._pages._backing, repr(self))

    def fileno(self) -> int:
        """The descriptor, close-on-exec and still ours."""
        return self._pages.fileno()

    # --- the end, and other processes ----------------------------------------------------

    def share(self, socket: sockets.socket) -> None:
        """Send the descriptor over a connected Unix socket (SCM_RIGHTS), to `Channel.from_socket`."""
        sockets.send_fds(socket, [_GREETING], [self.fileno()])

    @classmethod
    def from_socket(cls, socket: sockets.socket, *, spin_us: float | None = None) -> Self:
        """The channel whose descriptor comes over a Unix socket.

        Raises: EOFError when the socket ends instead, or something else comes; CorruptError as open.
        """
        spin_ns = _spin_ns(spin_us)
        text, fds, *_ = sockets.recv_fds(socket, len(_GREETING), 1)
        for fd in fds:
            os.set_inheritable(fd, False)
        if text != _GREETING or len(fds) != 1:
            for fd in fds:
                os.close(fd)
            raise EOFError("no channel came over this socket")
        return cls._opened(Backing.adopt(fds[0]), spin_ns)

    def close(self) -> None:
        """Let go of the pages. Senders, receivers and messages made before live on."""
        self._end = End()
        self._control = self._readable = self._writable = None
        if hasattr(self, "_pages"):
            self._pages.close()

    def __reduce__(self) -> tuple[Any, ...]:
        _ = self._live
        return _rebuild, (handover.send(self.fileno()), self._spin_ns / 1e3)


def _rebuild(sent: Any, spin_us: float) -> Channel:
    return Channel._opened(Backing.adopt(handover.receive(sent)), _spin_ns(spin_us))
