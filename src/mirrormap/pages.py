"""Pages: the public face of the physical side. A size and a page size, and no address."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Self

from mirrormap import kernel, placement, portraits
from mirrormap.backing import Backing, PageKind, page_kind
from mirrormap.errors import ClosedError, MapError
from mirrormap.lifetime import Closing
from mirrormap.mapping import Mapping
from mirrormap.placement import Run
from mirrormap.protections import protection_bits
from mirrormap.units import (
    Size,
    as_nbytes,
    as_range,
    check_address,
    check_multiple,
    format_nbytes,
    next_power_of_two,
    round_up,
)

__all__ = ["Pages"]

_MOST_VIEWS = 64


class Pages(Closing):
    """Bytes in pages of memory, to be shown at as many addresses as you like.

    Args:
        nbytes: bytes, or "64KiB", "2MiB", "1GiB"; rounded up to whole pages.
        page_size: None: the system's; "2MiB", "1GiB" or any size the kernel has a pool of;
            "huge": the default one of those; "thp": transparent huge pages, as far as they can
            be had.
        name: seen in /proc/self/maps as "/memfd:mirrormap:NAME".

    The object is a memfd: it has no name in any file system, cannot be shortened by anybody
    (F_SEAL_SHRINK), and goes with its last view. Nothing is allocated until it is touched or
    populated, except that mapping huge pages reserves them.

    A context manager, picklable between processes of one machine (the descriptor travels).
    Thread-safe.

    Raises: ValueError for a size or page size that cannot be; MapError when the kernel refuses.
    """

    __slots__ = ("__weakref__", "_backing")

    def __init__(self, nbytes: Size, *, page_size: Size | None = None, name: str = "mirrormap") -> None:
        self._backing: Backing | None = Backing.create(
            as_nbytes(nbytes, "nbytes"), page_kind(page_size), name
        )

    @classmethod
    def _of(cls, backing: Backing) -> Self:
        pages = cls.__new__(cls)
        pages._backing = backing
        return pages

    @classmethod
    def open(cls, path: str | os.PathLike[str], nbytes: Size | None = None) -> Self:
        """The pages of a file, also one on a hugetlbfs or tmpfs mount.

        Args: nbytes: create the file (mode 0600) or lengthen it to this many bytes; None: as it is.
        A file can be truncated by others: touching a view beyond its end is then a SIGBUS. A file
        that may not be written is opened for reading, and its views must be "r".
        Raises: FileNotFoundError, PermissionError and their like; ValueError for what is no
            regular file.
        """
        return cls._of(Backing.open(path, None if nbytes is None else as_nbytes(nbytes, "nbytes")))

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """The pages of an open memfd or file. The descriptor is duplicated; yours stays yours."""
        return cls._of(Backing.adopt(kernel.dup(fd)))

    @property
    def _live(self) -> Backing:
        if self._backing is None:
            raise ClosedError("these pages are closed")
        return self._backing

    # --- what it is ----------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes; a whole number of pages, except for files."""
        return self._live.nbytes

    @property
    def page_size(self) -> int:
        """Bytes a page; every offset is a multiple of it."""
        return self._live.kind.nbytes

    def fileno(self) -> int:
        """The descriptor, close-on-exec and still ours: duplicate it to keep it."""
        return self._live.fd

    @property
    def allocated(self) -> int:
        """Bytes the kernel really holds for these pages, however many views there are."""
        return self._live.allocated

    @property
    def closed(self) -> bool:
        """Whether close() was called. Views made before live on."""
        return self._backing is None

    def __repr__(self) -> str:
        if self._backing is None:
            return "<Pages closed>"
        kind = self._backing.kind
        sort = " transparent huge" if kind.transparent else ""
        return (
            f"<Pages {self._backing.label!r} {format_nbytes(self.nbytes)} in "
            f"{format_nbytes(kind.nbytes)}{sort} pages, {format_nbytes(self.allocated)} allocated>"
        )

    def _repr_html_(self) -> str:
        return portraits.of_backing(self._backing, repr(self))

    # --- views ---------------------------------------------------------------------------

    def map(
        self,
        offset: Size = 0,
        nbytes: Size | None = None,
        *,
        protection: str = "rw",
        populate: bool = False,
        address: int | None = None,
        reserve: Size | None = None,
    ) -> Mapping:
        """Show a stretch of the pages at an address of the kernel's choice, or at `address`.

        Args: offset: a multiple of `page_size`. nbytes: the rest by default.
            populate: make the page-table entries now; on an "rw" view ready for writing.
            reserve: address space to set aside, so that the view can grow in place.
        Raises: ValueError for a range that does not fit; MapError: EEXIST for an occupied
            address, ENOMEM with the pool or limit that is used up, EACCES for a read-only file.
        """
        backing = self._live
        run = self._run(backing, offset, nbytes, protection_bits(protection))
        check_address(address, backing.kind.nbytes)
        window = 0 if reserve is None else round_up(as_nbytes(reserve, "reserve"), backing.kind.nbytes)
        return Mapping._placed(
            [run], label=backing.label, window_nbytes=window, address=address, populate=populate
        )

    def arrange(
        self,
        runs: Iterable[tuple[Size, Size]],
        *,
        protection: str = "rw",
        populate: bool = False,
        address: int | None = None,
    ) -> Mapping:
        """Show several runs side by side, in any order and as often as you like.

        Args: runs: (offset, nbytes) pairs, multiples of `page_size`; only the last may end inside
            a page. `[(0, n), (0, n)]` is a ring. Runs that continue one another become one mapping
            of the kernel's, of which a process can have vm.max_map_count.
        """
        backing = self._live
        bits = protection_bits(protection)
        made = [self._run(backing, offset, nbytes, bits) for offset, nbytes in runs]
        if not made:
            raise ValueError("an arrangement needs at least one run")
        for run in made[:-1]:
            check_multiple(run.nbytes, run.page_nbytes, "nbytes of a run before the last")
        check_address(address, backing.kind.nbytes)
        return Mapping._placed(made, label=backing.label, address=address, populate=populate)

    def views(
        self,
        count: int,
        *,
        stride: Size | None = None,
        protection: str = "rw",
        populate: bool = False,
    ) -> list[Mapping]:
        """The whole pages `count` times, `stride` bytes apart: a multi-mapped heap.

        The first view's address is a multiple of the stride times the next power of two from
        `count`, so that the bits above the stride choose the view: `address | k * stride` is the
        same byte in view k. Each view can grow in place up to the stride.

        Args: count: 1 to 64. stride: a power of two, at least `nbytes`; the smallest by default.
        Raises: ValueError; MapError ENOMEM where the address space has no room for all of them.
        """
        backing = self._live
        if not 1 <= count <= _MOST_VIEWS:
            raise ValueError(f"count {count} must be 1 to {_MOST_VIEWS}")
        run = self._run(backing, 0, backing.nbytes, protection_bits(protection))
        smallest = next_power_of_two(run.room)
        step = smallest if stride is None else as_nbytes(stride, "stride")
        if step < smallest or step & (step - 1):
            raise ValueError(f"stride {step:,} must be a power of two, at least {smallest:,}")
        alignment = as_nbytes(next_power_of_two(count) * step, "next power of two from count, times stride,")
        label = backing.label
        made: list[Mapping] = []
        try:
            rest = kernel.reserve(count * step, alignment=alignment, label=label)
            for index in range(count):
                region, rest = rest, rest.split(step) if index + 1 < count else rest
                placement.fill_window(region, [run], label)
                made.append(Mapping._settled(region, label, populate=populate))
        except BaseException as error:
            for mapping in made:
                mapping.close()
            if isinstance(error, MapError):
                raise placement.explained(error, placement.Arrangement([run] * count)) from None
            raise
        return made

    def _run(self, backing: Backing, offset: Size, nbytes: Size | None, protection: int) -> Run:
        page = backing.kind.nbytes
        start, count = as_range(offset, nbytes, backing.nbytes, page, "view")
        if not count:
            empty = "" if backing.nbytes else "cannot mmap an empty file: "
            raise ValueError(f"{empty}a view needs at least one byte")
        return Run(backing, start, count, protection, page, 0, 0, not backing.in_memory)

    # --- contents ------------------------------------------------------------------------

    def resize(self, nbytes: Size) -> None:
        """Change how many bytes there are; views stay as they are.

        Memory cannot be shortened under its views: the tail is given back to the system, and views
        that still show it read zeros there. Files are truncated.
        Raises: BufferError while an array of this process shows bytes that would go.
        """
        backing = self._live
        count = as_nbytes(nbytes, "nbytes")
        if count < backing.nbytes:
            backing.shrink(count)
        else:
            backing.grow(count)

    def discard(self, offset: Size = 0, nbytes: Size | None = None) -> None:
        """Give the pages of a range back to the system; it reads zeros through every view.

        Args: offset, nbytes: multiples of `page_size`; to the end by default.
        Huge pages go back to their pool with their reservation: touching the range again through
        an old view needs a free page then, and is a SIGBUS if there is none.
        Raises: MapError EOPNOTSUPP for a file system without holes.
        """
        backing = self._live
        page = backing.kind.nbytes
        start, count = as_range(offset, nbytes, backing.nbytes, page, "discard", whole=True)
        backing.discard(start, round_up(count, page))

    def flush(self) -> None:
        """What was written through any view is on the disk afterwards (fdatasync)."""
        backing = self._live
        kernel.fdatasync(backing.fd, backing.label)

    # --- the end, and other processes ----------------------------------------------------

    def close(self) -> None:
        """Let go of the pages. Views live on, and can still be mirrored and resized."""
        self._backing = None

    def __reduce__(self) -> tuple[Any, ...]:
        from mirrormap import handover

        backing = self._live
        return _rebuild, (
            handover.send(backing.fd),
            backing.nbytes,
            backing.kind.transparent,
        )


def _rebuild(sent: Any, nbytes: int, transparent: bool) -> Pages:
    from mirrormap import handover

    backing = Backing.adopt(handover.receive(sent), nbytes=nbytes)
    if transparent:
        backing.kind = PageKind(backing.kind.nbytes, transparent=True)
    return Pages._of(backing)
