"""One process a case, forked from a warm one, for strace to fail the calls of: see test_strace.py.

Standard input names operations; for each, standard output has the process, and then what became of it.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

import mirrormap as mm
from mirrormap import kernel
from support import PAGE, held, libc

MARK = 0x5A


def is_our_mount(fd: int) -> bool:
    """The only folder that anybody keeps open here is that of the tmpfs of the package."""
    try:
        return stat.S_ISDIR(os.fstat(fd).st_mode)
    except OSError:
        return False


class Scene:
    """Memory with a mark in it, which must be as it was afterwards."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.pages = mm.Pages(8 * PAGE)
        self.view = self.pages.map()
        self.roomy = self.pages.map(0, PAGE, reserve=64 * PAGE)
        self.file = mm.Pages.open(self.folder / "data", 4 * PAGE)
        self.source = mmap.mmap(-1, 4 * PAGE)
        kernel.has_huge_files()
        self.mount = next((fd for fd in range(3, 64) if is_our_mount(fd)), -1)
        self.view.array()[:8] = MARK
        self.source[:8] = bytes([MARK]) * 8

    def check(self) -> None:
        assert (self.view.array()[:8] == MARK).all()
        assert self.source[:8] == bytes([MARK]) * 8
        assert self.view.nbytes == 8 * PAGE
        with self.view.mirror() as other:
            assert other.array()[0] == MARK


def resized(view: mm.Mapping, nbytes: int) -> None:
    before = view.nbytes
    view.resize(nbytes)
    view.resize(before)


def ringed(path: Path | None) -> None:
    with mm.Ring(100, "i4", path=path) as ring, ring.reader("oldest") as reader:
        ring.extend(range(50))
        assert reader.read(50)[-1] == 49


def messaged() -> None:
    with mm.Channel("64KiB") as channel, channel.receiver() as receiver, channel.sender() as sender:
        sender.send(b"abc")
        with receiver.receive(timeout=0) as message:
            assert bytes(message) == b"abc"


def grown(path: Path | None) -> None:
    with mm.Growable("u1", path=path) as rows:
        rows.extend(np.full(40 * PAGE, 7, "u1"))
        rows.shrink_to_fit()
        assert (rows.array == 7).all()


def mounted_again(mount: int) -> None:
    """As a program that becomes a daemon, and closes all it finds."""
    if mount >= 0:
        os.close(mount)
        assert kernel.has_huge_files() in (True, False)  # refused: there are other ways


def mounted_as_nobody(mount: int) -> None:
    """As a user who may not mount, but may in a user namespace of a child's."""
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    libc.prctl(4, 1)  # PR_SET_DUMPABLE: its own /proc is its own again
    mounted_again(mount)


def heaped() -> None:
    with mm.Heap("4MiB", collector="manual") as heap:
        kept = [heap.put(bytes([MARK]) * 1000) for _ in range(200)]
        del kept[::2]
        heap.collect()
        assert all(bytes(each) == bytes([MARK]) * 1000 for each in kept)
        heap.verify()
        del kept


def flushed(pages: mm.Pages) -> None:
    with pages.map() as view:
        view.array()[:8] = MARK
        view.flush()


def frozen() -> None:
    live = mm.full(4 << 20, MARK, "u1")
    taken = mm.snapshot(live, copy=False)
    with taken as still:
        live[PAGE : 2 * PAGE] = 1
        assert (still == MARK).all()


OPERATIONS: dict[str, Callable[[Scene], Any]] = {
    "pages": lambda s: mm.Pages(PAGE).map(populate=True).close(),
    "reserve": lambda s: s.pages.map(reserve="1MiB").close(),
    "file": lambda s: mm.Pages.open(s.folder / "fresh", PAGE).close(),
    "arrange": lambda s: s.pages.arrange([(0, 4 * PAGE), (0, 4 * PAGE)], populate=True).close(),
    "mirror": lambda s: s.view.mirror(PAGE, PAGE).close(),
    "mirror of mmap": lambda s: mm.mirror(s.source, populate=True).close(),
    "resize": lambda s: resized(s.roomy, 8 * PAGE),
    "move": lambda s: resized(s.roomy, 128 * PAGE),
    "pages.resize": lambda s: s.pages.resize(9 * PAGE),
    "protect": lambda s: (s.view.protect("r"), s.view.protect("rw")),
    "inherit": lambda s: (setattr(s.view, "inherit", "none"), setattr(s.view, "inherit", "share")),
    "discard": lambda s: s.pages.discard(4 * PAGE, PAGE),
    "flush": lambda s: s.file.flush(),
    "residency": lambda s: s.view.resident,
    "ring": lambda s: ringed(None),
    "ring in a file": lambda s: ringed(s.folder / "ring"),
    "channel": lambda s: messaged(),
    "growable": lambda s: grown(None),
    "growable in a file": lambda s: grown(s.folder / "rows"),
    "snapshot": lambda s: frozen(),
    "mirrors": lambda s: mm.mirrors(),
    "mount": lambda s: mounted_again(s.mount),
    "flush of a view": lambda s: flushed(s.file),
    "heap": lambda s: heaped(),
}
ONCE: dict[str, Callable[[Scene], Any]] = {  # what a process cannot take back: not for the server itself
    "mremap": lambda s: mm.mremap(s.view.address, PAGE, PAGE, mm.MREMAP_MAYMOVE | mm.MREMAP_MIRROR),
    "mount as nobody": lambda s: mounted_as_nobody(s.mount),
}


def case(name: str, go: int) -> None:
    """Build a scene, wait for the tracer, work, wait until it is gone, and say what became of it."""
    scene = Scene()
    operation = (OPERATIONS | ONCE)[name]
    told: dict[str, Any] = {"error": None}
    before = held()
    print(os.getpid(), flush=True)
    while not select.select([go], [], [], 0.002)[0]:
        os.getppid()  # which the tracer sees as soon as it sees anything
    os.read(go, 1)
    try:
        operation(scene)
    except (OSError, MemoryError, mm.MirrorError, BufferError) as error:
        told["error"] = f"{type(error).__name__}: {error}"
        told["errno"] = getattr(error, "errno", None)
        del error
    os.writev(1, [b"worked\n"])  # no write(2), which may be what fails
    os.read(go, 1)
    after = held()
    told["left"] = {what: after[what] - before[what] for what in after if after[what] > before[what]}
    scene.check()
    shutil.rmtree(scene.folder, ignore_errors=True)
    print(json.dumps(told), flush=True)
    os._exit(0)


def main() -> None:
    """Serve until the input ends. Operations are warmed first: what is cached is there from then on."""
    scene = Scene()
    for operation in OPERATIONS.values():
        operation(scene)
    go = int(sys.argv[1])
    print("ready", flush=True)
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if not child:
            case(line.strip(), go)
        _, status = os.waitpid(child, 0)
        print(f"ended {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    main()
