"""A garbage-collected, compacting heap outside CPython's."""

from mirrormap.heap.containers import LRU, Map
from mirrormap.heap.heap import Heap
from mirrormap.heap.reports import Census, HeapStats, Pauses
from mirrormap.heap.roots import Roots, Weak

__all__ = ["LRU", "Census", "Heap", "HeapStats", "Map", "Pauses", "Roots", "Weak"]
