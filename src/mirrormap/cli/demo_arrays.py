"""mirrormap demo arrays: a recording that grows, is stitched, frozen and handed over, and never copied."""

from __future__ import annotations

import argparse
import math
import multiprocessing
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from mirrormap.aliasing import is_mirror, shares_memory
from mirrormap.allocator import numpy_allocator
from mirrormap.arrays import zeros
from mirrormap.cli import recording
from mirrormap.errors import MirrorError
from mirrormap.growable import Growable
from mirrormap.handles import Handle, handle
from mirrormap.kernel import PAGE_NBYTES
from mirrormap.mirror import mirror
from mirrormap.snapshot import snapshot
from mirrormap.stitch import stitch
from mirrormap.units import format_nbytes

HELP = "grow, stitch, freeze and hand over a recording without copying it"
_BLOCK_SECONDS = 0.1
_TABLE_NBYTES = 64 << 20
_PATIENCE_S = 30


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "arrays",
        help=HELP,
        description="Append a recording block by block under a live array; stitch its halves the other way "
        "round; let a child mark the loudest second in the same pages; mirror what numpy.fft returns; save "
        "a table while a thread writes it.",
    )
    parser.add_argument(
        "recording",
        nargs="?",
        type=Path,
        help="a WAV file of 8, 16 or 32 bit samples (default: birds, from the package opensoundscape)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show everything, one section at a time."""
    console = Console(highlight=False)
    sound = recording.opened(options.recording or recording.shipped())
    if sound.frames < sound.rate:
        raise MirrorError(f"{sound.path}: shorter than one second")
    with Growable(sound.dtype, (sound.channels,)) as samples:
        _grow(console, sound, samples)
        _stitch(console, samples)
        _hand_over(console, sound, samples)
        _allocate(console, samples)
    _freeze(console)
    return 0


def _title(console: Console, text: str) -> None:
    console.print(f"\n[bold]{text}[/]")


def _grow(console: Console, sound: recording.Sound, samples: Growable) -> None:
    _title(console, "1. Growable: a recording appended to under an array that shows it")
    first: NDArray[Any] | None = None
    address = grown = 0
    for block in recording.blocks(sound, int(sound.rate * _BLOCK_SECONDS) or 1):
        samples.extend(block)
        if first is None:
            first, address = samples.array, samples.address
        grown += 1
    assert first is not None
    console.print(
        f"{Path(sound.path).name}: {grown:,} blocks, {len(samples):,} samples, "
        f"{format_nbytes(samples.nbytes)}; the kernel holds {format_nbytes(samples.allocated)}\n"
        f"moved: {samples.address != address}; the first block's array still shows the same memory: "
        f"{shares_memory(first, samples.array)}"
    )


def _stitch(console: Console, samples: Growable) -> None:
    _title(console, "2. stitch: its second half before its first, as one array")
    whole = samples.array
    row_nbytes = samples.nbytes // len(samples)
    rows = math.lcm(PAGE_NBYTES, row_nbytes) // row_nbytes  # the fewest that fill pages
    half = len(samples) // 2 // rows * rows
    if not half:
        raise MirrorError("the recording is shorter than two pages of memory")
    started = time.perf_counter()
    swapped = stitch([whole[half : 2 * half], whole[:half]])
    seconds = time.perf_counter() - started
    kept = whole[half].copy()
    swapped[0] = 0
    console.print(
        f"{len(swapped):,} samples in {seconds * 1e6:,.0f} us; a zero stored at its start shows in the "
        f"middle of the recording: {not whole[half].any()}; "
        f"pages copied: {0 if is_mirror(swapped, whole) else 'all'}"
    )
    swapped[0] = kept


def _loudest(shown: Handle, rate: int) -> None:
    """The child: find the loudest second in the parent's pages, and flip the last bit of its samples."""
    samples = shown.open()
    level = np.abs(samples.astype("f8") - np.median(samples)).max(axis=1)
    seconds = len(level) // rate
    start = int(level[: seconds * rate].reshape(seconds, rate).sum(axis=1).argmax()) * rate
    samples[start : start + rate] ^= 1


def _hand_over(console: Console, sound: recording.Sound, samples: Growable) -> None:
    _title(console, "3. handle: a spawned child marks the loudest second in the same pages")
    before = samples.array.copy()
    child = multiprocessing.get_context("spawn").Process(
        target=_loudest, args=(handle(samples.array), sound.rate), daemon=True
    )
    child.start()
    child.join(_PATIENCE_S)
    changed = np.flatnonzero((samples.array != before).any(axis=1))
    if child.exitcode != 0 or not changed.size:
        raise MirrorError(f"the child process ended with {child.exitcode}; its error stands above")
    console.print(
        f"process {child.pid} changed samples {changed[0]:,} to {changed[-1]:,} "
        f"(second {changed[0] // sound.rate}); bytes sent or copied: 0"
    )


def _allocate(console: Console, samples: Growable) -> None:
    _title(console, "4. numpy_allocator: what numpy.fft returns can be mirrored")
    with numpy_allocator("64KiB") as allocator:
        spectrum = np.fft.rfft(samples.array[:, 0])
        shown = mirror(spectrum)
        shown[0] = 1
        console.print(
            f"{spectrum.size:,} coefficients, {format_nbytes(spectrum.nbytes)}; stored through the mirror: "
            f"{shown[0]}, seen in the array: {spectrum[0]}"
        )
        del spectrum, shown
        allocator.trim()


def _freeze(console: Console) -> None:
    _title(console, "5. snapshot: a table saved while a thread writes all of it, again and again")
    table = zeros(_TABLE_NBYTES // 8, "i8", populate=True)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            np.add(table, 1, out=table)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while not table[-1]:
            time.sleep(0.001)
        started = time.perf_counter()
        taken = snapshot(table, copy=False)
        with tempfile.NamedTemporaryFile(suffix=".npy") as file:
            frozen = taken.__enter__()
            seconds = time.perf_counter() - started
            try:
                np.save(file.name, frozen)
                while table[0] == frozen[0]:
                    time.sleep(0.001)
                passes = int(table[0])
            finally:
                stop.set()
                writer.join()  # no thread writes while the snapshot ends
                taken.close()
            saved = np.load(file.name)
    finally:
        stop.set()
        writer.join()
    console.print(
        f"{format_nbytes(table.nbytes)} frozen in {seconds * 1e3:.2f} ms; while it was saved the thread went "
        f"from pass {int(saved[0]):,} to {passes:,}\n"
        f"the file holds one moment: {_is_one_moment(saved)}; what was written meanwhile is there: "
        f"{int(table[0]) >= passes}"
    )


def _is_one_moment(saved: NDArray[Any]) -> bool:
    """The writer goes front to back: a front of one value, and behind it the value before."""
    steps = np.diff(saved)
    return int(np.count_nonzero(steps)) <= 1 and int(saved[0] - saved[-1]) in (0, 1)
