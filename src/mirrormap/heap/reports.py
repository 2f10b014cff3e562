"""What a heap tells of itself."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Census", "HeapStats"]


class HeapStats(NamedTuple):
    """Figures of a heap; sizes in bytes.

    Attributes:
        live: of objects not known to be dead, with their headers; exact right after a collection.
        committed: of pages the kernel holds for the heap.
        pinned: of objects that live views keep where they are.
        views: live views.
        collections: how many there were, those that a full heap asked for too.
        marked: objects marked by them. moved: objects that changed place. copied: their bytes.
        returned: bytes of pages given back to the kernel.
        longest: the longest collection, in seconds.
        resident: bytes with page-table entries in this process.
        arrays: bytes of elements of growing arrays, which `committed` does not count.
    """

    live: int
    committed: int
    pinned: int
    views: int
    collections: int
    marked: int
    moved: int
    copied: int
    returned: int
    longest: float
    resident: int
    arrays: int


class Census(NamedTuple):
    """What Heap.verify() found: all that can be reached.

    Attributes: objects, references: how many. nbytes: of the objects, with their headers.
    """

    objects: int
    references: int
    nbytes: int
