"""A seccomp filter that makes chosen system calls answer an errno, for sandboxes in tests."""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

_NUMBERS = {
    "x86_64": {"mremap": 25, "memfd_create": 319, "madvise": 28},
    "aarch64": {"mremap": 216, "memfd_create": 279, "madvise": 233},
}
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def numbers() -> dict[str, int]:
    """System call numbers of this architecture; empty where they are not known here."""
    return _NUMBERS.get(platform.machine(), {})


def refuse(call: str, error: int = errno.EPERM) -> None:
    """From now on `call` answers `error` in this process and its children, for good."""
    program = [
        (_LOAD, 0, 0, 0),
        (_JUMP_EQUAL, 0, 1, numbers()[call]),
        (_RETURN, 0, 0, _ERRNO | error),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    header = struct.pack("@HP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0),
    ):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")
