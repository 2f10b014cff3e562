"""Names for objects, and references that keep nothing alive."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

from mirrormap.kernel.heaps import HeapBase, Record, Ref

__all__ = ["Roots", "Weak"]


class Roots(MutableMapping[str, Any]):
    """`heap.roots`: objects by name, which live for as long as they are named. Made by Heap.

    A mutable mapping of str to Ref or record. Not for several threads at once without a lock of their own.
    """

    __slots__ = ("_held", "_heap")

    def __init__(self, heap: HeapBase, held: dict[str, int]) -> None:
        self._heap = heap
        self._held = held

    def __getitem__(self, name: str) -> Any:
        return self._heap._ref(self._held[name])

    def __setitem__(self, name: str, ref: Ref | Record) -> None:
        if not isinstance(name, str):
            raise TypeError(f"a name is a str, not {type(name).__name__}")
        root = self._heap._hold(ref)
        before = self._held.get(name)
        self._held[name] = root
        if before is not None:
            self._heap._drop(before)

    def __delitem__(self, name: str) -> None:
        root = self._held[name]
        self._heap._drop(root)
        del self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def __repr__(self) -> str:
        return f"<Roots {', '.join(self._held) or 'none'}>"


class Weak:
    """What `heap.weak(ref)` returns: called, it gives a Ref of the object, or None once it was collected.

    An object that nothing else holds lives until the next collection, and can be had back until then.
    Raises: ClosedError.
    """

    __slots__ = ("__weakref__", "_heap", "_index")

    def __init__(self, heap: HeapBase, ref: Ref | Record) -> None:
        self._index = 0
        self._heap = heap
        self._index = heap._weak(ref)

    def __call__(self) -> Any:
        """A Ref of the object, a record, or None. Raises: ClosedError; MemoryError."""
        return self._heap._weak_ref(self._index)

    def __del__(self) -> None:
        if self._index:
            self._heap._weak_drop(self._index)

    def __repr__(self) -> str:
        if self._heap.closed:
            return "<Weak closed>"
        return f"<Weak to {self()}>"
