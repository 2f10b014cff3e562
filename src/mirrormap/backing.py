"""The kernel object: a private descriptor, its bytes, its page size, its seals.

A Backing lives as long as any Pages or mapping refers to it; the last one to go closes the
descriptor. Its logical size is held here and never asked of the kernel again: a mapping of
hugetlb pages can lengthen the object unseen, and a sealed memfd cannot be shortened at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from mirrormap import filelock, kernel, procmaps
from mirrormap.errors import MapError, MirrorError, NotMirrorableError
from mirrormap.kernel import PAGE_NBYTES, Region, VmaInfo
from mirrormap.units import LIMIT_NBYTES, Size, as_nbytes, format_nbytes, round_up

__all__ = ["Backing", "PageKind", "page_kind"]

_PREFIX: Final = "mirrormap"
_NAME_LIMIT: Final = 249  # memfd_create(2)

_resizing: Final = threading.RLock()  # one for all objects: changes of size are rare and short


class PageKind:
    """A validated `page_size=` argument.

    Attributes:
        nbytes: granularity of offsets and lengths, in bytes.
        huge_nbytes: the hugetlb page size, or 0.
        transparent: whether transparent huge pages are wanted.
    """

    __slots__ = ("huge_nbytes", "nbytes", "transparent")

    def __init__(self, nbytes: int, *, huge_nbytes: int = 0, transparent: bool = False) -> None:
        self.nbytes = nbytes
        self.huge_nbytes = huge_nbytes
        self.transparent = transparent


_SMALL: Final = PageKind(PAGE_NBYTES)


def page_kind(page_size: Size | None) -> PageKind:
    """What a `page_size=` argument asks for.

    Raises: ValueError for a size this kernel has no pages of, listing those it has.
    """
    if page_size is None:
        return _SMALL
    if page_size == "thp":
        return PageKind(PAGE_NBYTES, transparent=True)
    sizes = procmaps.huge_sizes()
    if page_size == "huge":
        nbytes = procmaps.default_huge_nbytes() or 0
    else:
        nbytes = as_nbytes(page_size, "page_size")
        if nbytes == PAGE_NBYTES:
            return _SMALL
    if nbytes not in sizes:
        known = ", ".join(format_nbytes(size).replace(" ", "") for size in [PAGE_NBYTES, *sizes])
        raise ValueError(f"this kernel has no pages of page_size={page_size!r}; it has {known}, and 'thp'")
    return PageKind(nbytes, huge_nbytes=nbytes)


class Shows(Protocol):
    """What a region keeps: it knows which stretches of an object lie where."""

    def stretches(self, backing: Backing) -> Iterator[tuple[int, int, int]]:
        """(byte in the region, offset in the object, nbytes), one a stretch."""
        ...


class Backing:
    """One kernel object that holds bytes in pages. Thread-safe.

    Attributes:
        fd: private close-on-exec descriptor.
        nbytes: logical size in bytes.
        kind: page size and sort of the pages.
        label: the name in /proc/self/maps.
        in_memory: tmpfs or hugetlbfs: no disk behind it.
        truncates: a named file: shrinking moves its end. Of a memfd only the tail is given back,
            so that no view of anybody's becomes a SIGBUS.
        writable: whether the descriptor allows writing.
        frozen: [start, end) of each open snapshot.
        faults_huge: takes transparent huge pages when it is touched where MADV_HUGEPAGE asked.
    """

    __slots__ = (
        "__weakref__", "_dumped", "_regions", "faults_huge", "fd", "frozen", "in_memory", "kind", "label",
        "nbytes", "truncates", "writable",
    )  # fmt: skip

    def __init__(
        self,
        fd: int,
        nbytes: int,
        kind: PageKind,
        label: str,
        *,
        in_memory: bool = True,
        truncates: bool = False,
        writable: bool = True,
    ) -> None:
        self.fd = fd
        self.nbytes = nbytes
        self.kind = kind
        self.label = label
        self.in_memory = in_memory
        self.truncates = truncates
        self.writable = writable
        self.faults_huge = False
        self.frozen: list[tuple[int, int]] = []
        self._regions: set[weakref.ref[Region]] = set()
        self._dumped: tuple[weakref.ref[Region], int, int] | None = None

    def __del__(self, _close: Callable[[int], None] = kernel.close) -> None:
        # half-made, or closed underneath by somebody's close_range(); suppress() would cost as
        # much as a system call
        try:  # noqa: SIM105
            _close(self.fd)
        except (AttributeError, MapError):
            pass

    # --- made, opened, adopted -----------------------------------------------------------

    @classmethod
    def create(cls, nbytes: int, kind: PageKind, name: str) -> Backing:
        """A new memfd of at least `nbytes`, sealed so that nobody can shorten it."""
        label = _PREFIX if name == _PREFIX else f"{_PREFIX}:{name}"
        nbytes_of_label = len(label) if label.isascii() else len(os.fsencode(label))
        if "\0" in name or nbytes_of_label > _NAME_LIMIT:
            room = _NAME_LIMIT - len(_PREFIX) - 1
            raise ValueError(f"name must be at most {room} bytes long, without a NUL")
        nbytes = _rounded(nbytes, kind)
        fd = kernel.memfd_create(label, kernel.MFD_ALLOW_SEALING, huge_nbytes=kind.huge_nbytes)
        try:
            kernel.ftruncate(fd, nbytes, label)
            kernel.add_seals(fd, kernel.F_SEAL_SHRINK, label)
        except BaseException:
            kernel.close(fd)
            raise
        return cls(fd, nbytes, kind, label)

    @classmethod
    def create_private(cls, nbytes: int, name: str) -> Backing:
        """The same for what is not handed to strangers: not sealed, if huge pages can be had for that."""
        label = f"{_PREFIX}:{name}"
        fd = kernel.huge_file(label)
        if fd is None:
            return cls.create(nbytes, _SMALL, name)
        backing = cls(fd, 0, _SMALL, label)
        backing.faults_huge = True
        backing.grow(nbytes)
        return backing

    @classmethod
    def open(cls, path: str | os.PathLike[str], nbytes: int | None) -> Backing:
        """An existing file, or with `nbytes` one that is created (0600) or grown to that size."""
        try:
            fd = kernel.open_file(path, os.O_RDWR)
        except FileNotFoundError:
            if nbytes is None:
                raise
            return cls.create_file(path, nbytes)
        except OSError as error:
            if nbytes is not None or error.errno not in (
                errno.EACCES,
                errno.EPERM,
                errno.EROFS,
                errno.ETXTBSY,
            ):
                raise
            fd = kernel.open_file(path, os.O_RDONLY)
        backing = cls.adopt(fd)
        if nbytes is not None:
            backing.grow(nbytes)
        return backing

    @classmethod
    def create_file(cls, path: str | os.PathLike[str], nbytes: int) -> Backing:
        """A new file (0600) of that size. Raises: FileExistsError if there is one."""
        fd = kernel.open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            backing = cls.adopt(fd)
            backing.grow(nbytes)
        except BaseException:
            os.unlink(path)
            raise
        return backing

    @classmethod
    def adopt(cls, fd: int, *, nbytes: int | None = None) -> Backing:
        """Take over a descriptor, which is closed here when it turns out to be of no use.

        Args: nbytes: the logical size, where it is known better than by fstat.
        Raises: ValueError unless it is a regular file or a memfd.
        """
        try:
            info = kernel.fstat(fd)
            if not stat.S_ISREG(info.mode):
                raise ValueError("only regular files and memfds have pages that can be mapped")
            name = procmaps.descriptor_name(fd)
        except BaseException:
            kernel.close(fd)
            raise
        huge = info.fs_block if info.fs_magic == kernel.HUGETLBFS_MAGIC else 0
        return cls(
            fd,
            info.nbytes if nbytes is None else nbytes,
            PageKind(huge, huge_nbytes=huge) if huge else _SMALL,
            kernel.label_of(name),
            in_memory=info.fs_magic in (kernel.HUGETLBFS_MAGIC, kernel.TMPFS_MAGIC),
            truncates=not kernel.is_nameless(name),
            writable=info.open_flags & os.O_ACCMODE == os.O_RDWR,
        )

    @classmethod
    def behind(cls, vma: VmaInfo, *, write: bool) -> Backing:
        """The object a mapping shows, found without its maker's help.

        A descriptor of it that this process has open (CPython's mmap keeps one), else
        /proc/self/map_files.
        Raises: NotMirrorableError EPERM, naming the capability that is missing.
        """
        for fd in procmaps.descriptors_of(vma.dev, vma.inode):
            with contextlib.suppress(MapError, ValueError, OSError):
                backing = cls.adopt(kernel.dup(fd))
                if backing.writable or not write:
                    return backing
        try:
            return cls.adopt(procmaps.map_file(vma, os.O_RDWR if write else os.O_RDONLY))
        except OSError as error:
            raise NotMirrorableError(
                error.errno or errno.EPERM,
                call="open(/proc/self/map_files)",
                nbytes=vma.end - vma.start,
                label=vma.name,
                advice="No open descriptor of this memory was found, and reaching it without one needs "
                "CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN in the initial user namespace: keep the "
                "descriptor open and use Pages.from_fd(), or make the memory with Pages()",
            ) from None

    # --- size and contents ---------------------------------------------------------------

    @property
    def allocated(self) -> int:
        """Bytes the kernel really holds for the object."""
        return kernel.fstat(self.fd).allocated

    def grow(self, nbytes: int) -> None:
        """Lengthen to at least `nbytes`; pages come into being when they are touched."""
        with _resizing:
            if not self.truncates or self.kind.huge_nbytes:
                nbytes = _rounded(nbytes, self.kind)
            if nbytes <= self.nbytes:
                return
            # never below what another process may have grown it to
            if kernel.fstat(self.fd).nbytes < nbytes:
                kernel.ftruncate(self.fd, nbytes, self.label)
            self.nbytes = nbytes

    def hold_space(self, start: int, end: int) -> None:
        """Take the disk blocks of [start, end) of a file now, also beyond its end.

        A store into a hole of a file whose disk is full is a SIGBUS; this is a MapError ENOSPC.
        File systems that cannot tell beforehand, and memory, are left as they are.
        """
        if self.in_memory or start >= end:
            return
        try:
            kernel.allocate(self.fd, start, end - start, self.label)
        except MapError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                with contextlib.suppress(MapError):  # what was taken so far lies beyond the end
                    kernel.ftruncate(self.fd, kernel.fstat(self.fd).nbytes, self.label)
                raise

    def lock(self) -> None:
        """Be the only one that writes this file, until the descriptor goes with us.

        Raises: BusyError while another process, or another object here, holds it.
        """
        filelock.take(self.fd, self.label)

    def unlock(self) -> None:
        """Let another write this file, also while views keep our descriptor."""
        filelock.give(self.fd)

    def shrink(self, nbytes: int) -> None:
        """Shorten: files are truncated; of a sealed object the tail is given back and reads zeros.

        Raises: BufferError while a mapping of this process shows bytes beyond.
        """
        with _resizing:
            if not self.truncates or self.kind.huge_nbytes:
                nbytes = _rounded(nbytes, self.kind)
            if nbytes >= self.nbytes:
                return
            self.check_thawed(nbytes, self.nbytes - nbytes)
            if self.is_shown(nbytes):
                raise BufferError(
                    f"arrays or memoryviews still show bytes beyond {nbytes:,} of {self.label!r}; "
                    "delete them first"
                )
            if not self.truncates:
                kernel.punch_hole(self.fd, nbytes, self.nbytes - nbytes, self.label)
            else:
                kernel.ftruncate(self.fd, nbytes, self.label)
                self._hide_beyond(nbytes)
            self.nbytes = nbytes

    def discard(self, offset: int, nbytes: int) -> None:
        """Give pages back to the system; the range reads zeros through every view."""
        if nbytes:
            self.check_thawed(offset, nbytes)
            kernel.punch_hole(self.fd, offset, nbytes, self.label)

    def is_frozen(self, offset: int, nbytes: int) -> bool:
        """Does an open snapshot show any of these bytes?"""
        return any(start < offset + nbytes and offset < end for start, end in self.frozen)

    def check_thawed(self, offset: int, nbytes: int) -> None:
        """Raises: MirrorError while a snapshot of the range is open."""
        if self.frozen and self.is_frozen(offset, nbytes):
            raise MirrorError(f"a snapshot of {self.label!r} is open: close it first")

    # --- who shows it --------------------------------------------------------------------

    def note(self, region: Region) -> None:
        """Remember a region some of whose runs are of this object; its `keep` tells which."""
        self._regions.add(weakref.ref(region, self._regions.discard))

    def is_shown(self, start: int) -> bool:
        """Does a live buffer of this process show any byte from `start` on?"""
        return any(
            region.shown(at + max(0, start - offset), at + nbytes)
            for region, at, offset, nbytes in self.shown()
            if offset + nbytes > start
        )

    def shown(self) -> Iterator[tuple[Region, int, int, int]]:
        """Live regions, and at which byte each shows [offset, offset + nbytes) of the object."""
        for reference in list(self._regions):
            region = reference()
            if region is not None and not region.closed:
                shows: Shows | None = region.keep  # None: another thread has closed it just now
                for stretch in shows.stretches(self) if shows is not None else ():
                    yield region, *stretch

    def _hide_beyond(self, start: int) -> None:
        """After a truncation: no new buffer may reach bytes that would be a SIGBUS."""
        for region, at, offset, nbytes in self.shown():
            end = at + max(0, start - offset)
            if offset + nbytes > start and region.nbytes > end:
                region.limit(end)

    def takes_dump(self, region: Region, offset: int, nbytes: int) -> bool:
        """Should core dumps hold this range through `region`? Once is enough.

        Mirrors multiply core dumps as they multiply RSS, so only a range that the first live
        view does not cover already is left in.
        """
        if self._dumped is not None:
            key, start, end = self._dumped
            first = key()
            if first is not None and not first.closed and start <= offset and offset + nbytes <= end:
                return False
            if first is not None and not first.closed and end - start >= nbytes:
                return True
        self._dumped = weakref.ref(region), offset, offset + nbytes
        return True


def _rounded(nbytes: int, kind: PageKind) -> int:
    rounded = round_up(nbytes, kind.nbytes)
    if rounded > LIMIT_NBYTES:
        raise ValueError(f"{nbytes:,} bytes are more than any object can hold")
    return rounded
