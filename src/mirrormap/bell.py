"""Bell: how a sender wakes an event loop, by one byte to a socket without a file name."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

__all__ = ["Bell", "ring"]


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def _settle(waiter: asyncio.Future[bool], rung: bool) -> None:
    if not waiter.done():
        waiter.set_result(rung)


def ring(source: socket.socket | None, addresses: list[int]) -> socket.socket:
    """Send a byte to each address. Who is gone or has one waiting needs none. Returns: the socket used."""
    source = source or _socket()
    for address in addresses:
        with contextlib.suppress(OSError):
            source.sendto(b"\0", b"\0%05x" % (address & 0xFFFFF))
    return source


class Bell:
    """A non-blocking datagram socket at an address the kernel chose, watched by one event loop at a time.

    Attributes: address: the number in its name in the abstract namespace.
    """

    __slots__ = ("_loop", "_process", "_socket", "_waiting", "address")

    def __init__(self) -> None:
        self._socket = _socket()
        try:
            self._socket.bind("")  # autobind, see unix(7)
            self.address = int(self._socket.getsockname()[1:], 16)
        except BaseException:
            self._socket.close()
            raise
        self._process = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: set[asyncio.Future[bool]] = set()

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let this loop wake up for it, and no other."""
        if loop is not self._loop:
            self._unwatch()
            loop.add_reader(self._socket.fileno(), self._rung)
            self._loop = loop

    async def rung(self, seconds: float) -> bool:
        """Wait for a byte. Returns: whether one came within that time."""
        import asyncio  # here: a third of what importing the package would cost

        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(seconds, _settle, waiter, False)
        self._waiting.add(waiter)
        try:
            return await waiter
        finally:
            timer.cancel()
            self._waiting.discard(waiter)

    def _rung(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(1)
        for waiter in self._waiting:
            _settle(waiter, True)

    def _unwatch(self) -> None:
        loop, self._loop = self._loop, None
        # in a forked child the loop's epoll is the parent's too
        if loop is not None and not loop.is_closed() and self._process == os.getpid():
            loop.remove_reader(self._socket.fileno())

    def close(self) -> None:
        """No byte will come any more; who waits looks round."""
        self._unwatch()
        self._socket.close()
        for waiter in self._waiting:
            if not waiter.get_loop().is_closed():
                _settle(waiter, False)
