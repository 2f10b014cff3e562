"""mirrormap demo heap: a dictionary as a graph; blocks fill, lose what they hold, are emptied and freed."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from mirrormap.cli import words
from mirrormap.errors import MirrorError
from mirrormap.heap import Heap
from mirrormap.kernel.heaps import Ref
from mirrormap.units import as_nbytes, format_nbytes

HELP = "collect and compact a dictionary's graph, block by block"
_SHADES: Final = " ▁▂▃▄▅▆▇█"
_COLOURS: Final = {1: "cyan", 2: "yellow", 3: "green", 4: "magenta", 5: "magenta", 6: "red"}
_NAMES: Final = {"values": 1, "bytes": 2, "records": 3, "large": 4, "moved out": 6}
_BLOCK: Final = 1 << 18
_RUN: Final = (4, 5)
_FRAME_S: Final = 0.05
_STEP_US: Final = 200
_LEAST_CACHE: Final = 1 << 16
_KEEP: Final = 3  # one word in so many stays

Block = tuple[int, int, int, int, int]


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "heap",
        help=HELP,
        description="Put a dictionary into a heap as a tree of letters with an entry for each word, and text "
        "of each into a cache. Forget words, collect, shrink the cache, and freeze what is left; each "
        "character of the picture is a block of 256 KiB.",
    )
    parser.add_argument(
        "words",
        nargs="?",
        type=Path,
        help="a file of words, one a line (default: English, from the package symspellpy, or the system's)",
    )
    parser.add_argument(
        "--cache", default="8MiB", metavar="SIZE", help="of the cache beside the graph (default: 8MiB)"
    )
    parser.set_defaults(run=run)


class _Film:
    """The picture on the terminal, drawn anew a few times a second; and what it ended each scene with."""

    def __init__(self, heap: Heap, console: Console, live: Live) -> None:
        self.heap, self.console, self.live = heap, console, live
        self.title = ""
        self.drawn = 0.0

    def scene(self, title: str) -> None:
        self.title = title
        self.draw()

    def draw(self) -> None:
        self.live.update(Group(Text(self.title, "bold"), *picture(self.heap._blocks(), self.console.width)))
        self.drawn = time.monotonic()

    def watch(self, items: Sequence[Any]) -> Iterator[Any]:
        """The items, with the picture kept up to date."""
        for number, item in enumerate(items):
            yield item
            if number % 64 == 0 and time.monotonic() - self.drawn > _FRAME_S:
                self.draw()

    def collect(self) -> None:
        """One collection, step by step, with its phase under the picture's title."""
        scene, more = self.title, True
        while more:
            more = self.heap.step(_STEP_US)
            self.title = f"{scene} ({self.heap.stats().phase})"
            self.draw()
        self.title = scene

    def cut(self, text: str) -> None:
        """Print how the scene ended: the picture, and one line."""
        told = self.heap.stats()
        self.console.print(
            Text(f"{self.title}", "bold"), *picture(self.heap._blocks(), self.console.width), sep="\n"
        )
        self.console.print(
            f"{text}; {format_nbytes(told.live)} alive in {format_nbytes(told.committed)} of pages\n"
        )


def picture(blocks: list[Block], width: int) -> list[Text]:
    """Lines with a character a block: its height is what lives in it, its colour the kind."""
    lines: list[Text] = []
    for start in range(0, len(blocks), max(1, width - 1)):
        line = Text()
        for kind, alive, _, held, pins in blocks[start : start + max(1, width - 1)]:
            level = held if kind in _RUN else alive
            shade = _SHADES[-(-level * (len(_SHADES) - 1) // _BLOCK)] if kind != _NAMES["moved out"] else "·"
            line.append(shade, f"{_COLOURS.get(kind, 'default')}{' underline' if pins else ''}")
        lines.append(line)
    key = Text("  ".join(f"■ {name}" for name in _NAMES), "dim")
    return [*lines, key]


def run(options: argparse.Namespace) -> int:
    """Fill, forget, collect, shrink, freeze."""
    console = Console(highlight=False)
    path = options.words or words.shipped()
    entries = words.read(path)
    try:
        limit = as_nbytes(options.cache, "--cache", minimum=_LEAST_CACHE)
    except (ValueError, TypeError) as error:
        raise MirrorError(str(error)) from None
    console.print(f"[bold]{path.name}[/]  {len(entries):,} words\n")
    with (
        Heap(max(64 << 20, 4 * limit), collector="manual") as heap,
        Live(console=console, refresh_per_second=20, transient=True) as live,
    ):
        _play(_Film(heap, console, live), entries, limit)
    return 0


def _play(film: _Film, entries: list[tuple[str, int]], limit: int) -> None:
    heap = film.heap
    node: Any = heap.record("Letter", letter="u4", child=Ref, sibling=Ref, entry=Ref)
    film.scene("1. A tree of letters, and an entry for every word: blocks fill")
    top = heap.roots["top"] = node()
    cache = heap.lru(limit)
    for word, count in film.watch(entries):
        _find(node, top, word).entry = heap.put(f"{word}: seen {count:,} times".encode())
        cache[word] = f"{word} ".encode()[:1000] * 20
    film.cut(f"{heap.verify().objects - len(cache):,} records and entries, {len(cache):,} values in a cache")

    film.scene(f"2. Two words of {_KEEP} lose their entries: nothing moves yet")
    for number, (word, _) in enumerate(film.watch(entries)):
        if number % _KEEP:
            _find(node, top, word).entry = None
    film.cut("holes everywhere, and every page still held")

    film.scene("3. step() by step(), what is alive is marked, and moved out of the emptiest blocks")
    before = heap.stats()
    film.collect()
    after = heap.stats()
    stops = after.pauses["step"]
    film.cut(
        f"{after.marked - before.marked:,} objects marked, {after.moved - before.moved:,} moved, "
        f"{format_nbytes(after.returned - before.returned)} given back in {stops.steps:,} steps, "
        f"the longest {stops.longest_ns / 1e3:,.0f} us of processor"
    )

    film.scene("4. The cache loses most of its values, at random places: its blocks empty by themselves")
    for number, key in enumerate(film.watch(list(cache))):
        if number % 8:
            del cache[key]
    collections = heap.stats().collections
    film.cut(f"{len(cache):,} values left, {collections - after.collections} collections asked for")

    film.scene("5. Once more: references are mended, the blocks that were moved out are free")
    film.collect()
    heap.collect()  # what was let go of meanwhile too
    film.cut(f"{heap.verify().references:,} references, checked by a second trace")

    started = time.perf_counter()
    with heap.freeze() as frozen:
        seconds = time.perf_counter() - started
        film.title = "6. freeze(): an image for other processes"
        letters = sum(1 for _ in _walk(frozen.roots["top"]))
        film.cut(f"{format_nbytes(frozen.nbytes)} in {seconds * 1e3:.0f} ms; {letters:,} letters read in it")
    _check(node, top, entries)


def _find(node: Any, top: Any, word: str) -> Any:
    """The letter at which a word ends, made with all before it where there is none."""
    here = top
    for letter in map(ord, word):
        at = here.child
        while at is not None and at.letter != letter:
            at = at.sibling
        if at is None:
            at = here.child = node(letter=letter, sibling=here.child)
        here = at
    return here


def _walk(top: Any) -> Iterator[Any]:
    queue = [top]
    while queue:
        here = queue.pop()
        yield here
        queue += [each for each in (here.child, here.sibling) if each is not None]


def _check(node: Any, top: Any, entries: list[tuple[str, int]]) -> None:
    """Every entry that should be there is, and no other."""
    kept = {word: number % _KEEP == 0 for number, (word, _) in enumerate(entries)}
    for word, there in kept.items():
        entry = _find(node, top, word).entry
        if (entry is not None) != there or (there and not bytes(entry).startswith(f"{word}: ".encode())):
            raise MirrorError(f"the entry of {word!r} is not what it was")
