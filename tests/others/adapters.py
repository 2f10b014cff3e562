"""mmap.mmap and SharedMemory as their tests call them, over this package's memory.

The bytes, their size, protection, writing back and end are a Mapping's and a Pages'. The cursor of a file, searching
and item assignment are not in the package and stand here, as plainly as they can.
"""

from __future__ import annotations

import itertools
import mmap as stock
import operator
import os
import types
import unittest
from collections.abc import Iterator
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from typing import Any, Self, SupportsIndex

import mirrormap as mm

NO_PRIVATE = "private memory is not the package's: it cannot be mirrored"
PROTECTIONS = {0: "none", 1: "r", 2: "rw", 3: "rw", 5: "rx"}
MIRRORED = "mirrored"  # how memory is made: by Pages, or by Python's own mmap and mirrored


class mmap(mm.Mapping):  # noqa: N801 - the name of what it stands for
    """mmap.mmap(fileno, length, flags, prot, access, offset) over Pages, or over a mirror of the real one."""

    __slots__ = ("_access", "_file", "_offset", "_pages", "_position")
    route = ""

    def __new__(
        cls,
        fileno: int,
        length: int,
        flags: int = stock.MAP_SHARED,
        prot: int = stock.PROT_READ | stock.PROT_WRITE,
        access: int = stock.ACCESS_DEFAULT,
        offset: int = 0,
        trackfd: bool = True,
    ) -> Self:
        length, offset = operator.index(length), operator.index(offset)
        if length < 0 or offset < 0:
            raise OverflowError("memory mapped length and offset must be positive")
        if access and (flags != stock.MAP_SHARED or prot != 3):
            raise ValueError("mmap can't specify both access and flags, prot.")
        if access not in (0, 1, 2, 3):
            raise ValueError("mmap invalid access parameter.")
        if access == stock.ACCESS_COPY or (flags & stock.MAP_PRIVATE and fileno != -1):
            raise unittest.SkipTest(NO_PRIVATE)
        if access == stock.ACCESS_READ:
            prot = stock.PROT_READ
        pages = mm.Pages(length) if fileno == -1 else mm.Pages.from_fd(fileno)
        if cls.route == MIRRORED:
            how = {"access": access} if access else {"prot": prot}
            mapping = mm.mirror(stock.mmap(fileno, length, offset=offset, **how))
        else:
            mapping = pages.map(offset, length or None, protection=PROTECTIONS[prot])
        made = super().__new__(cls)
        for name in ("_region", "_label", "_lock", "_inherit", "_reserved"):
            setattr(made, name, getattr(mapping, name))
        mapping._region = None  # it is ours now
        made._pages, made._file, made._offset = pages, fileno != -1, offset
        made._position = 0
        made._access = access
        if prot == stock.PROT_READ | getattr(stock, "PROT_EXEC", 0) and not access:
            made._access = stock.ACCESS_READ
        return made

    def __init__(self, *unused: Any, **named: Any) -> None:
        pass

    # --- a file with a cursor --------------------------------------------------------------

    def _open(self) -> memoryview:
        if self.closed:
            raise ValueError("mmap closed or invalid")
        return memoryview(self)

    def _writable(self) -> memoryview:
        shown = self._open()
        if self._access == stock.ACCESS_READ or shown.readonly:
            raise TypeError("mmap can't modify a readonly memory map.")
        return shown

    def read(self, count: int | None = None) -> bytes:
        count = -1 if count is None else operator.index(count)
        shown = self._open()
        last = len(shown) if count < 0 else min(len(shown), self._position + count)
        got = bytes(shown[self._position : last])
        self._position += len(got)
        return got

    def read_byte(self) -> int:
        shown = self._open()
        if self._position >= len(shown):
            raise ValueError("read byte out of range")
        self._position += 1
        return shown[self._position - 1]

    def readline(self) -> bytes:
        end = self.find(b"\n", self._position)
        return self.read(-1 if end < 0 else end + 1 - self._position)

    def write(self, data: Any) -> int:
        source = memoryview(data).cast("B")
        shown = self._writable()
        if self._position + len(source) > len(shown):
            raise ValueError("data out of range")
        shown[self._position : self._position + len(source)] = source
        self._position += len(source)
        return len(source)

    def write_byte(self, byte: int) -> None:
        if self._position >= len(self._writable()):
            raise ValueError("write byte out of range")
        self.write(bytes([byte]))

    def seek(self, distance: int, whence: int = 0) -> int | None:
        distance, whence = operator.index(distance), operator.index(whence)
        shown = self._open()
        start = (0, self._position, len(shown))[whence] if whence in (0, 1, 2) else None
        if start is None:
            raise ValueError("unknown seek type")
        if not 0 <= start + distance <= len(shown):
            raise ValueError("seek out of range")
        self._position = start + distance
        return self._position

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._open()
        return self._position

    def size(self) -> int:
        self._open()
        return os.fstat(self._pages.fileno()).st_size if self._file else self.nbytes

    def find(self, sought: Any, start: SupportsIndex | None = None, end: SupportsIndex | None = None) -> int:
        return self._search(bytes.find, sought, start, end)

    def rfind(self, sought: Any, start: SupportsIndex | None = None, end: SupportsIndex | None = None) -> int:
        return self._search(bytes.rfind, sought, start, end)

    def _search(self, how: Any, sought: Any, start: Any, end: Any) -> int:
        first = self._position if start is None else operator.index(start)
        bounds = first, None if end is None else operator.index(end)
        shown = self._open()
        first, last, _ = slice(*bounds).indices(len(shown))
        found: int = how(bytes(shown[first:last]), bytes(sought))
        return found + first if found >= 0 else -1

    def move(self, to: int, start: int, count: int) -> None:
        to, start, count = operator.index(to), operator.index(start), operator.index(count)
        shown = self._writable()
        if min(to, start, count) < 0 or max(to, start) + count > len(shown):
            raise ValueError("source, destination, or count out of range")
        shown[to : to + count] = bytes(shown[start : start + count])

    # --- a sequence ------------------------------------------------------------------------

    def __getitem__(self, where: Any) -> Any:
        if not isinstance(where, slice):
            index = operator.index(where)
            return self._open()[index]
        indices = range(*where.indices(len(self)))  # asked first: an index may be code that closes the memory
        shown = self._open()
        if indices.step == 1:
            return bytes(shown[indices.start : max(indices.start, indices.stop)])
        return bytes(shown[index] for index in indices)

    def __setitem__(self, where: Any, value: Any) -> None:
        if isinstance(where, slice):
            indices, data = range(*where.indices(len(self))), bytes(value)
            if len(indices) != len(data):
                raise IndexError("mmap slice assignment is wrong size")
            shown = self._writable()
            for index, byte in zip(indices, data, strict=True):
                shown[index] = byte
            return
        index = operator.index(where)
        if not -len(self) <= index < len(self):
            raise IndexError("mmap index out of range")
        byte = operator.index(value)
        if not 0 <= byte < 256:
            raise ValueError("mmap item value must be in range(0, 256)")
        self._writable()[index] = byte

    def __len__(self) -> int:
        return len(self._open())

    def __iter__(self) -> Iterator[int]:
        return (self[index] for index in itertools.takewhile(lambda at: at < len(self), itertools.count()))

    def __enter__(self) -> Self:
        if self.closed:
            raise ValueError("mmap closed or invalid")
        return self

    # --- what the package does -------------------------------------------------------------

    def flush(self, offset: int = 0, count: int | None = None) -> None:
        offset = operator.index(offset)
        if not 0 <= offset + (count or 0) <= len(self):
            raise ValueError("flush values out of range")
        if offset % stock.PAGESIZE:
            raise OSError("msync: the offset is inside a page")
        super().flush()

    def resize(self, count: int) -> None:
        if self._access == stock.ACCESS_READ:
            raise TypeError("mmap can't resize a readonly or copy-on-write memory map.")
        count = operator.index(count)
        if count <= 0:
            raise ValueError("new size out of range")
        super().resize(count)
        if self._file and self._pages.nbytes > self._offset + count:
            self._pages.resize(self._offset + count)


def as_module(route: str = "") -> types.ModuleType:
    """The module mmap, with our class in it."""
    module = types.ModuleType("mmap")
    vars(module).update({name: value for name, value in vars(stock).items() if not name.startswith("__")})
    module.mmap = type("mmap", (mmap,), {"__slots__": (), "route": route})  # type: ignore[attr-defined]
    return module


class SharedMemory:
    """multiprocessing.shared_memory.SharedMemory over Pages of a file in /dev/shm, for whoever needs a name."""

    _flags = os.O_RDWR
    _prepend_leading_slash = True

    def __init__(
        self, name: str | None = None, create: bool = False, size: int = 0, *, track: bool = True
    ) -> None:
        if size < 0:
            raise ValueError("'size' must be a positive integer")
        if create and not size:
            raise ValueError("'size' must be a positive number different from zero")
        if name is None and not create:
            raise ValueError("'name' can only be None if create is True")
        self._track = track
        while True:
            self._name = "/" + (name or shared_memory._make_filename()).lstrip("/")
            try:
                self._pages = self._opened(create, size)
                break
            except FileExistsError:
                if name is not None:
                    raise
        self._map = self._pages.map()
        self._buf: memoryview | None = memoryview(self._map)
        if track:
            resource_tracker.register(self._name, "shared_memory")

    def _opened(self, create: bool, nbytes: int) -> mm.Pages:
        path = Path("/dev/shm") / self._name.lstrip("/")
        if create:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            return mm.Pages.open(path, nbytes)
        return mm.Pages.open(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, False, self.size)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, size={self.size})"

    def __del__(self) -> None:
        if hasattr(self, "_map"):
            self.close()

    @property
    def buf(self) -> memoryview:
        assert self._buf is not None
        return self._buf

    @property
    def name(self) -> str:
        return self._name.lstrip("/")

    @property
    def size(self) -> int:
        return self._pages.nbytes

    def close(self) -> None:
        if self._buf is not None:
            self._buf.release()
            self._buf = None
        self._map.close()

    def unlink(self) -> None:
        (Path("/dev/shm") / self.name).unlink()
        if self._track:
            resource_tracker.unregister(self._name, "shared_memory")
