"""Fuzzers of what is read and not trusted, in Python: atheris drives them by the coverage of the package.

    python tests/fuzz/parsers.py NAME CORPUS [libFuzzer's options]

Each takes bytes, and lets pass what its function is said to raise; anything else is a finding.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "unit")]

with atheris.instrument_imports(include=["mirrormap"]):
    import mirrormap as mm
    from mirrormap import arrayfile, cgroups, cursors, layouts, procfs, procmaps, units
    from mirrormap.cli import recording

import numpy as np  # noqa: E402
from test_channel_damage import used  # noqa: E402
from test_heap_frozen_damage import HEAD, look, opened, sound  # noqa: E402

from support import MFD_ALLOW_SEALING, PAGE  # noqa: E402

SHRINK, GROW = 2, 4


def at_most(provider: Any, count: int) -> bytes:
    """Bytes of any length up to that."""
    return bytes(provider.ConsumeBytes(provider.ConsumeIntInRange(0, count)))


def patched(provider: Any, sound: bytes, mend: Callable[[bytearray], None], often: int) -> bytes:
    """A sound object with some bytes changed, of those below `often` most; half of the time its checksum is mended."""
    damaged = bytearray(sound)
    for _ in range(provider.ConsumeIntInRange(0, 6)):
        limit = often if provider.ConsumeBool() else len(damaged) - 1
        at = provider.ConsumeIntInRange(0, limit)
        data = at_most(provider, 16)
        damaged[at : at + len(data)] = data[: len(damaged) - at]
    if provider.ConsumeBool():
        mend(damaged)
    return bytes(damaged)


@contextlib.contextmanager
def memory(data: bytes) -> Any:
    """A sealed memfd with these bytes in whole pages."""
    fd = os.memfd_create("fuzz", MFD_ALLOW_SEALING)
    try:
        os.write(fd, data)
        os.ftruncate(fd, len(data) + -len(data) % PAGE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SHRINK | GROW)
        yield fd
    finally:
        os.close(fd)


# --- text of the kernel's ---------------------------------------------------------------------------


def smaps(data: bytes) -> None:
    """maps and smaps: any text at all has some entries or none."""
    text = data.decode(errors="surrogateescape")
    for vma in procmaps.parse_smaps(text):
        assert vma.page_nbytes >= 0
    list(procfs.parse_smaps(text))
    procfs.parse_fields(text)


def cgroup(data: bytes) -> None:
    """cgroup, mountinfo and the files of a memory cgroup: a number of bytes, or None."""
    provider = atheris.FuzzedDataProvider(data)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for version in (1, 2):
            limit, use, _ = cgroups._FILES[version]
            for file in (limit, use, "memory.stat"):
                (folder / file).write_bytes(at_most(provider, 60))
        (folder / "own").write_bytes(at_most(provider, 200))
        (folder / "mounts").write_bytes(at_most(provider, 300).replace(b"MOUNT", name.encode()))
        kept = cgroups._OWN, cgroups._MOUNTS
        cgroups._OWN, cgroups._MOUNTS = str(folder / "own"), str(folder / "mounts")  # type: ignore[misc]
        cgroups._mounts.cache_clear()
        try:
            left = cgroups.memory_left()
            assert left is None or left >= 0
            for version in (1, 2):
                cgroups._left_in(folder, version)
                cgroups._folder(version, folder, "/")
        finally:
            cgroups._OWN, cgroups._MOUNTS = kept  # type: ignore[misc]
            cgroups._mounts.cache_clear()


# --- text of other processes' -----------------------------------------------------------------------


def layout(data: bytes) -> None:
    """A dtype and tuples as JSON: what is accepted is written down again as the same."""
    with contextlib.suppress(mm.CorruptError):
        dtype, shape = layouts.read_layout(data.decode(errors="replace"), "shape")
        text = layouts.write_layout(dtype, shape=shape)
        assert layouts.read_layout(text, "shape") == (dtype, shape)


def about(data: bytes) -> None:
    """What a ring or a message says of its array."""
    with contextlib.suppress(mm.CorruptError):
        dtype, shape = cursors.understood(data, "this")
        assert not dtype.hasobject
        assert all(count >= 0 for count in shape)


def sizes(data: bytes) -> None:
    """Sizes that users write."""
    with contextlib.suppress(ValueError):
        assert units.as_nbytes(data.decode(errors="replace")) > 0


def recorded(data: bytes) -> None:
    """WAV files, for the demonstrations."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with contextlib.suppress(mm.MirrorError):
            sound = recording.opened(Path(file.name))
            for block in recording.blocks(sound, 100):
                assert block.shape[1] == sound.channels


# --- memory and files of other processes' -----------------------------------------------------------


def sound_ring(overwrite: bool) -> bytes:
    with mm.Ring(100, "i4", 3, overwrite=overwrite) as ring:
        ring.extend(np.arange(90).reshape(30, 3))
        return os.pread(ring.fileno(), 1 << 20, 0)


def sound_channel(overwrite: bool) -> bytes:
    with mm.Channel(2 * PAGE, overwrite=overwrite) as channel, channel.sender() as sender:
        keep = channel.receiver(group="work")
        for number in range(12):
            sender.send(np.arange(number), timeout=0)
            sender.send(b"plain", timeout=0)
        keep.receive_many(10)
        keep.close()
        return os.pread(channel.fileno(), 1 << 20, 0)


def mend_header(data: bytearray) -> None:
    """The checksum that the header would have."""
    head = cursors._HEAD
    magic, version, _, *numbers = head.unpack_from(data)
    text = bytes(data[head.size : head.size + numbers[-1]])
    checksum = zlib.crc32(head.pack(b"", version, 0, *numbers) + text)
    head.pack_into(data, 0, magic, version, checksum, *numbers)


SOUND: dict[str, list[bytes]] = {}


def ring(data: bytes) -> None:
    """A ring whose header and cursors may lie: it is refused, or used without harm."""
    provider = atheris.FuzzedDataProvider(data)
    objects = SOUND.setdefault("ring", [sound_ring(True), sound_ring(False)])
    damaged = patched(provider, objects[provider.ConsumeBool()], mend_header, 200)
    with memory(damaged) as fd:
        try:
            opened = mm.Ring.from_fd(fd)
        except mm.CorruptError:
            return
        with opened as ring:
            for use in (
                lambda: ring.latest(min(1, ring.capacity)),
                lambda: ring.window(ring.oldest, ring.written),
                lambda: ring.windows(3),
                lambda: ring.reader("oldest").read(1, timeout=0),
                lambda: ring.append(np.zeros(ring.shape, ring.dtype), timeout=0),
                lambda: repr(ring),
            ):
                with contextlib.suppress(mm.MirrorError, ValueError, IndexError, TypeError, TimeoutError):
                    use()


def channel(data: bytes) -> None:
    """A channel whose header, cursors, groups and frames may lie."""
    provider = atheris.FuzzedDataProvider(data)
    objects = SOUND.setdefault("channel", [sound_channel(True), sound_channel(False)])
    damaged = patched(provider, objects[provider.ConsumeBool()], mend_header, 200)
    with memory(damaged) as fd:
        try:
            opened = mm.Channel.from_fd(fd, spin_us=0)
        except mm.CorruptError:
            return
        with opened:
            used(opened)


def mend_file(data: bytearray) -> None:
    """The checksums that the header and the commits of an array's file would have."""
    first, counts = arrayfile._FIRST, arrayfile._COUNTS
    magic, version, offset, count, _ = first.unpack_from(data)
    text = bytes(data[arrayfile._TEXT_AT : arrayfile._TEXT_AT + count])
    first.pack_into(
        data,
        0,
        magic,
        version,
        offset,
        count,
        zlib.crc32(first.pack(magic, version, offset, count, 0) + text),
    )
    for at in arrayfile._COMMITS_AT:
        struct.pack_into("<I", data, at + counts.size, zlib.crc32(bytes(data[at : at + counts.size])))


def rows(data: bytes) -> None:
    """The file of a Growable, opened by a reader and by a writer."""
    provider = atheris.FuzzedDataProvider(data)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "rows"
        if "rows" not in SOUND:
            with mm.Growable("i4", 3, path=path) as made:
                made.extend(np.arange(30).reshape(10, 3))
            SOUND["rows"] = [path.read_bytes()]
        damaged = patched(provider, SOUND["rows"][0], mend_file, 320)
        path.write_bytes(
            damaged[: provider.ConsumeIntInRange(0, len(damaged))] if provider.ConsumeBool() else damaged
        )
        for mode in ("r", "r+"):
            with contextlib.suppress(mm.CorruptError), mm.Growable.open(path, mode, reserve="1MiB") as found:  # type: ignore[arg-type]
                _ = found.array.nbytes, repr(found), len(found)
                if mode == "r+" and found.dtype.itemsize * found.array[:1].size < 1 << 20:
                    with contextlib.suppress(mm.MapError):
                        found.resize(len(found) + 1)


def handed(data: bytes) -> None:
    """A handle from a socket: its text may say anything of the descriptors that come with it."""
    provider = atheris.FuzzedDataProvider(data)
    count = provider.ConsumeIntInRange(0, 3)
    names = {
        "descr": ["<i4", "u1", [["a", "<f8"]]],
        "shape": [[4, 2], [10], [1 << 40]],
        "strides": [[8, 4], [1], [-8]],
    }
    if provider.ConsumeBool():
        told = {name: provider.PickValueInList(values) for name, values in names.items()}
        for name, most in (("place", 3), ("runs", 6), ("sizes", 3)):
            told[name] = provider.ConsumeIntList(provider.ConsumeIntInRange(0, most), 3)
        text = json.dumps(told).encode()
    else:
        text = at_most(provider, 400)
    head = struct.pack("<8sII", b"mm.array", len(text), count)
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs, memory(bytes(2 * PAGE)) as fd:
        descriptors = struct.pack(f"{count}i", *[fd] * count)
        ours.sendmsg([head], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)] if count else [])
        ours.sendall(text)
        ours.close()
        with contextlib.suppress(mm.CorruptError, EOFError, mm.MapError):
            with mm.Handle.receive(theirs) as handle:
                array = handle.open()
                _ = array.sum() if array.nbytes <= 2 * PAGE and array.dtype.names is None else 0


IMAGE = sound()


def mended(image: bytearray) -> None:
    """With the checksum that a frozen heap's header and description ask for, wherever it says that is."""
    magic, version, _, *numbers = HEAD.unpack_from(image)
    text = bytes(image[numbers[2] : numbers[2] + numbers[3]])
    checksum = zlib.crc32(text, zlib.crc32(HEAD.pack(magic, version, 0, *numbers)))
    HEAD.pack_into(image, 0, magic, version, checksum, *numbers)


def retold(provider: Any, image: bytes) -> bytes:
    """With some words of its description exchanged for others, as long as before."""
    *_, at, nbytes = HEAD.unpack_from(image)
    text = image[at : at + nbytes]
    for _ in range(provider.ConsumeIntInRange(0, 4)):
        old = provider.PickValueInList(
            [b"i8", b"u1", b"<f8", b"left", b"top", b"0", b"1", b"2", b"[", b'"', b"S3"]
        )
        new = provider.PickValueInList(
            [b"O", b"V9", b"-1", b"9" * 19, b"null", b"{}", b"U1", b"key", b"[[]]", b"<i2"]
        )
        text = text.replace(old, new, 1)
    text = text[:nbytes].ljust(nbytes)
    return image[:at] + text + image[at + nbytes :]


def frozen(data: bytes) -> None:
    """Frozen heaps whose header, description and objects lie."""
    provider = atheris.FuzzedDataProvider(data)
    told = retold(provider, IMAGE) if provider.ConsumeBool() else IMAGE
    damaged = patched(provider, told, mended, HEAD.size)
    with contextlib.suppress(mm.CorruptError, mm.MapError):
        with opened(damaged) as image:
            look(image)


TARGETS = {
    target.__name__: target
    for target in (smaps, cgroup, layout, about, sizes, recorded, ring, channel, rows, handed, frozen)
}


def seeds(name: str) -> list[bytes]:
    """What the corpus begins with: the real thing, as this machine has it."""
    text: dict[str, list[bytes]] = {
        "smaps": [Path("/proc/self/maps").read_bytes()[:2000], Path("/proc/self/smaps").read_bytes()[:3000]],
        "cgroup": [Path("/proc/self/cgroup").read_bytes() + Path("/proc/self/mountinfo").read_bytes()[:500]],
        "layout": [
            layouts.write_layout(np.dtype(kind), shape=(2, 3)).encode() for kind in ("<f4", "i4,f8", "S3")
        ],
        "about": [cursors.described(np.dtype(kind), (3, 2)) for kind in ("<f4", "i4,f8", "U3")],
        "sizes": [b"64KiB", b" 1 GiB", b"12"],
        "recorded": [
            b"RIFF\x2c\0\0\0WAVEfmt \x10\0\0\0\1\0\2\0\x44\xac\0\0\x10\xb1\2\0\4\0\x10\0data\x08\0\0\0abcdefgh"
        ],
    }
    return text.get(name, [bytes(range(64)), bytes(200), b"\xff" * 100])


def main() -> None:
    """Run one of them with libFuzzer's own arguments."""
    name, corpus, *options = sys.argv[1:]
    for number, data in enumerate(seeds(name)):
        (Path(corpus) / f"seed-{number}").write_bytes(data)
    atheris.Setup([sys.argv[0], corpus, *options], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
