"""Every system call the package makes, failing in every way, alone and with what undoes it.

Runs in the sanitizer build, whose extension can make the nth call of a kind answer an errno
(`make sanitize`), and then the munmap or close that cleans up after it too. Whatever fails must leave the right exception, no mapping, no descriptor, no huge
page, and a source that is as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import mmap
import pickle
import socket
from collections.abc import Callable, Generator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mirrormap as mm
from faults import arm, disarm, fault_hits, needs_faults
from support import (
    MAP_ANONYMOUS,
    MAP_HUGETLB,
    MAP_SHARED,
    PAGE,
    Raw,
    address_of,
    default_huge_nbytes,
    grown_since,
    held,
    reserved,
    unmap,
)

pytestmark = needs_faults

# an errno, and which call of the undoing fails with it too
FAULTS = [
    *(
        (getattr(errno, name), "")
        for name in ("ENOMEM", "EPERM", "ENOSYS", "EINTR", "EAGAIN", "EINVAL", "EMFILE")
    ),
    (errno.ENOMEM, "munmap"),
    (errno.EIO, "close"),
]
ALLOWED = (mm.MapError, OSError, BufferError)
MARK = 0x5A
UNDOING = ("munmap", "close")


class Scene:
    """Memory of several kinds, with a mark in it, and what must still hold afterwards."""

    def __init__(self, folder: Path, huge: int) -> None:
        self.huge_nbytes = huge
        self.folder = folder
        self.pages = mm.Pages(8 * PAGE)
        self.view = self.pages.map()
        self.roomy = self.pages.map(0, PAGE, reserve=64 * PAGE)
        self.huge = mm.Pages(huge, page_size=huge)
        self.huge_view = self.huge.map()
        self.file = mm.Pages.open(folder / "data", 4 * PAGE)
        self.source = mmap.mmap(-1, 4 * PAGE)
        self.block = SharedMemory(create=True, size=4 * PAGE)
        self.raw_huge = Raw(huge, flags=MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB)
        self.roomy_huge = self.huge.map(reserve=4 * huge)
        for array in self.arrays():
            array[:8] = MARK

    def arrays(self) -> list[np.ndarray[Any, Any]]:
        return [
            self.view.array(),
            self.huge_view.array(),
            np.frombuffer(self.source, "u1"),
            np.frombuffer(self.block.buf, "u1"),
            np.frombuffer(self.raw_huge.buffer, "u1"),
        ]

    def check(self) -> None:
        for array in self.arrays():
            assert (array[:8] == MARK).all()
            array[:8] = MARK
        assert self.view.nbytes == 8 * PAGE
        assert self.view.protection == "rw"
        assert self.pages.nbytes >= 8 * PAGE
        with self.view.mirror() as other:
            assert other.array()[0] == MARK

    def close(self) -> None:
        self.source.close()
        self.block.close()
        self.block.unlink()
        self.raw_huge.unmap()
        for one in (self.view, self.roomy, self.huge_view, self.roomy_huge, self.pages, self.huge, self.file):
            one.close()


def closing(make: Callable[[Scene], Any]) -> Callable[[Scene], None]:
    def operation(scene: Scene) -> None:
        made = make(scene)
        for one in made if isinstance(made, list) else [made]:
            if hasattr(one, "close"):
                disarm()
                one.close()

    return operation


def remapped(scene: Scene, flags: int) -> None:
    start = address_of(scene.source)
    with Raw(4 * PAGE) as target:
        to = target.address
        got = mm.mremap(start, 0 if not flags else 4 * PAGE, 4 * PAGE, mm.MREMAP_MAYMOVE | flags, to)
        disarm()
        if got != to:
            unmap(got, 4 * PAGE)


def grown(scene: Scene, view: mm.Mapping, nbytes: int) -> None:
    before = view.nbytes
    view.resize(nbytes)
    disarm()
    view.resize(before)


def inherited(scene: Scene) -> None:
    scene.view.inherit = "none"
    disarm()
    scene.view.inherit = "share"


def protected(scene: Scene) -> None:
    scene.view.protect("r", PAGE, PAGE)
    disarm()
    scene.view.protect("rw")


def closed(scene: Scene) -> None:
    view = scene.pages.map()
    try:
        view.close()
    except mm.MapError:
        assert not view.closed
        disarm()
        view.close()


def rewritten(scene: Scene) -> None:
    with Raw(scene.huge_nbytes, flags=MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB) as raw:
        got = mm.mremap(raw.address, raw.nbytes, 2 * raw.nbytes, mm.MREMAP_MAYMOVE)
        disarm()
        unmap(got, 2 * raw.nbytes)
        raw.__dict__["unmap"] = lambda: None


def replaced_huge(scene: Scene) -> None:
    """The kernel has no such call: a mirror of huge pages over a target of the caller's."""
    huge = scene.huge_nbytes
    with Raw(huge, flags=MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB) as target:
        flags = mm.MREMAP_MAYMOVE | mm.MREMAP_FIXED | mm.MREMAP_MIRROR
        got = mm.mremap(scene.raw_huge.address, huge, huge, flags, target.address)
        assert got == target.address


def shrunk(scene: Scene) -> None:
    with mm.Pages(4 * PAGE) as pages, pages.map() as view:
        view.array()[:] = MARK
        pages.resize(PAGE)
        disarm()
        assert pages.nbytes == PAGE
        assert view.array()[0] == MARK
        assert not view.array()[PAGE:].any()


def ringed(path: Path | None) -> None:
    try:
        with mm.Ring(100, "i4", path=path) as ring:
            ring.extend(range(50))
            again = mm.Ring.from_fd(ring.fileno()) if path is None else mm.Ring.open(path)
            with again, again.reader("oldest") as reader:
                assert reader.read(50)[-1] == 49
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def unsealable() -> Generator[None]:
    """F_GET_SEALS answers EINVAL for what cannot be sealed, and that is no channel."""
    try:
        yield
    except mm.CorruptError as error:
        assert "not sealed" in str(error)
        raise OSError(errno.EINVAL, str(error)) from None


def channelled(scene: Scene, path: Path | None, group: str | None = None) -> None:
    """Made, sent through, opened once more by path or descriptor, and received from there."""
    try:
        with mm.Channel(4 * PAGE, path=path) as channel, channel.sender() as sender:
            sender.send(np.arange(5))
            with sender.reserve(100, timeout=0) as room:
                room.array[:] = MARK
            with unsealable():
                again = mm.Channel.from_fd(channel.fileno()) if path is None else mm.Channel.open(path)
            with again, again.receiver("oldest", group=group) as receiver:
                assert receiver.receive(0).array[4] == 4
                assert bytes(receiver.receive(0)) == bytes([MARK]) * 100
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


def waited_for(scene: Scene) -> None:
    """Both ends wait: for a message, and for room."""
    with mm.Channel(4 * PAGE, max_inflight=1, spin_us=0) as channel:
        with channel.sender() as sender, channel.receiver() as receiver:
            with contextlib.suppress(TimeoutError):
                receiver.receive(0.01)
            sender.send(b"1", timeout=0)
            with contextlib.suppress(TimeoutError):
                sender.send(b"2", timeout=0.01)
            assert bytes(receiver.receive(0)) == b"1"


async def listened(channel: mm.Channel) -> None:
    with channel.sender() as sender, channel.receiver() as receiver:
        asyncio.get_running_loop().call_later(0.001, sender.send, b"hello")
        async for message in receiver:
            assert bytes(message) == b"hello"
            break


def in_a_loop(scene: Scene) -> None:
    with mm.Channel(PAGE) as channel:
        asyncio.run(listened(channel))


def shared_by_socket(scene: Scene) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs, mm.Channel(PAGE) as channel:
        channel.share(ours)
        with unsealable():
            mm.Channel.from_socket(theirs).close()


def appended(scene: Scene, reserve: int, page_size: int | None = None) -> None:
    with mm.Growable("u1", reserve=reserve, page_size=page_size) as grown:
        count = 0
        try:
            for _ in range(3):
                grown.extend(np.full(20 * PAGE if page_size is None else page_size, 7, "u1"))
                count = len(grown)
            grown.resize(PAGE)
            count = PAGE
            grown.shrink_to_fit()
        finally:
            disarm()
            assert len(grown) == count
            assert (grown.array == 7).all()


def frozen(scene: Scene) -> None:
    live = mm.full(4 << 20, MARK, "u1")
    taken = mm.snapshot(live, copy=False)
    try:
        with taken as still:
            live[PAGE : 2 * PAGE] = 1
            assert (still == MARK).all()
    finally:
        disarm()
        taken.close()
        expected = np.full(4 << 20, MARK, "u1")
        if taken.route:
            expected[PAGE : 2 * PAGE] = live[PAGE]
        assert np.array_equal(live, expected)


def kept(scene: Scene) -> None:
    path = scene.folder / "rows"
    try:
        with contextlib.ExitStack() as stack:
            grown = stack.enter_context(mm.Growable("u1", path=path))
            grown.extend(np.full(300 * PAGE, 7, "u1"))
            reader = stack.enter_context(mm.Growable.open(path, "r"))
            assert len(reader) == 300 * PAGE
            grown.flush()
            grown.resize(PAGE)
            grown.close()
        with mm.Growable.open(path) as again:
            assert (again.array == 7).all()
    finally:
        path.unlink(missing_ok=True)


def of_numpy(scene: Scene, page_size: int | None = None) -> None:
    """Arrays under the allocator: NumPy knows only MemoryError, and may never see less than it asked for."""
    with mm.numpy_allocator(PAGE, page_size, cache=0):
        array = np.full(3 * PAGE, MARK, "u1")
        large = np.full((4 << 20) + PAGE, MARK, "u1")
        assert not np.zeros(2 * scene.huge_nbytes, "u1").any()
        array.resize(9 * PAGE, refcheck=False)
        assert (array[: 3 * PAGE] == MARK).all()
        assert not array[3 * PAGE :].any()
        array.resize(2 * PAGE, refcheck=False)
        other = mm.mirror(array)
        other[0] = 1
        assert array[0] == 1
        assert (large == MARK).all()
        large.resize(5, refcheck=False)  # back to NumPy's own memory
        assert large.tolist() == 5 * [MARK]


def kept_for_later(scene: Scene) -> None:
    with mm.numpy_allocator(PAGE, cache="16MiB") as allocator:
        try:
            for _ in range(2):
                array = np.full(3 * PAGE, MARK, "u1")
                del array
            assert allocator.state.cached == 1
            allocator.trim()
        finally:
            disarm()
            allocator.trim()


OPERATIONS: dict[str, Callable[[Scene], Any]] = {
    "create": closing(lambda s: mm.Pages(PAGE)),
    "create huge": closing(lambda s: mm.Pages(1, page_size=s.huge_nbytes)),
    "open new file": closing(lambda s: mm.Pages.open(s.folder / "fresh", PAGE)),
    "from_fd": closing(lambda s: mm.Pages.from_fd(s.pages.fileno())),
    "map": closing(lambda s: s.pages.map()),
    "map populated": closing(lambda s: s.pages.map(populate=True)),
    "map large": closing(lambda s: mm.Pages("4MiB").map()),
    "map with reserve": closing(lambda s: s.pages.map(reserve="1MiB")),
    "map huge": closing(lambda s: s.huge.map()),
    "map huge with reserve": closing(lambda s: s.huge.map(reserve=4 * s.huge_nbytes)),
    "map thp": closing(lambda s: mm.Pages("4MiB", page_size="thp").map(populate=True)),
    "arrange": closing(lambda s: s.pages.arrange([(0, 4 * PAGE), (0, 4 * PAGE)])),
    "views": closing(lambda s: s.pages.views(3)),
    "pages.resize up": lambda s: s.pages.resize(s.pages.nbytes + PAGE),
    "pages.resize down": shrunk,
    "file.resize down": lambda s: s.file.resize(max(PAGE, s.file.nbytes - PAGE)),
    "view.discard": lambda s: s.view.discard(4 * PAGE, PAGE),
    "view.flush": lambda s: s.view.flush(),
    "pages.discard": lambda s: s.pages.discard(4 * PAGE, PAGE),
    "file.flush": lambda s: s.file.flush(),
    "mirror of a mapping": closing(lambda s: s.view.mirror(PAGE, PAGE, populate=True)),
    "mirror of huge": closing(lambda s: s.huge_view.mirror(populate=True)),
    "resize in place": lambda s: grown(s, s.roomy, 8 * PAGE),
    "resize huge in place": lambda s: grown(s, s.roomy_huge, 2 * s.huge_nbytes),
    "resize huge by moving": lambda s: grown(s, s.huge_view, 2 * s.huge_nbytes),
    "resize by moving": lambda s: grown(s, s.roomy, 128 * PAGE),
    "protect": protected,
    "populate": lambda s: s.view.populate(write=True),
    "inherit": inherited,
    "close": closed,
    "mirror of mmap": closing(lambda s: mm.mirror(s.source, populate=True)),
    "mirror of SharedMemory": closing(lambda s: mm.mirror(s.block, populate=True)),
    "mirror of a part": closing(lambda s: mm.mirror(s.block, PAGE, PAGE, protection="r")),
    "mirror of much": closing(lambda s: mm.mirror(mmap.mmap(-1, 16 << 20), populate=True)),
    "mirror of ndarray": lambda s: mm.mirror(np.frombuffer(s.source, "i4")[3::2]),
    "mirror of foreign huge": closing(lambda s: mm.mirror(s.raw_huge.buffer)),
    "mremap mirror": lambda s: remapped(s, 0),
    "mremap mirror fixed": lambda s: remapped(s, mm.MREMAP_FIXED | mm.MREMAP_MIRROR),
    "mremap mirror fixed huge": replaced_huge,
    "mremap grows huge": rewritten,
    "zeros": lambda s: mm.zeros((10, 10), populate=True),
    "empty": lambda s: mm.empty(PAGE, page_size=s.huge_nbytes),
    "full": lambda s: mm.full(PAGE, 7),
    "is_mirror": lambda s: mm.is_mirror(s.source, s.block),
    "copyto": lambda s: mm.copyto(s.view.array()[PAGE:], s.roomy.array()[:1]),
    "share": lambda s: mm.share(np.arange(10)),
    "shares_memory": lambda s: mm.shares_memory(s.view, s.roomy),
    "residency": lambda s: s.view.resident,
    "mappings": lambda s: mm.mappings(),
    "mirrors": lambda s: mm.mirrors(frames=True),
    "pickle": lambda s: pickle.loads(pickle.dumps(s.pages)).close(),
    "ring": closing(lambda s: mm.Ring(100, "i4")),
    "ring in a file": lambda s: ringed(s.folder / "ring"),
    "ring by descriptor": lambda s: ringed(None),
    "channel": closing(lambda s: mm.Channel(4 * PAGE)),
    "channel in a file": lambda s: channelled(s, s.folder / "channel"),
    "channel by descriptor": lambda s: channelled(s, None),
    "channel with a group": lambda s: channelled(s, None, "work"),
    "channel by socket": shared_by_socket,
    "channel that is waited for": waited_for,
    "channel in a loop": in_a_loop,
    "stitch": lambda s: mm.stitch([s.view.array(), s.view.array()[:PAGE]]),
    "handle": lambda s: mm.handle(s.view.array()[5::2]).open(),
    "snapshot": frozen,
    "growable": lambda s: appended(s, 1 << 30),
    "growable beyond its reserve": lambda s: appended(s, PAGE),
    "growable of huge pages": lambda s: appended(s, 8 * s.huge_nbytes, s.huge_nbytes),
    "growable in a file": kept,
    "numpy_allocator": of_numpy,
    "numpy_allocator in huge pages": lambda s: of_numpy(s, s.huge_nbytes),
    "numpy_allocator with its cache": kept_for_later,
    "probe": lambda s: mm.probe(),
}


# these ask the same question hundreds of times
INQUISITIVE = ("probe", "mappings", "mirrors")


def ever_rarer() -> Generator[int]:
    """1, 2, 3, ... 16, and then a quarter further each time."""
    nth = 0
    while True:
        nth += max(1, nth // 4) if nth >= 16 else 1
        yield nth


@pytest.fixture
def plenty() -> Generator[int]:
    """The huge page size, with enough of them for those that a failing munmap loses."""
    with reserved(default_huge_nbytes(), 128) as page_nbytes:
        yield page_nbytes


@contextlib.contextmanager
def staged(folder: Path, huge: int) -> Generator[Scene]:
    scene = Scene(folder, huge)
    try:
        yield scene
    finally:
        disarm()
        scene.check()
        scene.close()


@pytest.mark.leaks_by_nature  # counted inside, where the reason is known
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_failing_call_is_an_exception_and_leaves_everything_as_it_was(
    name: str, tmp_path: Path, plenty: int
) -> None:
    operation = OPERATIONS[name]
    if name == "pickle":
        pickle.loads(pickle.dumps(mm.Pages(PAGE))).close()  # starts the sharer's thread, which stays
    with staged(tmp_path, plenty) as scene:
        operation(scene)  # warm: whatever is cached is there from now on
    for nth in itertools.count(1) if name not in INQUISITIVE else ever_rarer():
        for number, undoing in FAULTS if name not in INQUISITIVE else FAULTS[:3]:
            before = held()
            with staged(tmp_path, plenty) as scene:
                arm("*", nth, number, undoing)
                raised: BaseException | None = None
                try:
                    operation(scene)
                except ALLOWED as error:
                    raised = error.with_traceback(None)
                except MemoryError:
                    assert "numpy" in name
                    assert number != errno.EINTR
                if raised is not None:
                    assert getattr(raised, "errno", None) == number, (number, raised)
                    assert number != errno.EINTR, f"not repeated: {raised}"
                    raised = None  # and with its context whatever that kept open
                hits, hit = fault_hits()
            del scene
            lost = (hit in UNDOING) + (hits == 2)
            grown = grown_since(before)
            if lost:  # what cannot be unmapped or closed stays, and nothing else does
                # of one range that stays
                two = name.startswith(("ring", "channel", "stitch"))
                entries = 3 if "numpy" in name else 2 if two else 1
                assert all(now - then <= lost * entries for then, now in grown.values()), (hit, grown)
            else:
                assert not grown, f"call {nth}, {hit}, answering {errno.errorcode[number]}: {grown}"
            if not hit:
                return


def test_an_interrupted_call_is_repeated() -> None:
    for call in ("mmap", "memfd_create", "ftruncate", "munmap"):
        arm(call, 1, errno.EINTR)
        with mm.Pages(PAGE) as pages:
            pages.map().close()
        assert fault_hits()[0], call
        disarm()


def test_hints_may_be_refused_without_harm() -> None:
    with mm.Pages(2 * PAGE) as pages:
        arm("madvise", 1, errno.EINVAL)
        with pages.arrange([(0, 2 * PAGE), (0, 2 * PAGE)]) as ring:
            assert fault_hits()[0]
            ring.array()[0] = 1
    disarm()
