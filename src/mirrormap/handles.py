"""Handles: an array on its way to another process, as descriptors and a description of it."""

from __future__ import annotations

import array as numbers
import contextlib
import os
import socket
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import numpy as np
from numpy.lib.array_utils import byte_bounds

from mirrormap import handover, kernel, placement, procmaps
from mirrormap.backing import Backing, PageKind
from mirrormap.errors import ClosedError, CorruptError, MirrorError
from mirrormap.foreign import runs_by_descriptor, runs_under
from mirrormap.layouts import read_layout, write_layout
from mirrormap.lifetime import Closing
from mirrormap.placement import Run
from mirrormap.units import check_range
from mirrormap.views import array_over, check_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Handle", "handle"]

_LABEL: Final = "handle"
_READ, _READ_WRITE = kernel.PROT_READ, kernel.PROT_READ | kernel.PROT_WRITE
_HEAD: Final = struct.Struct("<8sII")
_MAGIC: Final = b"mm.array"
_MOST_DESCRIPTORS: Final = 253  # SCM_MAX_FD
_MOST_TEXT_NBYTES: Final = 1 << 20


class _Layout(NamedTuple):
    """How the array lies in its runs: `shift` bytes in is its lowest byte, `start` further its first."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    shift: int
    start: int
    readonly: bool


class Handle(Closing):
    """What another process of this machine needs to show an array: descriptors, no bytes.

    Made by `handle(array)`. Picklable, so it goes through the queues, pipes and arguments of
    multiprocessing, to workers that were forked, spawned or come from a forkserver; `send` and
    `receive` pass it over any Unix socket. It keeps the pages alive by itself; `open` may be called
    often. A context manager; thread-safe.

    Attributes:
        dtype, shape: of the array. readonly: whether it may not be written.
    """

    __slots__ = ("__weakref__", "_layout", "_runs")
    _layout: _Layout
    _runs: Sequence[Run] | None

    def __init__(self) -> None:
        raise TypeError("make a Handle with handle(array), or Handle.receive(socket)")

    @classmethod
    def _of(cls, runs: Sequence[Run], layout: _Layout) -> Self:
        made = cls.__new__(cls)
        made._runs = runs
        made._layout = layout
        return made

    @property
    def _live(self) -> Sequence[Run]:
        if self._runs is None:
            raise ClosedError("this handle is closed")
        return self._runs

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the array."""
        return self._layout.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self._layout.shape

    @property
    def readonly(self) -> bool:
        """Whether the array may not be written: its descriptors do not allow it either."""
        return self._layout.readonly

    def __repr__(self) -> str:
        if self._runs is None:
            return "<Handle closed>"
        return f"<Handle of {self.dtype} {self.shape}{', read-only' if self.readonly else ''}>"

    def open(self) -> NDArray[Any]:
        """The array, here: the same pages, dtype, shape and strides. No byte is copied.

        Raises: ClosedError; MapError when address space is short; CorruptError when what was
            received does not fit its descriptors.
        """
        region = placement.place(self._live, label=_LABEL)
        dtype, shape, strides, shift, start, readonly = self._layout
        try:
            return array_over(region, dtype, shape, shift, strides=strides, start=start, readonly=readonly)
        except (TypeError, ValueError) as error:
            raise CorruptError(f"this handle describes an array outside its pages: {error}") from None

    def close(self) -> None:
        """Let go of the descriptors. Arrays that were opened live on."""
        self._runs = None

    # --- on the way ----------------------------------------------------------------------

    def _packed(self) -> tuple[list[Backing], list[tuple[int, int, int]]]:
        """The objects, each once, and (which, offset, nbytes) of every run."""
        found: list[Backing] = []
        runs: list[tuple[int, int, int]] = []
        for run in self._live:
            assert run.backing is not None
            if run.backing not in found:
                found.append(run.backing)
            runs.append((found.index(run.backing), run.offset, run.nbytes))
        return found, runs

    def __reduce__(self) -> tuple[Any, ...]:
        found, runs = self._packed()
        objects = [(handover.send(one.fd), one.nbytes, one.kind.transparent) for one in found]
        return _rebuild, (objects, runs, tuple(self._layout))

    def send(self, connection: socket.socket) -> None:
        """Pass it over a Unix socket (SCM_RIGHTS), to a `Handle.receive` at the other end.

        Args: connection: a blocking stream socket of the family AF_UNIX.
        Raises: OSError as the socket does; MirrorError for an array over more than 253 objects.
        """
        found, runs = self._packed()
        if len(found) > _MOST_DESCRIPTORS:
            raise MirrorError(f"{len(found)} descriptors are more than one message can carry: stitch fewer")
        dtype, shape, strides, *place = self._layout
        text = write_layout(
            dtype,
            shape=shape,
            strides=strides,
            place=tuple(map(int, place)),
            runs=tuple(number for run in runs for number in run),
            sizes=tuple(one.nbytes for one in found),
        ).encode()
        head = _HEAD.pack(_MAGIC, len(text), len(found))
        descriptors = numbers.array("i", [one.fd for one in found])
        sent = connection.sendmsg([head], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
        connection.sendall((head + text)[sent:])

    @classmethod
    def receive(cls, connection: socket.socket) -> Self:
        """The handle that the other end of a Unix socket sends. Nothing in it is trusted.

        Raises: EOFError when the other end has closed; CorruptError for anything that is no handle.
        """
        flags = socket.MSG_CMSG_CLOEXEC
        head, fds, _, _ = socket.recv_fds(connection, _HEAD.size, _MOST_DESCRIPTORS, flags)
        with contextlib.ExitStack() as stack:
            for fd in fds:
                stack.callback(os.close, fd)
            if not head:
                raise EOFError("the other end has closed the socket")
            head += _exactly(connection, _HEAD.size - len(head))
            magic, nbytes, count = _HEAD.unpack(head)
            if magic != _MAGIC or nbytes > _MOST_TEXT_NBYTES or count != len(fds):
                raise CorruptError("what came over the socket is no handle of an array")
            text = _exactly(connection, nbytes).decode(errors="replace")
            names = "shape", "strides", "place", "runs", "sizes"
            dtype, shape, strides, place, flat, sizes = read_layout(text, *names)
            try:
                shift, start, readonly = place
                runs = [(flat[at], flat[at + 1], flat[at + 2]) for at in range(0, len(flat), 3)]
                found = [_object(kernel.dup(fd), many, False) for fd, many in zip(fds, sizes, strict=True)]
                layout = _Layout(dtype, shape, strides, shift, start, bool(readonly))
                return cls._of(_runs(found, runs, layout.readonly, trusted=False), layout)
            except (ValueError, IndexError):
                raise CorruptError("the handle that came over the socket is damaged") from None


def handle(array: NDArray[Any]) -> Handle:
    """Something to send to another process, which shows the same array there: `.open() -> ndarray`.

    Args: array: of any shape and strides, on shareable pages: our own, a Growable's, a stitched one,
        np.memmap, an array over SharedMemory, any under `numpy_allocator`.
    Returns: a Handle. Of a read-only array the receiver gets descriptors that cannot be written.
    Raises: NotMirrorableError for private memory (copy it with `share()`), and for shared memory
        whose descriptor is closed and which a missing capability keeps us from reopening; TypeError
        for what is no ndarray, and for object dtypes; ValueError for an empty array.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"a handle is made of an ndarray, not {type(array).__name__}")
    check_dtype(array.dtype)
    if not array.nbytes:
        raise ValueError("an empty array has no pages to hand over")
    low, high = byte_bounds(array)
    readonly = not array.flags.writeable
    first, under, _ = runs_under(array, low, high - low, _READ if readonly else _READ_WRITE)
    runs: Sequence[Run] = runs_by_descriptor(under)
    if readonly:
        runs = _reopened(runs)
    start = array.__array_interface__["data"][0] - low
    return Handle._of(runs, _Layout(array.dtype, array.shape, array.strides, low - first, start, readonly))


def _reopened(runs: Sequence[Run]) -> list[Run]:
    """The runs through descriptors that were opened for reading only."""
    again: dict[int, Backing] = {}
    for run in runs:
        backing = run.backing
        assert backing is not None
        if id(backing) not in again:
            fd = procmaps.reopened(backing.fd, os.O_RDONLY)
            again[id(backing)] = _object(fd, backing.nbytes, backing.kind.transparent)
    return [run._replace(backing=again[id(run.backing)]) for run in runs]


def _object(fd: int, nbytes: int, transparent: bool) -> Backing:
    backing = Backing.adopt(fd, nbytes=nbytes)
    if transparent:
        backing.kind = PageKind(backing.kind.nbytes, transparent=True)
    return backing


def _runs(
    found: Sequence[Backing], runs: Sequence[tuple[int, int, int]], readonly: bool, *, trusted: bool
) -> list[Run]:
    bits = _READ if readonly else _READ_WRITE
    made: list[Run] = []
    for index, offset, nbytes in runs:
        backing = found[index]
        if not trusted:
            check_range(index, 1, len(found))
            backing.nbytes = min(backing.nbytes, kernel.fstat(backing.fd).nbytes)
            check_range(offset, nbytes, backing.nbytes)
            if not nbytes or offset % backing.kind.nbytes:
                raise ValueError
        page = backing.kind.nbytes
        made.append(Run(backing, offset, nbytes, bits, page, notes_writes=not backing.in_memory))
    if not made:
        raise ValueError
    return made


def _rebuild(
    objects: list[tuple[Any, int, bool]], runs: list[tuple[int, int, int]], layout: tuple[Any, ...]
) -> Handle:
    found = [_object(handover.receive(sent), nbytes, transparent) for sent, nbytes, transparent in objects]
    described = _Layout(*layout)
    return Handle._of(_runs(found, runs, described.readonly, trusted=True), described)


def _exactly(connection: socket.socket, nbytes: int) -> bytes:
    data = b""
    while len(data) < nbytes:
        more = connection.recv(nbytes - len(data))
        if not more:
            raise EOFError("the other end closed the socket in the middle of a handle")
        data += more
    return data
