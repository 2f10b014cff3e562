"""numpy_allocator(): every large array of anyone's code on shareable pages (NEP 49)."""

from __future__ import annotations

import os
import resource
import threading
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from mirrormap import kernel, procmaps
from mirrormap.backing import PageKind, page_kind
from mirrormap.errors import MirrorError
from mirrormap.units import LIMIT_NBYTES, Size, as_nbytes, format_nbytes

__all__ = ["Allocator", "AllocatorState", "numpy_allocator"]

_installing: Final = threading.RLock()
_MOST_DESCRIPTORS: Final = 10_000
_MOST_CACHED_NBYTES: Final = 1 << 30
_plain_start: Final = threading.Thread.start


class AllocatorState(NamedTuple):
    """What all arrays of all allocators hold, and the pages kept for later."""

    arrays: int
    nbytes: int
    cached: int
    cached_nbytes: int


class Allocator:
    """Where NumPy puts large arrays; made by `numpy_allocator`.

    A context manager for the code inside the block, in this context (a thread, an asyncio task); or
    `install()` it. May be entered again, and by several threads.
    """

    __slots__ = ("__weakref__", "_before", "_handler", "_huge_nbytes", "min_nbytes")
    _installed: Allocator | None = None

    def __init__(self, min_nbytes: int, huge_nbytes: int, eager_nbytes: int, eager_zero_nbytes: int) -> None:
        self.min_nbytes = min_nbytes
        self._huge_nbytes = huge_nbytes
        self._handler = kernel.allocator_new(
            min_nbytes, huge_nbytes, eager_nbytes, eager_zero_nbytes, procmaps.pmd_nbytes()
        )
        self._before: dict[int, list[object]] = {}  # by thread: the handlers to go back to

    def __repr__(self) -> str:
        pages = f", {format_nbytes(self._huge_nbytes)} pages" if self._huge_nbytes else ""
        return f"<Allocator of arrays from {format_nbytes(self.min_nbytes)}{pages}>"

    def __enter__(self) -> Self:
        before = kernel.allocator_set(self._handler)
        self._before.setdefault(threading.get_ident(), []).append(before)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        thread = threading.get_ident()
        kernel.allocator_set(self._before[thread].pop())
        if not self._before[thread]:
            del self._before[thread]

    def install(self) -> None:
        """Use it in this context from now on, and in threads started later through `threading`.

        NumPy keeps the allocator in a context variable, so threads that run already, and threads made
        by C code, go on as they were.
        Raises: MirrorError while another one is installed.
        """
        with _installing:
            if Allocator._installed is not None:
                raise MirrorError("an allocator is installed already; uninstall() it first")
            self.__enter__()
            Allocator._installed = self
            threading.Thread.start = _start  # type: ignore[method-assign,assignment]

    def uninstall(self) -> None:
        """Go back to the allocator there was before, in the thread that called `install`.

        Arrays live on; threads that were started meanwhile keep the allocator.
        Raises: MirrorError unless it is installed.
        """
        with _installing:
            if Allocator._installed is not self:
                raise MirrorError("this allocator is not installed")
            threading.Thread.start = _plain_start  # type: ignore[method-assign]
            Allocator._installed = None
            self.__exit__(None, None, None)

    @property
    def state(self) -> AllocatorState:
        """Arrays and bytes in use, and freed pages kept for later, of the whole process."""
        return AllocatorState(*kernel.allocator_state())

    def trim(self, keep: Size = 0) -> int:
        """Give freed pages back to the system until no more than `keep` bytes of them are left.

        Returns: bytes given back.
        """
        return kernel.allocator_trim(as_nbytes(keep, "keep", minimum=0))


def _start(thread: threading.Thread) -> None:
    """Thread.start: what the thread runs finds the allocator in its context, which is empty."""
    installed = Allocator._installed
    if installed is not None:
        run = thread.run

        def run_with_allocator(*args: Any) -> None:
            thread.__dict__.pop("run", None)
            kernel.allocator_set(installed._handler)
            run(*args)

        thread.run = run_with_allocator  # type: ignore[method-assign]
    _plain_start(thread)


def numpy_allocator(
    min_nbytes: Size = "1MiB", page_size: Size | None = None, *, cache: Size | None = None
) -> Allocator:
    """Every new array from `min_nbytes` on lies on shareable pages, whoever makes it.

    So `mirror(a)` and `handle(a)` work on what SciPy, pandas or scikit-learn return, and huge pages
    come without a change of code. Smaller arrays lie where NumPy puts them. Arrays outlive the block:
    the address decides who frees. An array that is resized grows by page tables, without a copy;
    across `min_nbytes` it is copied.

    Args:
        min_nbytes: from which size on. page_size: a size the kernel has a pool of, for arrays of at
            least that size; where the pool is short, ordinary pages. None: transparent huge pages as an
            array is touched, from a tmpfs of our own with huge=advise; arrays from 64 KiB on that are smaller
            than one take their pages when they are made, in pieces as large as fit (Linux 6.14), from
            another with huge=within_size. Where no such can be mounted, huge pages are taken when an
            array is made: of all arrays with "thp"; with None of those up to a quarter of the memory
            there is, and of zeros (np.zeros, which may stay untouched) up to `cache` bytes; the others
            take page by page unless shmem_enabled is "advise".
        cache: bytes of freed pages to keep for the next array, for the whole process, of at most 1,024
            arrays; `trim` gives them back. None: a sixteenth of the memory there is, at most 1 GiB.
            Pages that a mirror, a handle or a forked child may show are never kept.
    Returns: a context manager, for this context; or call its `install()`.
    Raises: ValueError, TypeError for sizes that cannot be.

    A forked child shares these arrays with its parent: what either stores, both see. Each array is an
    object of its own: a memfd, or for huge pages a nameless file on that tmpfs, which cannot be sealed:
    hand such an array only to a process that will not truncate it. A quarter of the descriptors this
    process may open are used, and arrays beyond that are anonymous: they can be mirrored, handed over
    only with CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN, and are copied when they are resized. Half of
    the mappings that a process may have are used; arrays beyond that lie where NumPy alone would put them.
    """
    threshold = as_nbytes(min_nbytes, "min_nbytes")
    kind = page_kind(page_size)
    memory = os.sysconf("SC_PHYS_PAGES") * kernel.PAGE_NBYTES
    limit = min(memory // 16, _MOST_CACHED_NBYTES) if cache is None else as_nbytes(cache, "cache", minimum=0)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    made = Allocator(threshold, kind.huge_nbytes, *_eager(kind, limit, memory))
    descriptors = max(0, soft) // 4 if soft != resource.RLIM_INFINITY else _MOST_DESCRIPTORS
    kernel.allocator_limit(limit, descriptors, procmaps.max_map_count() // 2)
    return made


def _eager(kind: PageKind, limit: int, memory: int) -> tuple[int, int]:
    """Up to how many bytes an array, and one of zeros, takes transparent huge pages when it is made."""
    if kind.transparent or kernel.has_huge_files():
        return LIMIT_NBYTES, LIMIT_NBYTES
    if procmaps.transparent_setting("shmem_enabled") in ("always", "advise", "within_size", "force"):
        return 0, 0  # they come as the array is touched
    return memory // 4, limit
