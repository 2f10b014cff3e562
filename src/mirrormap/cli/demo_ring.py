"""mirrormap demo ring: a recording streamed between two processes, its spectrum taken as it comes."""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from mirrormap.aliasing import is_mirror
from mirrormap.cli import recording
from mirrormap.errors import MirrorError, Overrun, WriterGone
from mirrormap.pages import Pages
from mirrormap.ring import Ring

HELP = "stream a recording through a ring and draw its spectrogram"
_RING_SECONDS = 2
_BLOCK_SECONDS = 0.01
_PATIENCE_S = 30
_DYNAMIC_RANGE_DB = 70


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "ring",
        help=HELP,
        description="A writer process streams a recording block by block into a ring; this process takes the "
        "spectrum of overlapping windows of it, none of them copied, and draws a spectrogram.",
    )
    parser.add_argument(
        "recording",
        nargs="?",
        type=Path,
        help="a WAV file of 8, 16 or 32 bit samples (default: birds, from the package opensoundscape)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("spectrogram.png"),
        metavar="FILE",
        help="where to draw it (default: %(default)s)",
    )
    parser.add_argument(
        "--window", type=int, default=1024, metavar="N", help="samples a window (default: %(default)s)"
    )
    parser.add_argument(
        "--step",
        type=int,
        default=256,
        metavar="N",
        help="samples from one window to the next (default: %(default)s)",
    )
    parser.add_argument(
        "--speed",
        type=float,
        default=20.0,
        metavar="X",
        help="times real time (default: %(default)g; 0: as fast as it goes)",
    )
    parser.add_argument(
        "--lossless", action="store_true", help="let the writer wait for the reader instead of overwriting"
    )
    parser.set_defaults(run=run)


class _Seen(NamedTuple):
    """What the reader found."""

    columns: dict[int, NDArray[Any]]  # by the index of their window's first sample
    across: int
    copies: int
    overruns: int
    missed: int


def run(options: argparse.Namespace) -> int:
    """Stream, count, draw."""
    console = Console(highlight=False)
    sound = recording.opened(options.recording or recording.shipped())
    if importlib.util.find_spec("matplotlib") is None:
        raise MirrorError("the picture is drawn by matplotlib: pip install 'mirrormap[demo]'")
    if not 0 < options.step <= options.window <= _RING_SECONDS * sound.rate or options.speed < 0:
        raise MirrorError("--window must be 1 sample to 2 seconds, --step 1 to a window, --speed at least 0")
    if sound.frames < options.window:
        raise MirrorError(f"{sound.path}: shorter than one window of {options.window:,} samples")
    started = time.perf_counter()
    seen = _streamed(sound, options, console)
    seconds = time.perf_counter() - started
    _draw(sound, options, seen)
    duration = sound.frames / sound.rate
    console.print(
        f"windows   {len(seen.columns):,} of {options.window:,} samples, {options.step:,} apart; "
        f"{seen.across:,} lay across the seam\n"
        f"copies    {seen.copies:,}\n"
        f"overruns  {seen.overruns:,} ({seen.missed:,} samples missed)\n"
        f"time      {seconds:.2f} s for {duration:.1f} s of sound\n"
        f"picture   {options.output}"
    )
    return 0


def _write(ring: Ring, sound: recording.Sound, speed: float) -> None:
    """The writer process: decode block by block, in the recording's time or faster."""
    count = max(1, int(sound.rate * _BLOCK_SECONDS))
    start = time.monotonic()
    with ring:
        for block in recording.blocks(sound, count):
            ring.extend(block, timeout=_PATIENCE_S)
            if speed:
                time.sleep(max(0.0, start + ring.written / sound.rate / speed - time.monotonic()))


def _streamed(sound: recording.Sound, options: argparse.Namespace, console: Console) -> _Seen:
    """Both processes at work."""
    context = multiprocessing.get_context("spawn")
    capacity = _RING_SECONDS * sound.rate
    with Ring(capacity, sound.dtype, sound.channels, overwrite=not options.lossless) as ring:
        console.print(
            f"[bold]{Path(sound.path).name}[/]  {sound.frames:,} samples of {sound.channels} x "
            f"{np.dtype(sound.dtype).name} at {sound.rate:,} Hz\n{ring!r}"
        )
        writer = context.Process(target=_write, args=(ring, sound, options.speed), daemon=True)
        writer.start()
        try:
            with Progress(console=console, transient=True) as progress:
                return _read(ring, sound, options, progress)
        finally:
            writer.terminate()
            writer.join()
            writer.close()


def _read(ring: Ring, sound: recording.Sound, options: argparse.Namespace, progress: Progress) -> _Seen:
    """The reader: one spectrum a window, straight from the ring's pages."""
    taper = np.hanning(options.window).astype("f4")
    columns: dict[int, NDArray[Any]] = {}
    across = copies = overruns = missed = 0
    lap = ring.nbytes
    item = ring.dtype.itemsize * sound.channels
    task = progress.add_task("streaming", total=sound.frames)
    with (
        Pages.from_fd(ring.fileno()) as pages,
        pages.map(protection="r") as everything,
        ring.reader("oldest") as reader,
    ):
        blocks = reader.blocks(options.window, step=options.step, timeout=_PATIENCE_S)
        while True:
            try:
                block = next(blocks)
                start = reader.position - options.step
                column = np.abs(np.fft.rfft(taper * block[:, 0]))
                if not ring.valid(start):
                    continue  # the next step raises Overrun and says how much is gone
                columns[start] = column
                copies += not is_mirror(block, everything)
                across += start * item % lap + block.nbytes > lap
                progress.update(task, completed=start)
            except Overrun as overrun:
                overruns += 1
                missed += overrun.missed
            except WriterGone:
                return _Seen(columns, across, copies, overruns, missed)
            except TimeoutError:
                raise MirrorError("the writer process does not write; its error stands above") from None


def _draw(sound: recording.Sound, options: argparse.Namespace, seen: _Seen) -> None:
    """Draw the windows that were seen where they belong; gaps stay white."""
    from matplotlib.figure import Figure

    if not seen.columns:
        raise MirrorError("every window was overwritten before it was read; lower --speed, or --lossless")
    width = max(seen.columns) // options.step + 1
    picture = np.full((options.window // 2 + 1, width), np.nan, "f4")
    for start, column in seen.columns.items():
        picture[:, start // options.step] = 20 * np.log10(column + 1e-9)
    top = float(np.nanmax(picture))
    figure: Any = Figure(figsize=(10, 3.6), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(
        picture - top,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=-_DYNAMIC_RANGE_DB,
        vmax=0,
        extent=(0, width * options.step / sound.rate, 0, sound.rate / 2000),
    )
    figure.colorbar(image, ax=axes, label="dB below the loudest", pad=0.01)
    axes.set(xlabel="seconds", ylabel="kHz")
    axes.set_title(
        f"{Path(sound.path).name}: {len(seen.columns):,} windows of {options.window:,} samples, "
        f"{seen.across:,} across the ring's seam, {seen.copies:,} copies, {seen.overruns:,} overruns",
        fontsize="medium",
    )
    try:
        figure.savefig(options.output)
    except (OSError, ValueError) as error:
        raise MirrorError(f"cannot write {options.output}: {error}") from None
