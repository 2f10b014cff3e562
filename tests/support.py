"""What several tests need: memory made without the package, crash cases, huge pages on loan."""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import errno
import fcntl
import gc
import itertools
import mmap
import operator
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import wave
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

import mirrormap as mm
from mirrormap import _core, kernel
from mirrormap.heap.reports import PHASES

PAGE = mmap.PAGESIZE
BLOCK = 1 << 18  # of a heap, bytes
GUEST = "MIRRORMAP_GUEST" in os.environ  # one of make matrix, whose settings are nobody else's
# of rounds whose number is a matter of patience: less than 1 in guests, whose processor is emulated
EFFORT = float(os.environ.get("MIRRORMAP_EFFORT", "1"))
PATIENCE_S = 900 if os.environ.get("HYPOTHESIS_PROFILE") == "emulated" else 120
TESTS = Path(__file__).parent
HUGE_POOLS = Path("/sys/kernel/mm/hugepages")
GUARD_NBYTES = max(mmap.PAGESIZE, 1 << 16) if platform.machine() == "aarch64" else mmap.PAGESIZE

PROT_NONE, PROT_READ, PROT_WRITE, PROT_EXEC = 0, 1, 2, 4
RW = PROT_READ | PROT_WRITE
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 1, 2, 0x10, 0x20
MAP_NORESERVE, MAP_LOCKED, MAP_POPULATE, MAP_HUGETLB = 0x4000, 0x2000, 0x8000, 0x40000
MFD_ALLOW_SEALING, MFD_HUGETLB = 2, 4
# numbers of system calls that the C library has no function for
USERFAULTFD = {"x86_64": 323, "ppc64le": 364, "s390x": 355}
FUTEX = {"x86_64": 202, "aarch64": 98, "ppc64le": 221, "s390x": 238}


def scaled(rounds: int, least: int = 1) -> int:
    """So many rounds, or what MIRRORMAP_EFFORT leaves of them, but never fewer than `least`, which still mean something."""
    return max(least, int(rounds * EFFORT)) if EFFORT < 1 else rounds


libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
]  # fmt: skip
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.munlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def checked(result: Any) -> Any:
    """The result of a C call, or its OSError."""
    if result in (-1, None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


# the sanitizer build: its runtime replaces mlock by nothing, and allocates beside us
SANITIZED = hasattr(_core, "fault_arm")
_MLOCK = {"x86_64": 149, "aarch64": 228}.get(platform.machine())


def lock(address: int, nbytes: int) -> None:
    """mlock(2), by its number where that is known, because sanitizers replace the function."""
    if _MLOCK is None:
        checked(libc.mlock(address, nbytes))
    else:
        checked(libc.syscall(ctypes.c_long(_MLOCK), ctypes.c_void_p(address), ctypes.c_size_t(nbytes)))


class Raw:
    """A mapping made by mmap(2) itself, with nobody's help; unmapped at the end of the block."""

    def __init__(
        self,
        nbytes: int,
        protection: int = RW,
        flags: int = MAP_SHARED | MAP_ANONYMOUS,
        fd: int = -1,
        offset: int = 0,
        at: int | None = None,
    ) -> None:
        if at is not None:
            flags |= MAP_FIXED
        self.address: int = checked(libc.mmap(at, nbytes, protection, flags, fd, offset))
        self.nbytes = nbytes

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *unused: object) -> None:
        self.unmap()

    def unmap(self) -> None:
        checked(libc.munmap(self.address, self.nbytes))

    @property
    def buffer(self) -> ctypes.Array[ctypes.c_ubyte]:
        return (ctypes.c_ubyte * self.nbytes).from_address(self.address)

    def protect(self, start: int, nbytes: int, protection: int) -> None:
        checked(libc.mprotect(self.address + start, nbytes, protection))


def read(address: int, nbytes: int) -> bytes:
    return ctypes.string_at(address, nbytes)


def write(address: int, data: bytes) -> None:
    ctypes.memmove(address, data, len(data))


def unmap(address: int, nbytes: int) -> None:
    checked(libc.munmap(address, nbytes))


def address_of(buffer: Any) -> int:
    return int(np.frombuffer(buffer, "u1").__array_interface__["data"][0])


Entries = list[tuple[int, int, str]]


def entries() -> Entries:
    """(start, end, permission letters) of /proc/self/maps, in order of address."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, letters = line.split(maxsplit=2)[:2]
        start, end = where.split("-")
        found.append((int(start, 16), int(end, 16), letters))
    return found


def protections(address: int, nbytes: int, known: Entries | None = None) -> list[str]:
    """The permission letters of the entries under a range; `known`: entries() of this moment."""
    all_entries = entries() if known is None else known
    first = bisect.bisect_right(all_entries, address, key=operator.itemgetter(1))
    under = itertools.takewhile(lambda entry: entry[0] < address + nbytes, all_entries[first:])
    return [letters for _, _, letters in under]


def is_mapped(address: int, nbytes: int = PAGE) -> bool:
    """Whether any page there is, by mincore(2): reading /proc/self/maps takes memory of its own, which may come to lie
    in the very hole that is asked about."""
    vector = ctypes.c_ubyte()
    starts = range(address, address + nbytes, PAGE)
    return any(libc.mincore(start, PAGE, ctypes.byref(vector)) == 0 for start in starts)


def stores_without_fault(array: np.ndarray[Any, Any], *, write: bool, huge: bool = False) -> int:
    """Minor faults taken by one access to every page; the code itself is warm by then.

    A few pages may be the interpreter's, whose heap grows when it likes: less than an array has that could
    fault for each, two where a fault brings a huge page.
    """
    flat = array.reshape(-1).view("u1")
    warm = np.ones(flat.size, "u1")
    for _ in range(2):
        warm[::PAGE] = 1
        warm[::PAGE].max()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    if write:
        flat[::PAGE] = 1
    else:
        flat[::PAGE].max()  # sum() would widen the bytes in a buffer, whose pages fault
    count = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return 0 if count <= (8 if SANITIZED or not huge else 2) else count


def run_python(
    script: str, *, prefix: list[str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter that finds tests/ too."""
    code = f"import sys; sys.path.insert(0, {str(TESTS)!r})\n{script}"
    return subprocess.run(
        [*(prefix or []), sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        **options,
    )


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run mirrormap as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "mirrormap", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


def tone(path: Path, rate: int, frames: int, channels: int, nbytes: int) -> Path:
    """A WAV file: 1 kHz on the first channel, silence on the others."""
    samples = np.zeros((frames, channels), {1: "u1", 2: "<i2", 3: "<i4", 4: "<i4"}[nbytes])
    wavy = np.sin(2 * np.pi * 1000 * np.arange(frames) / rate) * 100
    samples[:, 0] = wavy + 128 if nbytes == 1 else wavy * 256 ** (nbytes - 1)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(nbytes)
        file.setframerate(rate)
        file.writeframes(samples.tobytes()[: frames * channels * nbytes])
    return path


def succeeds(script: str, **options: Any) -> str:
    done = run_python(script, **options)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
    return done.stdout


def in_threads(works: Iterable[Callable[[], object]]) -> None:
    """Each in a thread of its own; raises what the first of them raised."""
    failures: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            error.add_note(traceback.format_exc())  # a traceback itself would hold what is counted
            failures.append(error.with_traceback(None))

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def forked(act: Callable[[], object]) -> int:
    """Exit status of a child that runs `act`."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def dies_by(script: str) -> int:
    """The signal that ends a script: for what a wild access does."""
    done = run_python("import faulthandler; faulthandler.disable()\n" + script)
    assert done.returncode < 0, f"{done.returncode}: {done.stderr}"
    return -done.returncode


def warm_up() -> None:
    """What stays for the life of a process: the descriptors of the package's own two tmpfs."""
    kernel.has_huge_files()
    with mm.numpy_allocator(1, cache=0):
        np.empty(1 << 20, "u1")


def held() -> dict[str, int]:
    """What this process holds that a test may not leave behind."""
    gc.collect()
    views = reservations = 0
    for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
        where, letters = line.split(maxsplit=2)[:2]
        views += letters[3] == "s"
        if letters == "---p" and line.endswith(" 0 "):  # of no object and no name
            start, end = where.split("-")
            # smaller ones are the guards of thread stacks, which glibc keeps for the next thread
            reservations += int(end, 16) - int(start, 16) > GUARD_NBYTES
    return {
        "views of shared memory": views,
        "reservations": reservations,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "huge pages": _unreturned.total() + sum(_pages_in_use(folder) for folder in _reserving),
    }


def heaps_are_gone() -> None:
    """Wait for the threads of heaps that were dropped: nobody closes those, so each sees that by itself."""
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "mirrormap heap":
            thread.join(PATIENCE_S)


def grown_since(before: dict[str, int], seconds: float = 0) -> dict[str, tuple[int, int]]:
    """What this process holds that it did not, as (before, now); it has so long to let go of it.

    A thread that ends gives its descriptors back when it comes to run: one of a heap that was just dropped, of
    an executor, of multiprocessing's sharer.
    """
    until = time.monotonic() + seconds
    while True:
        now = held()
        grown = {what: (before[what], now[what]) for what in before if now[what] > before[what]}
        if not grown or time.monotonic() >= until:
            return grown
        time.sleep(0.02)


_initial: dict[Path, int] = {}
_reserving: list[Path] = []
_unreturned: Counter[Path] = Counter()  # pages of each pool that were in use after a test, not before


def _pages_in_use(pool: Path) -> int:
    """Of a whole machine: nobody else's tests change it while the lock is held."""
    count, free, promised = (int((pool / f"{what}_hugepages").read_text()) for what in ("nr", "free", "resv"))
    return count - free + promised


def give_back_huge_pages() -> None:
    """Every pool as it was found, once nobody else counts on it. Pages that are still in use go with this process."""
    if _initial:
        with pools_alone():
            for pool, count in _initial.items():
                pool.write_text(str(count))


@contextlib.contextmanager
def pools_alone() -> Generator[None]:
    """Nobody else reserves huge pages meanwhile, nor counts on free ones; for an ordinary user nobody could."""
    if os.geteuid() != 0:
        yield
        return
    lock = os.open(Path(tempfile.gettempdir()) / "mirrormap-hugepages.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def reserved(page_nbytes: int, count: int) -> Generator[int]:
    """`count` more free huge pages of one size, given back afterwards; one test process at a time.

    Skips only where the machine cannot: no root, no pool of that size, or no contiguous memory for it.
    """
    folder = HUGE_POOLS / f"hugepages-{page_nbytes >> 10}kB"
    pool = folder / "nr_hugepages"
    if not pool.exists():
        pytest.skip(f"this kernel has no pool of {page_nbytes:,}-byte pages")
    if not os.access(pool, os.W_OK):
        pytest.skip("only root can reserve huge pages")
    with pools_alone():
        before = int(pool.read_text())
        # what another process lost goes with it, unless it is made part of the pool
        kept = before - int((folder / "surplus_hugepages").read_text())
        _initial.setdefault(pool, kept)
        try:
            pool.write_text(str(before + count))
            got = int(pool.read_text()) - before
            if got < count:
                pytest.skip(f"the machine gave {got} of {count} pages of {page_nbytes:,} bytes")
            used = _pages_in_use(folder)
            _reserving.append(folder)
            try:
                yield page_nbytes
            finally:
                _reserving.remove(folder)
                gc.collect()
                _unreturned[folder] += max(0, _pages_in_use(folder) - used)
        finally:
            pool.write_text(str(kept))


def default_huge_nbytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Hugepagesize:"):
            return int(line.split()[1]) << 10
    pytest.skip("this kernel has no huge pages")


def refused(*arguments: object) -> NoReturn:
    """In place of an ioctl, as a kernel without it answers."""
    raise OSError(errno.ENOTTY, "")


def phase_of(heap: mm.Heap) -> str:
    """What `stats().phase` says, for who asks after every step: stats() also counts what is resident."""
    return PHASES[heap._stats()[-1]]
