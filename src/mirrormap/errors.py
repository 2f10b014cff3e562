"""Every exception of the package, documented by who should catch it."""

from __future__ import annotations

import os

__all__ = [
    "BusyError",
    "ClosedError",
    "CorruptError",
    "MapError",
    "MirrorError",
    "NotMirrorableError",
    "NotPermittedError",
    "Overrun",
    "ProcessGone",
    "SenderGone",
    "WriterGone",
]


class MirrorError(Exception):
    """Root of the package's exceptions: catch it at the edge of a program."""


class ClosedError(MirrorError, ValueError):
    """The object was closed. A mistake in the calling program, as with a closed file."""


class MapError(MirrorError, OSError):
    """The kernel refused a call. Whoever asked for memory catches it and acts on `errno`.

    Attributes:
        errno: the kernel's error number.
        call: the system call, by name.
        nbytes: the bytes that were asked for.
        label: what the memory was for, as seen in /proc/self/maps.
        advice: what to do about it, one or two sentences, or "".

    Nothing was changed: no half-made mapping, no descriptor, the source untouched.
    """

    def __init__(self, errno: int, *, call: str, nbytes: int = 0, label: str = "", advice: str = "") -> None:
        subject = f"{nbytes:,} bytes" if nbytes else ""
        if label:
            subject += f"{', ' if subject else ''}{label!r}"
        text = f"{call}({subject}): {os.strerror(errno)}"
        if advice:
            text += f". {advice}"
        super().__init__(errno, text)
        self.call = call
        self.nbytes = nbytes
        self.label = label
        self.advice = advice

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.errno, self.call, self.nbytes, self.label, self.advice)


class NotMirrorableError(MapError):
    """This memory cannot be shown a second time; the text says why and names the way out."""


class BusyError(MirrorError):
    """The place is taken: another writer lives, a reservation is open, all slots are held."""


class Overrun(MirrorError):  # noqa: N818
    """The writer was faster: items or messages were overwritten before, or while, they were looked at.

    Attributes:
        missed: how many. The reader or receiver, if it was one, stands at the oldest intact one now. In a
            group each message is told to one worker, what a dead one had taken to who takes that over.
    """

    def __init__(self, missed: int) -> None:
        super().__init__(f"{missed:,} were overwritten before they were read")
        self.missed = missed

    def __reduce__(self) -> tuple[object, ...]:
        return Overrun, (self.missed,)


class WriterGone(MirrorError):  # noqa: N818
    """No more items will come: everything committed was read, and the writer closed or died."""


class ProcessGone(MirrorError, ProcessLookupError):  # noqa: N818
    """The process that was to be looked at has ended, or ended meanwhile; or there never was one."""


class NotPermittedError(MirrorError, PermissionError):
    """The kernel shows this process's memory to its owner and to root only."""


class SenderGone(MirrorError):  # noqa: N818
    """No more messages will come: every one committed was read, and the sender closed or died."""


class CorruptError(MirrorError):
    """Shared memory or a file says things that cannot be; the text says which."""


def _rebuild(cls: type[MapError], errno: int, call: str, nbytes: int, label: str, advice: str) -> MapError:
    return cls(errno, call=call, nbytes=nbytes, label=label, advice=advice)
