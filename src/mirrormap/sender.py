"""Sender: the one end of a channel that writes."""

from __future__ import annotations

import operator
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

from mirrormap import bell, members, procfs
from mirrormap.cursors import Deadline, described, own_token, take_writer
from mirrormap.errors import BusyError, CorruptError
from mirrormap.kernel import Region, SenderBase
from mirrormap.lifetime import SelfClosing
from mirrormap.views import check_dtype

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

__all__ = ["Sender"]

_BUSY = {
    "process": "this sender belongs to the parent process; make one of your own",
    "thread": "another thread sends through this sender just now",
    "reservation": "a reservation is open: commit() or abandon() it first",
    "view": "arrays or memoryviews still show a reservation that was abandoned; delete them first",
}


class Sender(SenderBase, SelfClosing):
    """Sends messages into a channel; made by `Channel.sender`. There is one at a time, in all processes.

    A message is seen whole or not at all, also when the sender is killed while it writes one.

    A context manager. One thread at a time; another gets BusyError. In a forked child it counts as the
    parent's.
    """

    __slots__ = ("__weakref__", "_socket", "capacity")
    _socket: socket.socket | None
    capacity: int
    """Bytes that the longest message may have."""

    def __init__(self) -> None:
        raise TypeError("make a Sender with Channel.sender()")

    @classmethod
    def _of(
        cls,
        control: Region,
        data: Region,
        nbytes: int,
        capacity: int,
        *,
        overwrite: bool,
        inflight: int,
        spin_ns: int,
    ) -> Self:
        sender = cls.__new__(cls)
        sender._socket = None
        sender.capacity = capacity
        sender._attach(True, control, data, nbytes, overwrite)
        take_writer(sender, "channel", "sends", "sender")
        if not sender._begin(inflight, spin_ns, capacity):
            sender._seize_writer(own_token(), 0)
            raise CorruptError("the channel's count of messages is damaged: nothing can follow it")
        sender._network = procfs.network_namespace()
        return sender

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return not self._attached

    def __repr__(self) -> str:
        return "<Sender closed>" if self.closed else f"<Sender of message {self.sequence:,}>"

    # --- called from C -------------------------------------------------------------------

    def _refuse(self, why: str) -> None:
        raise BusyError(_BUSY[why])

    def _refuse_length(self, nbytes: int) -> None:
        raise ValueError(
            f"a message of {nbytes:,} bytes is longer than the channel's capacity of {self.capacity:,}"
        )

    def _describe(self, array: NDArray[Any]) -> tuple[bytes, Any, tuple[int, ...]]:
        """How an array is told to receivers."""
        kind = check_dtype(array.dtype)
        return described(kind, array.shape), array.dtype, array.shape

    def _understand(self, wish: tuple[Any, ...]) -> tuple[bytes, Any, tuple[int, ...]]:
        """What reserve((shape, dtype)) asks for."""
        if len(wish) != 2:
            raise TypeError("reserve a number of bytes, or (shape, dtype)")
        shape: SupportsIndex | Sequence[SupportsIndex] = wish[0]
        dtype: DTypeLike = wish[1]
        kind = check_dtype(dtype)
        dims = tuple(map(operator.index, shape)) if isinstance(shape, Sequence) else (operator.index(shape),)
        if any(count < 0 for count in dims):
            raise ValueError(f"negative dimension in shape {dims}")
        if kind.subdtype is not None:
            kind, inner = kind.subdtype
            dims += inner
        return described(kind, dims), kind, dims

    def _wait_for_room(self, timeout: float | None) -> None:
        deadline = Deadline(timeout)
        while not self._wait_room(milliseconds := deadline.slice_ms()):
            if not members.evict(self, drop=True) and not milliseconds:
                raise TimeoutError("no room for the message: the slowest receiver has not read what is there")

    def _ring_bells(self) -> None:
        self._socket = bell.ring(self._socket, self._bells())

    # --- the end -------------------------------------------------------------------------

    def close(self) -> None:
        """Free the sender's place. Receivers get what was sent, and then SenderGone.

        An open reservation is abandoned. Raises: BufferError while a view of one lives; BusyError while
        another thread is in send().
        """
        if self.closed:
            return
        if self._waiting:
            self._refuse("thread")
        self._abandon()
        if self._holds:
            self._seize_writer(own_token(), 0)
            self._wake()
            self._ring_bells()
        self._detach()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @property
    def _live(self) -> int:
        return self.sequence  # which says so when there is none

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Sender holds a place of this process; send the Channel and make a sender there")
