"""probe(): what this kernel and this user can do, found by doing it.

Versions lie: distributions backport, sandboxes refuse, emulators answer "done" and do nothing. So
every answer here comes from a small attempt on real memory whose outcome was looked at.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from mirrormap import kernel, procmaps, residency
from mirrormap.errors import MapError
from mirrormap.foreign import can_mremap
from mirrormap.kernel import PAGE_NBYTES
from mirrormap.mirror import mirror
from mirrormap.pages import Pages
from mirrormap.population import populates_by_madvise
from mirrormap.remap import page_moved
from mirrormap.units import format_nbytes

__all__ = ["Capabilities", "Check", "probe"]

_MARK = b"mirrormap"
# a gigabyte takes half a second to zero, and others may miss it: larger pages are mapped, not filled
_LITTLE_NBYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried.

    Attributes:
        name: what, in a few words.
        ok: whether it worked.
        detail: what was seen.
        cure: the command or setting that would give it, or "".
    """

    name: str
    ok: bool
    detail: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What works here. Every field was found by trying, not by version.

    Attributes:
        kernel: release and machine, for the record only.
        page_size: bytes in an ordinary page.
        mirror_shared: anonymous shared memory can be mirrored.
        mirror_file: shared mappings of files can be mirrored.
        mirror_route: "mremap", or "descriptor" where the kernel refuses mremap with old_size 0.
        mirror_hugetlb: huge pages can be made and mirrored now; False with an empty pool too.
        mirror_hugetlb_of_others: huge pages without an open descriptor can be mirrored.
        populate: `populate=True` leaves page-table entries behind.
        populate_route: "madvise", or "touch" where MADV_POPULATE_* is refused or does nothing.
        transparent_huge: transparent huge pages could be had for shared memory.
        huge_faults: memory of `Growable` and `numpy_allocator` takes huge pages as it is touched.
        map_files: /proc/self/map_files may be followed.
        frames: physical frame numbers are readable.
        procmap_query: address look-ups in constant time.
        pagemap_scan: residency without reading the whole page map.
        move_shared: MREMAP_DONTUNMAP works on shared memory.
        huge_pools: {page size in bytes: pages that are free for new mappings}.
        map_count: entries in this process's address space now.
        max_map_count: how many it may have (vm.max_map_count).
        address_space: RLIMIT_AS in bytes, None without limit; every mirror counts.
        locked_memory: RLIMIT_MEMLOCK in bytes, None without limit; mirrors of locked memory count.
        refused: system calls that a sandbox or this kernel refuses outright.
        checks: the same as readable lines.
    """

    kernel: str
    page_size: int
    mirror_shared: bool
    mirror_file: bool
    mirror_route: str
    mirror_hugetlb: bool
    mirror_hugetlb_of_others: bool
    populate: bool
    populate_route: str
    transparent_huge: bool
    huge_faults: bool
    map_files: bool
    frames: bool
    procmap_query: bool
    pagemap_scan: bool
    move_shared: bool
    huge_pools: dict[int, int]
    map_count: int
    max_map_count: int
    address_space: int | None
    locked_memory: int | None
    refused: tuple[str, ...]
    checks: tuple[Check, ...]

    @property
    def works(self) -> bool:
        """Whether memory can be mirrored at all: the exit status of `mirrormap check`."""
        return self.mirror_shared and self.mirror_file

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"works": self.works, **asdict(self)}


class _Prober:
    """Collects outcomes; an attempt that raises has failed, and its reason is the detail."""

    def __init__(self) -> None:
        self.checks: list[Check] = []
        self.refused: set[str] = set()

    def attempt(self, name: str, what: Callable[[], str], cure: str = "") -> bool:
        try:
            detail, ok = what(), True
        except MapError as error:
            if error.errno in (errno.ENOSYS, errno.EPERM):
                self.refused.add(error.call)
            detail, ok = f"{error.call}: {os.strerror(error.errno or 0)}", False
            cure = cure or error.advice
        except _UnsatisfiedError as error:
            detail, ok = str(error), False
        except OSError as error:
            detail, ok = error.strerror or str(error), False
        self.checks.append(Check(name, ok, detail, "" if ok else cure))
        return ok


class _UnsatisfiedError(Exception):
    """The call succeeded and did not do what it says."""


def probe() -> Capabilities:
    """Try everything on a little memory of our own; takes some milliseconds, leaves nothing.

    Returns: Capabilities; never raises for what is missing.
    """
    prober = _Prober()
    routes: list[str] = []
    shared = prober.attempt("mirror shared memory", lambda: _mirror_shared(routes))
    file = prober.attempt("mirror a file mapping", _mirror_file)
    populate = prober.attempt("populate page tables", _populate)
    map_files = prober.attempt(
        "follow /proc/self/map_files",
        _map_files,
        "CAP_CHECKPOINT_RESTORE reaches memory whose descriptor is gone: run as root, or "
        "`setcap cap_checkpoint_restore+ep` on the interpreter",
    )
    pools = {size: procmaps.huge_pool(size).available for size in procmaps.huge_sizes()}
    default = procmaps.default_huge_nbytes()
    reserve = "a kernel with CONFIG_HUGETLBFS, on a processor that has huge pages"
    if default in pools:
        reserve = f"`echo 64 > {procmaps.huge_pool(default).path}` as root"
    hugetlb = prober.attempt("mirror huge pages", lambda: _mirror_hugetlb(pools), reserve)
    others = prober.attempt(
        "mirror huge pages of others", lambda: _mirror_hugetlb_of_others(default, pools), reserve
    )
    setting = procmaps.transparent_setting("shmem_enabled")
    transparent = prober.attempt(
        "transparent huge pages",
        lambda: f"{_transparent()} (shmem_enabled is {setting})",
        "`echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled` as root",
    )
    faults = prober.attempt(
        "huge pages at the first touch",
        _huge_faults,
        "Linux 5.2, and CAP_SYS_ADMIN or unprivileged user namespaces; else they are collapsed",
    )
    query = prober.attempt("look up addresses (PROCMAP_QUERY)", _procmap_query, "Linux 6.11; maps is parsed")
    scan = prober.attempt("scan page tables (PAGEMAP_SCAN)", _pagemap_scan, "Linux 6.7; pagemap is read")
    frames = prober.attempt("read physical frames", _frames, "CAP_SYS_ADMIN: run as root")
    move = prober.attempt("move shared page tables (DONTUNMAP)", _move_shared, "Linux 5.13")
    count, limit = procmaps.map_count(), procmaps.max_map_count()
    prober.attempt(
        "mappings left",
        lambda: _mappings_left(count, limit),
        f"`sysctl -w vm.max_map_count={limit * 4}`",
    )
    system = os.uname()
    return Capabilities(
        kernel=f"{system.release} {system.machine}",
        page_size=PAGE_NBYTES,
        mirror_shared=shared,
        mirror_file=file,
        mirror_route=routes[0] if routes else "none",
        mirror_hugetlb=hugetlb,
        mirror_hugetlb_of_others=others,
        populate=populate,
        populate_route="madvise" if populates_by_madvise() else "touch",
        transparent_huge=transparent,
        huge_faults=faults,
        map_files=map_files,
        frames=frames,
        procmap_query=query,
        pagemap_scan=scan,
        move_shared=move,
        huge_pools=pools,
        map_count=count,
        max_map_count=limit,
        address_space=_limit(resource.RLIMIT_AS),
        locked_memory=_limit(resource.RLIMIT_MEMLOCK),
        refused=tuple(sorted(prober.refused)),
        checks=tuple(prober.checks),
    )


def _limit(which: int) -> int | None:
    soft, _ = resource.getrlimit(which)
    return None if soft == resource.RLIM_INFINITY else soft


def _see_through(source: mmap.mmap) -> None:
    """Mirror stdlib memory and look whether a byte written on one side is there on the other."""
    source[: len(_MARK)] = _MARK
    with mirror(source) as other, memoryview(other) as view:
        if bytes(view[: len(_MARK)]) != _MARK:
            raise _UnsatisfiedError("the call succeeded, but the other address shows other bytes")


def _mirror_shared(routes: list[str]) -> str:
    with mmap.mmap(-1, PAGE_NBYTES) as source:
        _see_through(source)
    route = "mremap" if can_mremap() else "descriptor"
    routes.append(route)
    return "by mremap with old_size 0" if route == "mremap" else "by a descriptor: mremap refuses"


def _mirror_file() -> str:
    import tempfile  # costs milliseconds, which only a probe should pay

    try:
        folder = tempfile.gettempdir()
    except OSError:
        return _mirror_own_text()
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(PAGE_NBYTES)
        with mmap.mmap(file.fileno(), PAGE_NBYTES) as source:
            _see_through(source)
    return "the same pages at a second address"


def _mirror_own_text() -> str:
    """Where no folder can be written to: a file that is there, for reading."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(__file__, "rb"))
        source = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        other = stack.enter_context(mirror(source))
        if other.array()[: len(source)].tobytes() != source[:]:
            raise _UnsatisfiedError("the call succeeded, but the other address shows other bytes")
    return "the same pages at a second address, for reading: no folder can be written to"


def _populate() -> str:
    with Pages(PAGE_NBYTES * 16, name="probe") as pages, pages.map(populate=True) as view:
        if view.resident != view.nbytes:
            raise _UnsatisfiedError(
                f"the call succeeded, but {view.resident:,} of {view.nbytes:,} bytes have entries"
            )
    return (
        "by MADV_POPULATE_READ"
        if populates_by_madvise()
        else "by touching: MADV_POPULATE_READ does not (Linux 5.14)"
    )


def _map_files() -> str:
    with mmap.mmap(-1, PAGE_NBYTES) as source, memoryview(source) as view:
        with procmaps.AddressSpace() as space:
            vma = space.at(kernel.buffer_address(view)[0])
        assert vma is not None
        os.close(procmaps.map_file(vma, os.O_RDWR))
    return "memory is reachable without its descriptor"


def _mirror_hugetlb(pools: dict[int, int]) -> str:
    sizes = [size for size, free in pools.items() if free]
    if not sizes:
        raise _UnsatisfiedError("no huge page is free" if pools else "this kernel has no huge pages")
    size = sizes[0]
    filled = size <= _LITTLE_NBYTES
    with Pages(size, page_size=size, name="probe") as pages, pages.map(populate=filled) as view:
        view.mirror(populate=filled).close()
    return ", ".join(f"{free} free of {format_nbytes(size)}" for size, free in pools.items() if free)


def _mirror_hugetlb_of_others(default: int | None, pools: dict[int, int]) -> str:
    if default is None or not pools.get(default):
        raise _UnsatisfiedError("no huge page is free")
    map_hugetlb = 0x40000
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | map_hugetlb
    with mmap.mmap(-1, default, flags=flags) as source:
        _see_through(source)
    return "through /proc/self/map_files"


def _transparent() -> str:
    pmd = procmaps.pmd_nbytes()
    with Pages(pmd, page_size="thp", name="probe") as pages, pages.map(populate=True) as view:
        if not view.resident_huge:
            raise _UnsatisfiedError("asked for, not obtained")
        return f"obtained {format_nbytes(view.resident_huge)}"


def _huge_faults() -> str:
    if not kernel.has_huge_files():
        raise _UnsatisfiedError("no tmpfs with huge=advise can be mounted")
    return "from a tmpfs of our own, huge=advise"


def _procmap_query() -> str:
    with procmaps.AddressSpace() as space:
        space.at(0, following=True)
        if not space.is_current:
            raise _UnsatisfiedError("not in this kernel")
    return "constant time"


def _pagemap_scan() -> str:
    with Pages(PAGE_NBYTES, name="probe") as pages, pages.map(populate=True) as view:
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            kernel.pagemap_scan(fd, view.address, view.address + view.nbytes)
        finally:
            os.close(fd)
    return "residency by range"


def _frames() -> str:
    with Pages(PAGE_NBYTES, name="probe") as pages, pages.map(populate=True) as view:
        if residency.frames(view.address, view.nbytes) is None:
            raise _UnsatisfiedError("frame numbers read zero")
    return "the same frame behind two addresses can be shown"


def _move_shared() -> str:
    with page_moved() as both, procmaps.AddressSpace() as space:
        shown = [
            (vma.dev, vma.inode, vma.offset + at - vma.start)
            for at in both
            if (vma := space.at(at)) is not None
        ]
    if len(shown) != 2 or shown[0] != shown[1]:
        raise _UnsatisfiedError("the call succeeded, but the two addresses do not show the same pages")
    return "page tables move, both addresses show the pages"


def _mappings_left(count: int, limit: int) -> str:
    if count > limit * 9 // 10:
        raise _UnsatisfiedError(f"{count:,} of {limit:,} used")
    return f"{count:,} of {limit:,} used"
