"""What a heap tells of itself."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["CAUSES", "PHASES", "Census", "HeapStats", "Pauses", "Pin"]

CAUSES: Final = ("allocation", "step", "collect", "background", "full")
PHASES: Final = (
    "idle", "roots", "trace", "weak", "sweep", "choose", "move", "values", "punch", "mesh", "drain",
)  # fmt: skip


class Pauses(NamedTuple):
    """Steps of the collector, each with the interpreter's lock held.

    Attributes:
        steps: how many.
        p50_ns, p99_ns, p999_ns: processor time that so many of a hundred, or a thousand, do not exceed,
            in nanoseconds, rounded up by at most an eighth. longest_ns: exact.
    """

    steps: int
    p50_ns: int
    p99_ns: int
    p999_ns: int
    longest_ns: int


class Pin(NamedTuple):
    """An object that live views keep where it is.

    Attributes:
        address: of its data, as `array.ctypes.data` says. nbytes: of data.
        views: how many show it; writers: and how many of those may write.
        owned: by a container.
    """

    address: int
    nbytes: int
    views: int
    owned: bool
    writers: int


class HeapStats(NamedTuple):
    """Figures of a heap; sizes in bytes.

    Attributes:
        live: of objects not known to be dead, with their headers; exact right after a collection.
        committed: of pages the kernel holds for the heap.
        pinned: of objects that live views keep where they are.
        views: live views.
        collections: how many came to their end, whoever asked for them.
        marked: objects marked by them. moved: objects that changed place. copied: their bytes.
        returned: bytes of pages given back to the kernel.
        stayed: blocks chosen for moving that had to stay, for want of memory or for a view.
        phase: of the collection under way: one of PHASES.
        resident: bytes with page-table entries in this process, as RSS counts them: where the heap has
            several views, a page once for each that it was touched in.
        pauses: the collector's steps by cause: "allocation" that paid for one, `step()`, `collect()`, the
            thread in the "background", and a "full" heap, which is collected in one go. What moving a
            container's values costs its operations is not counted.
        arrays: bytes of elements of growing arrays, which `committed` does not count.
        index_nbytes: of ordinary memory in which containers find their values.
        meshed: bytes that `committed` would hold more, if no pages of blocks with views shared a frame.
        mappings: entries of the address space that there are because of that.
        pins: what is pinned, the largest objects first, at most 16 of them.
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
    stayed: int
    phase: str
    resident: int
    pauses: dict[str, Pauses]
    arrays: int
    index_nbytes: int
    meshed: int
    mappings: int
    pins: tuple[Pin, ...]


class Census(NamedTuple):
    """What Heap.verify() found: all that can be reached.

    Attributes: objects, references: how many. nbytes: of the objects, with their headers.
    """

    objects: int
    references: int
    nbytes: int
