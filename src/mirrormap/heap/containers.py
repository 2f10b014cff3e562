"""Mappings that own their values: bytes and arrays in the heap, dead the moment they are removed.

No Ref to an owned value exists, so none needs marking, and any may move while nobody looks at it. Keys and
values are found, kept in order and forgotten by the extension; here are the names.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, ItemsView, Iterator, MutableMapping, ValuesView
from typing import Any, Generic, TypeVar

from mirrormap.errors import ClosedError
from mirrormap.kernel.heaps import Container, HeapBase

__all__ = ["LRU", "Map"]

K = TypeVar("K", bound=Hashable)


class Map(Container, MutableMapping[K, Any], Generic[K]):
    """`heap.map()`: keys of Python's, values in the heap. Made by Heap.

    A mutable mapping. Values are bytes-like or ndarrays; `m[key]` is a copy, bytes or an ndarray of
    the same dtype and shape; `m.view(key)` shows the value where it lies. A value that is removed or
    replaced gives its memory back at once, or with its last view. An int of 64 bits, and a str or
    bytes of up to 20 bytes, is kept as a key without an object: iteration makes an equal one.

    Not for several threads at once without a lock of their own.
    Raises: KeyError; MemoryError with the figures, and nothing changed; TypeError; ClosedError.

    Attributes: nbytes: of payload now.
    """

    __slots__ = ("__weakref__",)

    def __init__(self, heap: HeapBase) -> None:
        self._attach(heap, None, None)

    def __repr__(self) -> str:
        try:
            what = f"{len(self):,} values"
        except ClosedError:
            what = "closed"
        return f"<{type(self).__name__} {what}>"


class _Values(ValuesView[Any]):
    """Looking at all of a cache is not using it."""

    __slots__ = ()
    _mapping: LRU[Any]

    def __iter__(self) -> Iterator[Any]:
        return (self._mapping._peek(key) for key in self._mapping)


class _Items(ItemsView[K, Any]):
    __slots__ = ()
    _mapping: LRU[K]

    def __iter__(self) -> Iterator[tuple[K, Any]]:
        return ((key, self._mapping._peek(key)) for key in self._mapping)


class LRU(Map[K]):
    """`heap.lru(limit)`: a Map of bounded size that gives up what was used least recently. Made by Heap.

    `limit` counts bytes of payload. Reading a value by `cache[key]`, `view` or `get`, and setting it,
    make it the last to go; `in` and iteration, also of `items()` and `values()`, do not. Iteration
    goes from the least recently used on. A value above the limit is ValueError.

    Attributes: limit: in bytes. nbytes: of payload now.
    """

    __slots__ = ()

    def __init__(
        self, heap: HeapBase, limit: int, on_evict: Callable[[K, Any], object] | None = None
    ) -> None:
        self._attach(heap, limit, on_evict)

    @property
    def limit(self) -> int:
        """Bytes of payload it may hold; a lower one counts from the next value that is set."""
        return self._limit

    @limit.setter
    def limit(self, nbytes: int) -> None:
        self._limit = nbytes

    def values(self) -> ValuesView[Any]:
        """Copies of all values, the least recently used first; none counts as used."""
        return _Values(self)

    def items(self) -> ItemsView[K, Any]:
        """Keys and copies of their values, the least recently used first; none counts as used."""
        return _Items(self)
