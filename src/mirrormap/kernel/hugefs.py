"""Files on a tmpfs of our own, which takes transparent huge pages where it is asked to."""

from __future__ import annotations

from mirrormap import _core

__all__ = ["has_huge_files", "huge_file", "is_nameless", "label_of"]

_OWN = "/mirrormap:"  # at the root of its mount, as every path there is
_GONE = " (deleted)"


def huge_file(name: str) -> int | None:
    """A nameless file whose pages are huge ones, as they are touched, under MADV_HUGEPAGE.

    fsopen("tmpfs"), huge=advise, fsmount: once a process, attached nowhere; without CAP_SYS_ADMIN in a
    user namespace of a short-lived child. What shmem_enabled says does not count there, except "deny".
    Returns: a close-on-exec descriptor, which cannot be sealed; None where there can be no such mount:
    before Linux 5.2, in sandboxes, where unprivileged user namespaces are forbidden.
    """
    try:
        return _core.hugefs_file(name)
    except OSError:
        return None


def is_nameless(name: str) -> bool:
    """Does the kernel's name for an object say that it never had one in a file system of anybody's?"""
    return name.startswith("/memfd:") or (name.startswith(_OWN) and name.endswith(_GONE))


def label_of(name: str) -> str:
    """The kernel's name for an object as people know it: "mirrormap:NAME", or a path."""
    if is_nameless(name):
        name = name.removeprefix("/memfd:").removeprefix("/")
    return name.removesuffix(_GONE)


def has_huge_files() -> bool:
    """Whether huge_file() gives any here."""
    fd = huge_file("mirrormap:probe")
    if fd is not None:
        _core.close(fd)
    return fd is not None
