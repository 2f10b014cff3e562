"""Frozen: what the roots of a heap reach, as a read-only image that any number of processes map.

    byte 0      magic, version, checksum, where everything is
         64     objects, as in the heap; a reference is an offset from byte 0
                one bit for every 16 bytes: does an object begin there?
                the description, JSON: names, dtypes, classes of records

It is a memfd whose bytes and length are sealed, so what was checked once holds. Nothing in it is trusted.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from collections.abc import Mapping as ReadOnly
from typing import Any, Final, NamedTuple, Self

import numpy as np

from mirrormap import cgroups, dtypes, handover, kernel, procmaps
from mirrormap.backing import Backing
from mirrormap.errors import ClosedError, CorruptError, MapError
from mirrormap.heap.records import class_of, layout_of
from mirrormap.kernel import PAGE_NBYTES
from mirrormap.kernel.heaps import FrozenBase, FrozenRecord, HeapBase, Layout
from mirrormap.lifetime import Closing
from mirrormap.mapping import Mapping
from mirrormap.pages import Pages
from mirrormap.units import format_nbytes
from mirrormap.views import check_dtype

__all__ = ["Frozen", "FrozenRoots", "Schema", "freeze"]

_MAGIC: Final = b"mirrormap frozen"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<16sIIQQQQ")  # end of objects, the bits, the description and its length
_OBJECTS_AT: Final = 64
_SEALED: Final = kernel.F_SEAL_SHRINK | kernel.F_SEAL_WRITE

_UNREADABLE: Final = (
    ValueError, TypeError, LookupError, AttributeError, RecursionError, ArithmeticError, MemoryError,
)  # fmt: skip

Schema = tuple[str, list[tuple[str, str]]]


class FrozenRoots(ReadOnly[str, Any]):
    """`frozen.roots`: what had a name in the heap. A read-only mapping of str to FrozenRef or record."""

    __slots__ = ("_image", "_offsets")

    def __init__(self, image: FrozenBase, offsets: dict[str, int]) -> None:
        self._image = image
        self._offsets = offsets

    def __getitem__(self, name: str) -> Any:
        return self._image._at(self._offsets[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._offsets)

    def __len__(self) -> int:
        return len(self._offsets)

    def __repr__(self) -> str:
        return f"<FrozenRoots {', '.join(self._offsets) or 'none'}>"


class _Description(NamedTuple):
    roots: dict[str, int]
    dtypes: tuple[np.dtype[Any], ...]
    layouts: tuple[Layout, ...]
    classes: tuple[type[FrozenRecord], ...]


class Frozen(FrozenBase, Closing):
    """What a heap's roots reached when `heap.freeze()` was called: a read-only image in sealed memory.

    Picklable, so it goes to workers that were forked, spawned or come from a forkserver, as an argument
    or through a queue: only the descriptor travels. Each process maps the same pages, copies nothing and
    writes nothing, not even a count. `frozen.roots["name"]` is a FrozenRef (array, memoryview, bytes, nbytes,
    `ref[i]`), or a record with its fields, of the class in `frozen.records`.

    A context manager. Thread-safe. References are checked as they are followed, in O(1).

    Attributes:
        roots: a read-only mapping of names to objects. records: classes of its records, by name.
        nbytes: of the image. closed: whether close() was called.

    Raises: CorruptError for an image that cannot be, where it is opened or where that shows first;
        ClosedError. Kernel calls: mmap(2) of a memfd with F_SEAL_WRITE, for reading.
    """

    __slots__ = ("__weakref__", "_backing", "_mapping", "_nbytes", "_roots", "records")
    _backing: Backing | None
    _mapping: Mapping
    _nbytes: int
    _roots: FrozenRoots
    records: dict[str, type[FrozenRecord]]

    def __init__(self) -> None:
        raise TypeError("make one with Heap.freeze(), or Frozen.from_fd(descriptor)")

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """The image behind a descriptor, which is duplicated. Nothing in it is trusted.

        Raises: CorruptError for what is no sealed image; OSError for what is no descriptor.
        """
        return cls._open(kernel.dup(fd))

    @classmethod
    def _open(cls, fd: int) -> Self:
        """Takes over the descriptor, which is closed when the image cannot be opened."""
        try:
            backing = Backing.adopt(fd)
        except ValueError as error:
            raise CorruptError(f"this is no image of a heap: {error}") from None
        if kernel.get_seals(backing.fd) & _SEALED != _SEALED:
            raise CorruptError("this image is not sealed: its bytes may change while they are looked at")
        nbytes, end, starts_at, told = _read(backing)
        made = cls.__new__(cls)
        made._backing = backing
        made._nbytes = nbytes
        made._mapping = Pages._of(backing).map(protection="r")
        try:
            made._attach(made._mapping._live, end, starts_at, told.dtypes, told.layouts, told.classes)
        except ValueError as error:
            made._mapping.close()
            raise CorruptError(f"this image of a heap is damaged: {error}") from None
        made.records = {each.__name__: each for each in told.classes}
        made._roots = FrozenRoots(made, told.roots)
        return made

    @property
    def _live(self) -> Backing:
        if self._backing is None:
            raise ClosedError("this image is closed")
        return self._backing

    @property
    def roots(self) -> FrozenRoots:
        """The objects that had names, by name: a read-only mapping."""
        return self._roots

    @property
    def nbytes(self) -> int:
        """Bytes of the image."""
        return self._nbytes

    def fileno(self) -> int:
        """The descriptor, close-on-exec and still ours: for Frozen.from_fd elsewhere. Raises: ClosedError."""
        return self._live.fd

    def close(self) -> None:
        """Unmap it; its objects raise ClosedError from then on. Again: no effect.

        Raises: BufferError while arrays or memoryviews of its objects live.
        """
        if self.closed:
            return
        self._mapping.close()
        self._detach()
        self._backing = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (handover.send(self._live.fd),)

    def __repr__(self) -> str:
        if self.closed:
            return "<Frozen closed>"
        return f"<Frozen {format_nbytes(self._nbytes)}, {len(self._roots):,} roots>"


def _rebuild(sent: Any) -> Frozen:
    return Frozen._open(handover.receive(sent))


def _read(backing: Backing) -> tuple[int, int, int, _Description]:
    """(bytes of the image, end of the objects, where the bits are, the description). Raises: CorruptError."""
    head = os.pread(backing.fd, _HEAD.size, 0)
    if len(head) < _HEAD.size or not head.startswith(_MAGIC):
        raise CorruptError("this is no image of a heap")
    magic, version, checksum, end, starts_at, text_at, text_nbytes = _HEAD.unpack(head)
    if version != _VERSION:
        raise CorruptError(f"this image has version {version} of the format; this is {_VERSION}")
    there = kernel.fstat(backing.fd).nbytes
    if text_at > there or text_nbytes > there - text_at:
        raise CorruptError("this image of a heap ends before its description does")
    text = os.pread(backing.fd, text_nbytes, text_at)
    if checksum != _checksum(_HEAD.pack(magic, version, 0, end, starts_at, text_at, text_nbytes), text):
        raise CorruptError("the header or the description of this image is damaged")
    if starts_at > text_at:
        raise CorruptError("this image of a heap ends before its objects do")
    return text_at + text_nbytes, end, starts_at, _described(text)


def _checksum(head: bytes, text: bytes) -> int:
    return zlib.crc32(text, zlib.crc32(head))


def _described(text: bytes) -> _Description:
    try:
        found: dict[str, Any] = json.loads(text)
        kinds = tuple(check_dtype(dtypes.dtype_from(each)) for each in found["dtypes"])
        if any(kind.subdtype is not None or not kind.itemsize for kind in kinds):
            raise ValueError("a dtype of no bytes, or of several items")
        roots = {str(name): int(offset) for name, offset in found["roots"].items()}
        if any(not 0 < offset < 1 << 62 for offset in roots.values()):
            raise ValueError("a root that leads nowhere")
        layouts = tuple(
            layout_of(name, number, [(str(field), str(kind)) for field, kind in fields])
            for number, (name, fields) in enumerate(found["records"])
        )
        classes = tuple(
            class_of(FrozenRecord, name, layout, f"Records {name!r} of an image, read-only.")
            for (name, _), layout in zip(found["records"], layouts, strict=True)
        )
    except _UNREADABLE as error:
        raise CorruptError(f"the description of this image cannot be read: {error}") from None
    return _Description(roots, kinds, layouts, classes)


def freeze(
    heap: HeapBase, names: dict[str, int], kinds: list[np.dtype[Any]], schemas: list[Schema]
) -> Frozen:
    """A copy of what the named roots reach, in a new sealed memfd.

    Args: names: root slots by name. kinds: dtypes by number - 1. schemas: of classes of records, by number.
    """
    for kind in kinds:
        if not kind.itemsize:
            raise ValueError(f"an image holds no arrays of dtype {kind}, whose items have no bytes")
    about: dict[str, Any] = {"dtypes": [dtypes.told(kind) for kind in kinds], "records": schemas}
    json.dumps(about)  # what cannot be written is known before anything is copied
    left = cgroups.memory_left()
    allowed = 1 << 62 if left is None else max(0, left - cgroups.SPARE_NBYTES)
    live, *_ = heap._stats()
    need = PAGE_NBYTES + live + live // 100
    while True:
        pages = Pages(need, name="frozen")
        mapping = pages.map()
        try:
            done, end, starts_at, used, offsets = heap._freeze(
                mapping._live, pages.fileno(), allowed, list(names.values())
            )
        except OSError as error:
            kernel.fail("fallocate", error, need, "frozen")
        finally:
            mapping.close()
        if done:
            break
        need = used  # another thread has put more
    about["roots"] = dict(zip(names, offsets, strict=True))
    text = json.dumps(about).encode()
    head = (_MAGIC, _VERSION, 0, end, starts_at, used, len(text))
    checksum = _checksum(_HEAD.pack(*head), text)
    pages.resize(max(pages.nbytes, used + len(text)))
    backing = pages._live
    kernel.pwrite(backing.fd, memoryview(text), used, backing.label)
    kernel.pwrite(backing.fd, memoryview(_HEAD.pack(*head[:2], checksum, *head[3:])), 0, backing.label)
    kernel.add_seals(backing.fd, _SEALED | kernel.F_SEAL_GROW | kernel.F_SEAL_SEAL, backing.label)
    try:
        return Frozen._open(procmaps.reopened(backing.fd, os.O_RDONLY))
    except OSError as error:
        raise MapError(error.errno or 0, call="open", nbytes=used, label=backing.label) from None
