"""Section 2 of the manual, typed: one function a system call, one exception for all.

The only importer of the extension. Addresses and lengths are bytes; a `label`
says what the memory is for and ends up in the exception's text. Every function
raises MapError with the kernel's errno and leaves things as they were.
"""

from __future__ import annotations

import errno as _errno
import mmap as _mmap
import os
from typing import Final, NamedTuple, NoReturn

from mirrormap import _core
from mirrormap._core import (
    End,
    Exporter,
    HeapBase,
    Message,
    Places,
    ReceiverBase,
    Ref,
    Region,
    Reservation,
    RingBase,
    SenderBase,
    Span,
    allocator_limit,
    allocator_new,
    allocator_set,
    allocator_share,
    allocator_state,
    allocator_trim,
)  # fmt: skip
from mirrormap.errors import ClosedError, CorruptError, MapError
from mirrormap.kernel.hugefs import has_huge_files, huge_file, is_nameless, label_of
from mirrormap.kernel.inquiries import (
    VmaInfo,
    VmaTuple,
    pagemap_scan,
    pagemap_stretches,
    procmap_entries,
    procmap_query,
)

__all__ = [
    "PAGE_NBYTES", "End", "Exporter", "FileInfo", "HeapBase", "Message", "Places", "ReceiverBase", "Ref",
    "Region", "Reservation", "RingBase", "SenderBase", "Span", "VmaInfo", "VmaTuple",
    "has_huge_files", "huge_file", "is_nameless", "label_of",
    "pagemap_scan", "pagemap_stretches", "procmap_entries", "procmap_query",
    "allocator_limit", "allocator_new", "allocator_set", "allocator_share", "allocator_state",
    "allocator_trim",
]  # fmt: skip

PAGE_NBYTES: Final = _mmap.PAGESIZE

PROT_NONE, PROT_READ, PROT_WRITE, PROT_EXEC = 0, 1, 2, 4

MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4

MADV_DONTNEED, MADV_REMOVE, MADV_DONTFORK, MADV_DOFORK = 4, 9, 10, 11
MADV_HUGEPAGE, MADV_DONTDUMP = 14, 16
MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_COLLAPSE = 22, 23, 25
MS_SYNC = 4

PAGE_IS_FILE, PAGE_IS_PRESENT, PAGE_IS_SWAPPED, PAGE_IS_PFNZERO, PAGE_IS_HUGE = 4, 8, 16, 32, 64

MFD_CLOEXEC, MFD_ALLOW_SEALING, MFD_HUGETLB, MFD_NOEXEC_SEAL = 1, 2, 4, 8
_MFD_HUGE_SHIFT = 26
F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE = 1, 2, 4, 8
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2

HUGETLBFS_MAGIC, TMPFS_MAGIC = 0x958458F6, 0x01021994

_core.set_closed_error(ClosedError)
_core.set_corrupt_error(CorruptError)

_ADVICE: Final = {
    _errno.EMFILE: "This process is at its limit of open files: raise `ulimit -n`, or close some",
    _errno.ENFILE: "The system is at its limit of open files: raise fs.file-max",
    _errno.EEXIST: "Something is mapped there already: choose another address=, or leave it out",
    _errno.EAGAIN: "Too much memory is locked: raise RLIMIT_MEMLOCK (`ulimit -l`)",
    _errno.EACCES: "The memory was opened with fewer rights than this protection needs: "
    "ask for protection='r', or open the file for writing",
    _errno.ENOSPC: "The file system is full: free some space, or choose another place",
    _errno.EFBIG: "Larger than the file system or RLIMIT_FSIZE (`ulimit -f`) allows",
    _errno.ENODEV: "The file system of this file cannot be mapped",
    _errno.EOPNOTSUPP: "The file system of this file does not support this call",
    _errno.ENOSYS: "This kernel, or the sandbox round this process, lacks the call; "
    "`mirrormap check` lists what is missing",
}


def fail(call: str, error: OSError, nbytes: int = 0, label: str = "", advice: str = "") -> NoReturn:
    """Raise what an OSError of the extension means, with the request that failed."""
    number = error.errno or _errno.EIO
    raise MapError(
        number, call=call, nbytes=nbytes, label=label, advice=advice or _ADVICE.get(number, "")
    ) from None


class FileInfo(NamedTuple):
    """What fstat(2) and fstatfs(2) say of a descriptor; sizes in bytes."""

    nbytes: int
    allocated: int
    dev: int
    inode: int
    mode: int
    fs_magic: int
    fs_block: int
    open_flags: int


# --- descriptors ---------------------------------------------------------------------------


def memfd_create(name: str, flags: int, *, huge_nbytes: int = 0) -> int:
    """memfd_create(name, MFD_CLOEXEC | flags): a nameless file in memory, never executable.

    Args: name: shown in /proc/self/maps. huge_nbytes: a huge page size, or 0.
    Returns: a close-on-exec descriptor.
    Raises: MapError EMFILE, ENFILE, ENOMEM; ENODEV where there is no pool of such pages.
    """
    flags |= MFD_CLOEXEC
    if huge_nbytes:
        flags |= MFD_HUGETLB | (huge_nbytes.bit_length() - 1) << _MFD_HUGE_SHIFT
    try:
        try:
            return _core.memfd_create(name, flags | MFD_NOEXEC_SEAL)
        except OSError as error:
            if error.errno != _errno.EINVAL:  # EINVAL: before 6.3
                raise
            return _core.memfd_create(name, flags)
    except OSError as error:
        fail("memfd_create", error, label=name)


def open_file(
    path: str | bytes | os.PathLike[str] | os.PathLike[bytes], flags: int, mode: int = 0o600
) -> int:
    """open(path, flags | O_CLOEXEC, mode). Raises the builtin OSError family, as open() does."""
    try:
        return _core.open(path, flags, mode)
    except OSError as error:
        number = error.errno or _errno.EIO
        raise OSError(number, os.strerror(number), os.fspath(path)) from None


def dup(fd: int) -> int:
    """fcntl(fd, F_DUPFD_CLOEXEC): a second descriptor of the same open file."""
    try:
        return _core.dup(fd)
    except OSError as error:
        fail("dup", error)


def close(fd: int) -> None:
    """close(fd), also after EINTR."""
    try:
        _core.close(fd)
    except OSError as error:
        fail("close", error)


def pwrite(fd: int, data: memoryview, offset: int, label: str = "") -> None:
    """pwrite(fd, data, offset), again until all of it is written. Raises: MapError ENOSPC, EIO, EFBIG."""
    while len(data):
        try:
            count = os.pwrite(fd, data, offset)
        except OSError as error:
            fail("pwrite", error, len(data), label)
        data, offset = data[count:], offset + count


def ftruncate(fd: int, nbytes: int, label: str = "") -> None:
    """ftruncate(fd, nbytes). EPERM: sealed; EFBIG: RLIMIT_FSIZE or the file system."""
    try:
        _core.ftruncate(fd, nbytes)
    except OSError as error:
        fail("ftruncate", error, nbytes, label)


def punch_hole(fd: int, offset: int, nbytes: int, label: str = "") -> None:
    """fallocate(fd, PUNCH_HOLE|KEEP_SIZE, offset, nbytes): the range reads zeros, holds nothing."""
    try:
        _core.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, nbytes)
    except OSError as error:
        fail("fallocate", error, nbytes, label)


def allocate(fd: int, offset: int, nbytes: int, label: str = "") -> None:
    """fallocate(fd, KEEP_SIZE, offset, nbytes): blocks are held, so that no store finds the disk full.

    Raises: MapError ENOSPC; EOPNOTSUPP for a file system that cannot tell beforehand.
    """
    try:
        _core.fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, nbytes)
    except OSError as error:
        fail("fallocate", error, nbytes, label)


def add_seals(fd: int, seals: int, label: str = "") -> None:
    """fcntl(fd, F_ADD_SEALS, seals). EBUSY: F_SEAL_WRITE while a writable view lives."""
    try:
        _core.add_seals(fd, seals)
    except OSError as error:
        fail("fcntl(F_ADD_SEALS)", error, label=label)


def get_seals(fd: int) -> int:
    """fcntl(fd, F_GET_SEALS); 0 for files that cannot be sealed."""
    try:
        return _core.get_seals(fd)
    except OSError as error:
        if error.errno == _errno.EINVAL:
            return 0
        fail("fcntl(F_GET_SEALS)", error)


def fdatasync(fd: int, label: str = "") -> None:
    """fdatasync(fd): what was written through any view is on the disk afterwards."""
    try:
        _core.fdatasync(fd)
    except OSError as error:
        fail("fdatasync", error, label=label)


def fstat(fd: int) -> FileInfo:
    """fstat(fd) and fstatfs(fd) in one."""
    try:
        return FileInfo(*_core.fstat(fd))
    except OSError as error:
        fail("fstat", error)


# --- ranges of addresses -------------------------------------------------------------------


def reserve(
    nbytes: int, *, alignment: int = PAGE_NBYTES, skew: int = 0, address: int = 0, label: str = ""
) -> Region:
    """mmap(PROT_NONE, MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE): a window we own.

    Args: skew: the address comes out as `skew` modulo `alignment`.
        address: with MAP_FIXED_NOREPLACE at this address; 0: the kernel's choice.
    Raises: MapError EEXIST: something is there; ENOMEM: RLIMIT_AS or vm.max_map_count.
    """
    try:
        return _core.reserve(nbytes, alignment, skew, address)
    except OSError as error:
        fail("mmap", error, nbytes, label)


def map_anywhere(nbytes: int, protection: int, fd: int, offset: int, label: str = "") -> Region:
    """mmap(NULL, nbytes, protection, MAP_SHARED, fd, offset): where the kernel likes."""
    try:
        return _core.map(nbytes, protection, 0, fd, offset)
    except OSError as error:
        fail("mmap", error, nbytes, label)


def map_over(
    region: Region, at: int, nbytes: int, protection: int, fd: int, offset: int, label: str = ""
) -> None:
    """mmap(region + at, nbytes, protection, MAP_SHARED|MAP_FIXED, fd, offset), inside the window."""
    try:
        region.place(at, nbytes, protection, 0, fd, offset)
    except OSError as error:
        fail("mmap", error, nbytes, label)


def remap_alias(region: Region, at: int, nbytes: int, source: int, label: str = "") -> None:
    """mremap(source, 0, nbytes, MAYMOVE|FIXED, region + at): the same pages once more.

    Args: source: inside one MAP_SHARED entry that reaches `nbytes` far.
    Raises: MapError EINVAL: private or hugetlb; EPERM: mseal; EFAULT: perf, io_uring;
        ENOMEM: out of mappings; EAGAIN: the source is locked and RLIMIT_MEMLOCK used up.
    Holds after: both ranges show the same pages; each is unmapped on its own. It waits for
        the monitor of a source under userfaultfd with UFFD_FEATURE_EVENT_REMAP.
    """
    try:
        region.alias(at, nbytes, source)
    except OSError as error:
        fail("mremap", error, nbytes, label)


def vacate(region: Region, at: int, nbytes: int, label: str = "") -> None:
    """mmap(region + at, nbytes, PROT_NONE, MAP_FIXED): a reservation again."""
    try:
        region.vacate(at, nbytes)
    except OSError as error:
        fail("mmap", error, nbytes, label)


def trim(region: Region, window_nbytes: int, label: str = "") -> None:
    """munmap(region + window_nbytes, …): own no more than the front."""
    try:
        region.trim(window_nbytes)
    except OSError as error:
        fail("munmap", error, region.window - window_nbytes, label)


def unmap(region: Region, label: str = "") -> None:
    """munmap(region). BufferError while a buffer shows any of it."""
    try:
        region.close()
    except OSError as error:
        fail("munmap", error, region.window, label)


def munmap(address: int, nbytes: int) -> None:
    """munmap(address, nbytes) on a range that no Region owns."""
    try:
        _core.munmap(address, nbytes)
    except OSError as error:
        fail("munmap", error, nbytes)


def mremap(address: int, old_nbytes: int, new_nbytes: int, flags: int, target: int = 0) -> int:
    """mremap(address, old_nbytes, new_nbytes, flags, target), unchecked: errno as the kernel says."""
    try:
        return _core.mremap(address, old_nbytes, new_nbytes, flags, target)
    except OSError as error:
        fail("mremap", error, new_nbytes)


def replace(address: int, nbytes: int, protection: int, fd: int, offset: int) -> None:
    """mmap(MAP_SHARED | MAP_FIXED) over a range that the caller gives up, whatever is there."""
    try:
        _core.replace(address, nbytes, protection, fd, offset)
    except OSError as error:
        fail("mmap", error, nbytes)


def mprotect(region: Region, at: int, nbytes: int, protection: int, label: str = "") -> None:
    """mprotect(region + at, nbytes, protection). EACCES: the file was opened with less."""
    try:
        region.protect(at, nbytes, protection)
    except OSError as error:
        fail("mprotect", error, nbytes, label)


def madvise(region: Region, at: int, nbytes: int, advice: int, label: str = "") -> None:
    """madvise(region + at, nbytes, advice)."""
    try:
        region.advise(at, nbytes, advice)
    except OSError as error:
        fail("madvise", error, nbytes, label)


def advise_quietly(region: Region, at: int, nbytes: int, advice: int) -> bool:
    """madvise for hints. Returns: whether it was taken."""
    try:
        region.advise(at, nbytes, advice)
    except OSError:
        return False
    return True


def touch(region: Region, at: int, nbytes: int, stride_nbytes: int, *, write: bool, label: str = "") -> None:
    """process_vm_readv of one word every `stride_nbytes`, and with `write` atomic no-op stores.

    Raises: MapError EFAULT where a load would be a SIGBUS.
    """
    try:
        region.touch(at, nbytes, stride_nbytes, write)
    except OSError as error:
        fail("process_vm_readv", error, nbytes, label)


def msync(region: Region, at: int, nbytes: int, label: str = "") -> None:
    """msync(region + at, nbytes, MS_SYNC)."""
    try:
        region.sync(at, nbytes, MS_SYNC)
    except OSError as error:
        fail("msync", error, nbytes, label)


def is_readable(address: int) -> bool:
    """Would a load at this aligned address succeed? Asks the kernel, so never SIGBUS."""
    try:
        _core.readable(address)
    except OSError:
        return False
    return True


def span(region: Region, at: int, nbytes: int, *, readonly: bool = False) -> Span:
    """Bytes [at, at + nbytes) of a region as a buffer of their own, which holds only those."""
    return _core.span(region, at, nbytes, readonly)


def buffer_address(source: object) -> tuple[int, int, bool]:
    """(address, nbytes, readonly) of a contiguous buffer that the caller keeps exported."""
    return _core.buffer_address(source)
