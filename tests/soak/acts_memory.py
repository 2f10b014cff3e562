"""Acts on memory itself: pages and their views, mremap(), foreign memory, snapshots, stitched arrays, handles."""

from __future__ import annotations

import mmap
import socket
from multiprocessing import shared_memory
from typing import Any

import numpy as np
from stage import Stage, child

import mirrormap as mm
from support import PAGE, Raw, checked, libc, read

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Shown:
    """A view, and which byte of the object each of its pages begins at."""

    def __init__(self, mapping: mm.Mapping, starts: list[int], page: int) -> None:
        self.mapping, self.page = mapping, page
        self.places = (np.array(starts)[:, None] + np.arange(page)).reshape(-1)

    def check(self, shadow: Bytes) -> None:
        assert np.array_equal(self.mapping.array(), shadow[self.places])


def views(stage: Stage) -> None:
    """Pages under many views, each of its own arrangement; one plain array says what they show."""
    chance = stage.chance
    with stage.may_refuse(), mm.Pages(chance.randint(2, 12) << 20, page_size=stage.page_size()) as pages:
        page = pages.page_size
        shadow = np.zeros(pages.nbytes, "u1")
        shown: list[Shown] = []
        for _ in range(chance.randint(20, 120)):
            with stage.may_refuse():
                shadow = step(stage, pages, page, shadow, shown)
        for one in shown:
            one.check(shadow)
            one.mapping.close()


def step(stage: Stage, pages: mm.Pages, page: int, shadow: Bytes, shown: list[Shown]) -> Bytes:
    """One operation on the pages or on one of the views. Returns: what is in the pages now."""
    chance = stage.chance
    count = len(shadow) // page
    match chance.randrange(9):
        case 0:
            first = chance.randrange(count)
            many = chance.randint(1, min(64, count - first))
            mapping = pages.map(first * page, many * page, populate=chance.random() < 0.3)
            shown.append(Shown(mapping, [(first + at) * page for at in range(many)], page))
        case 1:
            picked = [chance.randrange(count) for _ in range(chance.randint(1, 20))]
            mapping = pages.arrange([(at * page, page) for at in picked], populate=chance.random() < 0.3)
            shown.append(Shown(mapping, [at * page for at in picked], page))
        case 2 if shown:
            one = chance.choice(shown)
            mapping = one.mapping.mirror()
            copy = Shown(mapping, [0], page)
            copy.places = one.places
            shown.append(copy)
        case 3 if shown:
            chance.choice(shown).check(shadow)
        case 4 if len(shadow) < 32 << 20 and not stage.huge:
            pages.resize(len(shadow) + page)
            shadow = np.concatenate([shadow, np.zeros(page, "u1")])
        case 5:
            first = chance.randrange(count)
            pages.discard(first * page, page)
            shadow[first * page : (first + 1) * page] = 0
        case 6 if len(shown) > 4:
            shown.pop(chance.randrange(len(shown))).mapping.close()
        case _ if shown:
            one = chance.choice(shown)
            one.mapping.populate(write=True)  # a pool or a cgroup says no here, and not by a signal below
            at = chance.randrange(len(one.places))
            # at most a page: a copy goes in no order, and a view may show one page several times
            end = min(len(one.places), at + chance.randint(1, page))
            data = np.frombuffer(chance.randbytes(end - at), "u1")
            one.mapping.array()[at:end] = data
            shadow[one.places[at:end]] = data
    return shadow


def remapped(stage: Stage) -> None:
    """mremap() itself: mirrors, moves, and moves that leave the old range, of raw shared memory."""
    chance = stage.chance
    nbytes = chance.randint(1, 64) * PAGE
    with Raw(nbytes) as source:
        data = bytearray(nbytes)
        where = [(source.address, 0, nbytes)]
        try:
            for _ in range(chance.randint(5, 60)):
                address, offset, length = chance.choice(where)
                at = chance.randrange(length)
                source.buffer[offset + at] = data[offset + at] = chance.randrange(256)
                with stage.may_refuse():
                    where.append(mirrored(stage, chance.choice(where)))
                if len(where) > 20:
                    gone, _, length = where.pop(chance.randrange(1, len(where)))
                    checked(libc.munmap(gone, length))
                for address, offset, length in where:
                    assert read(address, length) == data[offset : offset + length]
        finally:
            for address, _, length in where[1:]:
                checked(libc.munmap(address, length))


def mirrored(stage: Stage, place: tuple[int, int, int]) -> tuple[int, int, int]:
    """One more view of some of what is shown at a place, there or wherever it was moved to."""
    chance = stage.chance
    address, offset, length = place
    first = chance.randrange(length // PAGE) * PAGE
    nbytes = chance.randint(1, (length - first) // PAGE) * PAGE
    flags = mm.MREMAP_MAYMOVE | mm.MREMAP_MIRROR
    if chance.random() < 0.5:
        made = mm.mremap(address + first, nbytes, nbytes, flags)
    else:
        hole = Raw(nbytes, protection=0, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:
            made = mm.mremap(address + first, 0, nbytes, flags | mm.MREMAP_FIXED, hole.address)
        except BaseException:
            hole.unmap()
            raise
    if chance.random() < 0.3:
        made = mm.mremap(made, nbytes, nbytes, mm.MREMAP_MAYMOVE)
    return made, offset + first, nbytes


def foreign(stage: Stage) -> None:
    """Memory of others: SharedMemory, mmap, np.memmap, each mirrored, stitched, handed over and frozen."""
    chance = stage.chance
    nbytes = chance.randint(1, 40) * PAGE
    path = stage.folder / "foreign"
    with stage.may_refuse():
        match chance.randrange(3):
            case 0:
                segment = shared_memory.SharedMemory(create=True, size=nbytes)
                try:
                    array = np.frombuffer(segment.buf, "u1")[:nbytes]
                    everything(stage, array)
                    del array
                finally:
                    segment.unlink()
                    segment.close()
            case 1:
                everything(stage, np.frombuffer(mmap.mmap(-1, nbytes), "u1"))
            case _:
                everything(stage, np.memmap(path, "u1", "w+", shape=nbytes))
                path.unlink()


def everything(stage: Stage, array: Bytes) -> None:
    """What can be done with an array on shared pages, compared with a copy of it."""
    chance = stage.chance
    array[:] = np.frombuffer(chance.randbytes(len(array)), "u1")
    kept = array.copy()
    other = mm.mirror(array)
    assert np.array_equal(other, kept)
    assert mm.shares_memory(array, other)
    cut = chance.randint(0, len(array) // PAGE) * PAGE
    turned = mm.stitch([array[cut:], array[:cut]])
    assert np.array_equal(turned, np.concatenate([kept[cut:], kept[:cut]]))
    with mm.handle(array) as handle:
        opened = handle.open()
    assert np.array_equal(opened, kept)
    at = chance.randrange(len(array))
    turned[(at - cut) % len(array)] = kept[at] = (int(kept[at]) + 1) % 256
    for one in (array, other, opened):
        assert np.array_equal(one, kept)


def frozen(stage: Stage) -> None:
    """Snapshots one after another, while the live array is written to and read by a fork."""
    chance = stage.chance
    with stage.may_refuse():
        live = mm.share(np.frombuffer(chance.randbytes(chance.randint(1, 300) * PAGE), "u1"), populate=True)
        for _ in range(chance.randint(1, 6)):
            before = live.copy()
            with mm.snapshot(live) as still:
                for _ in range(chance.randint(1, 20)):
                    at = chance.randrange(len(live))
                    live[at : at + chance.randint(1, 2 * PAGE)] = chance.randrange(256)
                assert np.array_equal(still, before)
                after = live.copy()
                if chance.random() < 0.3:
                    with child(same, still, before) as process:
                        process.join(60)
                        assert process.exitcode == 0 or stage.pressed  # the kernel may choose it
            assert np.array_equal(live, after)


def same(still: Bytes, before: Bytes) -> None:
    assert np.array_equal(still, before)


def handed_over(stage: Stage) -> None:
    """An array to a child over a socket, and killed on either side at any moment: no descriptor is lost."""
    chance = stage.chance
    with stage.may_refuse():
        array = mm.full((chance.randint(1, 50), PAGE), 7, "u1")
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        with ours, theirs, child(take, theirs) as process:
            theirs.close()
            try:
                for number in range(chance.randint(1, 40)):
                    if chance.random() < 0.03:
                        process.kill()
                    with mm.handle(array[number % len(array) :]) as handle:
                        handle.send(ours)
                    assert ours.recv(1) in (b"\7", b"")
            except (BrokenPipeError, ConnectionResetError):
                process.join(60)
                assert process.exitcode == -9 or stage.pressed


def take(connection: socket.socket) -> None:
    while True:
        with mm.Handle.receive(connection) as handle:
            array = handle.open()
        assert (array == 7).all()
        connection.send(b"\7")
