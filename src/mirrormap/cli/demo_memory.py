"""mirrormap demo memory: real memory, made by others, shown twice."""

from __future__ import annotations

import argparse
import contextlib
import mmap
import multiprocessing
import os
import resource
from collections.abc import Generator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from mirrormap import kernel, procmaps, residency
from mirrormap.aliasing import shares_memory
from mirrormap.arrays import share
from mirrormap.errors import MapError, NotMirrorableError
from mirrormap.kernel import PAGE_NBYTES
from mirrormap.mapping import Mapping
from mirrormap.mirror import mirror
from mirrormap.pages import Pages
from mirrormap.remap import MREMAP_MAYMOVE, MREMAP_MIRROR, mremap
from mirrormap.units import format_nbytes

HELP = "mirror real memory of several kinds and show what happens"
_FAULT_NBYTES = 64 << 20
_HUGE_PAGES = 4
_PATIENCE_S = 30


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "memory",
        help=HELP,
        description="Mirror a stdlib mmap, a SharedMemory block that a second process has open, a "
        "memory-mapped file and huge pages; count faults; ask for private memory. Takes seconds, "
        "leaves nothing behind.",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show everything, one section at a time."""
    console = Console(highlight=False)
    for section in (_standard_mmap, _shared_with_a_process, _file, _ring, _huge, _faults, _private):
        section(console)
    return 0


def _title(console: Console, text: str) -> None:
    console.print(f"\n[bold]{text}[/]")


def _address(view: Any) -> int:
    return int(np.asarray(view).__array_interface__["data"][0])


def _compare(console: Console, original: NDArray[Any], mirrored: NDArray[Any]) -> None:
    """One row a view: address, first bytes, physical frame."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("", "address", "first bytes", "physical frame"):
        table.add_column(heading, no_wrap=True)
    for name, view in (("original", original), ("mirror", mirrored)):
        first = bytes(view.reshape(-1)[:12])  # read first: the touch makes the page-table entry
        numbers = residency.frames(_address(view) & -PAGE_NBYTES, PAGE_NBYTES)
        frame = f"{numbers[0]:#x}" if numbers else "readable by root only"
        table.add_row(name, f"{_address(view):#x}", first.hex(" "), frame)
    console.print(table)


def _bytes_of(source: Any) -> NDArray[np.uint8]:
    return np.frombuffer(source, dtype="u1")


def _standard_mmap(console: Console) -> None:
    _title(console, "1. A mapping of Python's own mmap module, which has no descriptor")
    with mmap.mmap(-1, 16 * PAGE_NBYTES) as original:
        original[:14] = b"hello, mirror!"
        with mirror(original) as mirrored:
            _compare(console, _bytes_of(original), mirrored.array())
            mirrored.array()[:5] = np.frombuffer(b"HELLO", "u1")
            console.print(f"Written through the mirror, read from the original: {original[:14]!r}")
        view = _bytes_of(original)
        address = mremap(_address(view), 0, len(original), MREMAP_MAYMOVE)
        flagged = mremap(address, len(original), len(original), MREMAP_MAYMOVE | MREMAP_MIRROR)
        console.print(f"mremap(address, 0, n, MAYMOVE) = {address:#x}, and with MREMAP_MIRROR {flagged:#x}")
        del view
        kernel.munmap(address, len(original))
        kernel.munmap(flagged, len(original))


def _child(name: str, mirrored: Any, written: Any, shown: Any) -> None:
    block = shared_memory.SharedMemory(name=name)
    assert block.buf is not None
    mirrored.wait(_PATIENCE_S)
    block.buf[:22] = b"written by the child, "
    written.set()
    shown.wait(_PATIENCE_S)
    block.close()


def _shared_with_a_process(console: Console) -> None:
    _title(console, "2. A SharedMemory block that a second, living process has open")
    context = multiprocessing.get_context("spawn")
    mirrored, written, shown = context.Event(), context.Event(), context.Event()
    block = shared_memory.SharedMemory(create=True, size=8 * PAGE_NBYTES)
    try:
        child = context.Process(target=_child, args=(block.name, mirrored, written, shown))
        child.start()
        with mirror(block) as other:
            mirrored.set()
            written.wait(_PATIENCE_S)
            assert block.buf is not None
            view = np.frombuffer(block.buf, "u1")
            _compare(console, view, other.array())
            del view
            text = bytes(memoryview(other)[:22]).decode()
            console.print(f"Process {child.pid} wrote, this mirror shows: {text!r}")
        shown.set()
        child.join(_PATIENCE_S)
    finally:
        block.close()
        block.unlink()


def _file(console: Console) -> None:
    _title(console, "3. A slice of a real file, memory-mapped by NumPy for reading")
    path = Path(os.__file__)
    original = np.memmap(path, dtype="u1", mode="r", offset=0)
    part = original[5:-5:3]
    mirrored = mirror(part)
    _compare(console, part, mirrored)
    console.print(
        f"{path.name}: every third byte of {original.nbytes:,}; equal: {bool((part == mirrored).all())}, "
        f"writable: {mirrored.flags.writeable}, bytes copied: 0"
    )


def _ring(console: Console) -> None:
    _title(console, "4. A ring: the same pages twice in a row, so every window is contiguous")
    with Pages("64KiB", name="demo-ring") as pages, pages.arrange([(0, "64KiB"), (0, "64KiB")]) as ring:
        samples = ring.array("i4")
        count = samples.size // 2
        samples[count - 3 : count + 3] = [1, 2, 3, 4, 5, 6]
        window = samples[count - 3 : count + 3].tolist()
        halves = samples[:count], samples[count:]
        console.print(
            f"Six samples written across the seam: {window}\n"
            f"the last three lie at the start:     {samples[:3].tolist()}\n"
            f"np.shares_memory of the two halves:  {np.shares_memory(*halves)}, "
            f"and mirrormap.shares_memory: {shares_memory(*halves)}"
        )
        del samples, halves


@contextlib.contextmanager
def _huge_pages() -> Generator[int]:
    """The default huge page size, with a few pages in its pool; what had to be added goes again."""
    nbytes = procmaps.default_huge_nbytes()
    if nbytes is None:
        raise _UnavailableError("this kernel has no huge pages")
    pool = procmaps.huge_pool(nbytes)
    short = _HUGE_PAGES - pool.available
    try:
        if short > 0:
            Path(pool.path).write_text(str(pool.total + short))
            if procmaps.huge_pool(nbytes).available < _HUGE_PAGES:
                raise _UnavailableError("no contiguous memory is left for huge pages")
        yield nbytes
    except PermissionError:
        raise _UnavailableError(f"none are reserved; as root: `echo {_HUGE_PAGES} > {pool.path}`") from None
    finally:
        if short > 0:
            with contextlib.suppress(OSError):
                Path(pool.path).write_text(str(pool.total))


class _UnavailableError(Exception):
    """Why there is nothing to show; the text says it."""


def _huge(console: Console) -> None:
    _title(console, "5. Huge pages, which mremap can neither mirror nor grow")
    try:
        with (
            _huge_pages() as nbytes,
            Pages(2 * nbytes, page_size=nbytes, name="demo-huge") as pages,
            pages.map(populate=True) as view,
        ):
            view.array()[:12] = range(12)
            with view.mirror(populate=True) as mirrored:
                _compare(console, view.array(), mirrored.array())
                mirrored.resize(3 * nbytes)
                mirrored.array()[-1] = 5
                console.print(
                    f"{format_nbytes(view.resident_huge)} under huge entries; the mirror grew to "
                    f"{format_nbytes(mirrored.nbytes)}, the pool gave {format_nbytes(pages.allocated)}"
                )
    except (_UnavailableError, MapError) as reason:
        console.print(f"[yellow]Not shown:[/] {reason}")


def _touch(view: Mapping) -> int:
    """Faults taken by one store to every page."""
    array = view.array()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    array[::PAGE_NBYTES] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _faults(console: Console) -> None:
    _title(console, f"6. Page faults on touching a mirror of {format_nbytes(_FAULT_NBYTES)}")
    with mmap.mmap(-1, _FAULT_NBYTES) as original:
        _bytes_of(original)[::PAGE_NBYTES] = 1
        for populate in (False, True):
            with mirror(original, populate=populate) as mirrored:
                resident = mirrored.resident
                console.print(
                    f"populate={populate!s:5}  {format_nbytes(resident):>7} with page-table entries, "
                    f"then {_touch(mirrored):,} faults"
                )


def _private(console: Console) -> None:
    _title(console, "7. Private memory has no second address; one copy gives it one")
    array = np.arange(100_000)
    try:
        mirror(array)
    except NotMirrorableError as error:
        console.print(f"mirror(np.arange(100_000)): [yellow]{error.advice}[/]")
    shared = share(array)
    console.print(f"mirror(share(array)): equal {bool((mirror(shared) == array).all())}")
