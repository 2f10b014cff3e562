"""Seccomp filters that make chosen system calls answer an errno: sandboxes and older kernels."""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

_NUMBERS = {
    "x86_64": {"mremap": 25, "memfd_create": 319, "madvise": 28, "ioctl": 16, "fsopen": 430, "unshare": 272},
    "aarch64": {
        "mremap": 216,
        "memfd_create": 279,
        "madvise": 233,
        "ioctl": 29,
        "fsopen": 430,
        "unshare": 97,
    },
}
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_ARGUMENTS_AT = 16  # in struct seccomp_data; eight bytes each, the low half first

PROCMAP_QUERY, PAGEMAP_SCAN = 0xC0686611, 0xC0606610
POPULATE_READ, POPULATE_WRITE = 22, 23


def numbers() -> dict[str, int]:
    """System call numbers of this architecture; empty where they are not known here."""
    return _NUMBERS.get(platform.machine(), {})


def refuse(call: str, error: int = errno.EPERM, *, argument: int = 0, value: int | None = None) -> None:
    """From now on `call` answers `error` in this process and its children, for good.

    Args: argument, value: only where that argument's low 32 bits have this value.
    """
    refused = [(_RETURN, 0, 0, _ERRNO | error), (_RETURN, 0, 0, _ALLOW)]
    if value is not None:
        refused = [(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument), (_JUMP_EQUAL, 0, 1, value), *refused]
    refuse_number(numbers()[call], refused)


def refuse_number(number: int, then: list[tuple[int, int, int, int]] | None = None) -> None:
    """The same for a call by its number on this architecture; `then`: what decides, EPERM by default."""
    refused = then or [(_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    program = [(_LOAD, 0, 0, 0), (_JUMP_EQUAL, 0, len(refused) - 1, number), *refused]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    header = struct.pack("@HP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0
    ):
        raise OSError(ctypes.get_errno(), "prctl")


def act_like_an_old_kernel() -> None:
    """Before 5.14: no MADV_POPULATE_*, no PROCMAP_QUERY, no PAGEMAP_SCAN."""
    for advice in (POPULATE_READ, POPULATE_WRITE):
        refuse("madvise", errno.EINVAL, argument=2, value=advice)
    for request in (PROCMAP_QUERY, PAGEMAP_SCAN):
        refuse("ioctl", errno.ENOTTY, argument=1, value=request)
