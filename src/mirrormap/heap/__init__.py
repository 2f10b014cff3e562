"""A garbage-collected, compacting heap outside CPython's."""

from mirrormap.heap.arrays import HeapArray
from mirrormap.heap.containers import LRU, Map
from mirrormap.heap.frozen import Frozen, FrozenRoots
from mirrormap.heap.heap import Heap
from mirrormap.heap.reports import Census, HeapStats, Pauses, Pin
from mirrormap.heap.roots import Roots, Weak

__all__ = [
    "LRU", "Census", "Frozen", "FrozenRoots", "Heap", "HeapArray", "HeapStats", "Map", "Pauses", "Pin",
    "Roots", "Weak",
]  # fmt: skip
