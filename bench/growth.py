"""Growing to a size in blocks: Growable and its peers, in memory and in a file; and how flat the cost stays."""

from __future__ import annotations

import array
import mmap
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from children import Cost, cost

import mirrormap as mm

ITEM_NBYTES = 8
ROW_NBYTES = 1024
MIB = 1 << 20
Array = np.ndarray[Any, Any]


def _growable(block: Array, count: int) -> Any:
    grown = mm.Growable("f8")
    for _ in range(count):
        grown.extend(block)
    rows = grown.array
    rows[:: 4096 // ITEM_NBYTES].max()  # RSS counts pages with page-table entries; these get theirs by this
    return rows


def _append(block: Array, count: int) -> Any:
    grown = block[:0]
    for _ in range(count):
        grown = np.append(grown, block)
    return grown


def _concatenate(block: Array, count: int) -> Any:
    grown = block[:0]
    for _ in range(count):
        grown = np.concatenate([grown, block])
    return grown


def _resize(block: Array, count: int) -> Any:
    grown = block[:0]
    for _ in range(count):
        at = grown.size
        grown = np.resize(grown, at + block.size)
        grown[at:] = block
    return grown


def _list_of_blocks(block: Array, count: int) -> Any:
    """Blocks kept in a list and joined once, at the end: no array before that."""
    # copied, because the memory of a block is its source's, which goes on using it
    parts = [block.copy() for _ in range(count)]
    return np.concatenate(parts)


def _list_of_numbers(block: Array, count: int) -> Any:
    numbers: list[float] = []
    for _ in range(count):
        numbers.extend(block.tolist())
    return numbers


def _array_array(block: Array, count: int) -> Any:
    """A view of it would forbid growth."""
    grown = array.array("d")
    for _ in range(count):
        grown.frombytes(memoryview(block).cast("B"))
    return grown


IN_MEMORY: dict[str, Callable[[Array, int], Any]] = {
    "Growable": _growable,
    "np.append": _append,
    "np.concatenate": _concatenate,
    "np.resize": _resize,
    "list of blocks": _list_of_blocks,
    "list of numbers": _list_of_numbers,
    "array.array": _array_array,
}


def grow(name: str, total: int, count: int) -> Cost:
    """To be run in a process of its own. `total` bytes in `count` blocks."""
    block = np.ones(total // count // ITEM_NBYTES)
    return cost(IN_MEMORY[name], block, count)


# --- files ---------------------------------------------------------------------------------


def _growable_file(path: Path, block: Array, count: int) -> None:
    with mm.Growable("f8", path=path) as grown:
        for _ in range(count):
            grown.extend(block)


def _plain_file(path: Path, block: Array, count: int) -> None:
    """No array of it at all."""
    with open(path, "wb") as file:
        file.writelines(memoryview(block).cast("B") for _ in range(count))
        file.flush()
        os.fsync(file.fileno())


def _h5py(path: Path, block: Array, count: int) -> None:
    import h5py  # type: ignore[import-untyped]

    with h5py.File(path, "w") as file:
        rows = file.create_dataset("rows", (0,), "f8", maxshape=(None,), chunks=(block.size,))
        for _ in range(count):
            at = rows.shape[0]
            rows.resize(at + block.size, axis=0)
            rows[at:] = block
        file.flush()
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _zarr(path: Path, block: Array, count: int) -> None:
    import zarr

    rows = zarr.create_array(str(path), shape=(0,), dtype="f8", chunks=(block.size,), compressors=None)
    for _ in range(count):
        rows.append(block)
    for file in path.rglob("*"):
        if file.is_file():
            with open(file, "rb") as one:
                os.fsync(one.fileno())


IN_FILES: dict[str, Callable[[Path, Array, int], None]] = {
    "Growable": _growable_file,
    "h5py": _h5py,
    "zarr": _zarr,
    "write()": _plain_file,
}


def grow_file(name: str, total: int, count: int) -> Cost | str:
    """The same in a file that is on the disk when it is done; why not, where the peer is not installed."""
    block = np.ones(total // count // ITEM_NBYTES)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        try:
            IN_FILES[name](Path(folder, "warm"), block[:100], 2)
        except ImportError as error:
            return str(error)
        return cost(IN_FILES[name], Path(folder, "rows"), block, count)


# --- how flat ------------------------------------------------------------------------------


class _Stores:
    """The limit: rows stored into an anonymous shared mapping that was made as large as it will ever be."""

    def __init__(self, nbytes: int) -> None:
        self._rows = np.frombuffer(mmap.mmap(-1, nbytes), "u1").reshape(-1, ROW_NBYTES)
        self._count = 0

    def append(self, row: Array) -> None:
        self._rows[self._count] = row
        self._count += 1


def flatness(name: str, last_nbytes: int) -> list[tuple[int, float]]:
    """(bytes so far, nanoseconds an append since the entry before) while rows of 1 KiB are appended.

    Of processor time: a second has passed by the end, and what else the machine does is not to be in it.
    Args: name: "Growable", or "stores".
    """
    row = np.ones(ROW_NBYTES, "u1")
    clock = time.thread_time_ns
    for nbytes in (MIB, last_nbytes):  # the first is to warm the code
        grown: Any = mm.Growable("u1", (ROW_NBYTES,)) if name == "Growable" else _Stores(nbytes)
        append = grown.append
        found = []
        done, target = 0, 1
        while target * ROW_NBYTES <= nbytes:
            start = clock()
            for _ in range(target - done):
                append(row)
            found.append((target * ROW_NBYTES, (clock() - start) / (target - done)))
            done, target = target, 2 * target
    return found
