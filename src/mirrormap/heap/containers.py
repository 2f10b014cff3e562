"""Mappings that own their values: bytes and arrays in the heap, dead the moment they are removed.

No Ref to an owned value exists, so none needs marking, and any may move while nobody looks at it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, ItemsView, Iterator, MutableMapping, ValuesView
from typing import Any, Generic, TypeVar

from mirrormap.errors import ClosedError
from mirrormap.kernel import HeapBase

__all__ = ["LRU", "Map"]

K = TypeVar("K", bound=Hashable)


class Map(MutableMapping[K, Any], Generic[K]):
    """`heap.map()`: keys of Python's, values in the heap. Made by Heap.

    A mutable mapping. Values are bytes-like or ndarrays; `m[key]` is a copy, bytes or an ndarray of
    the same dtype and shape; `m.view(key)` shows the value where it lies. A value that is removed or
    replaced gives its memory back at once, or with its last view.

    Not for several threads at once without a lock of their own.
    Raises: KeyError; MemoryError with the figures, and nothing changed; TypeError; ClosedError.
    """

    __slots__ = ("__weakref__", "_heap", "_roots")

    def __init__(self, heap: HeapBase) -> None:
        self._heap = heap
        self._roots: OrderedDict[K, int] = OrderedDict()

    def __getitem__(self, key: K) -> Any:
        return self._heap._value(self._roots[key])

    def view(self, key: K) -> memoryview:
        """A read-only memoryview of a value where it lies, in its dtype and shape; a context manager.

        The value keeps its address, and its bytes, until the view is released, also when it is
        removed meanwhile. Raises: KeyError; ClosedError.
        """
        return self._heap._view(self._roots[key])

    def __setitem__(self, key: K, value: Any) -> None:
        before = self._roots.get(key)
        self._roots[key] = self._heap._keep(value)
        if before is not None:
            self._heap._forget(before)

    def __delitem__(self, key: K) -> None:
        self._check_open()
        self._heap._forget(self._roots.pop(key))

    def __iter__(self) -> Iterator[K]:
        self._check_open()
        return iter(self._roots)

    def __contains__(self, key: object) -> bool:
        self._check_open()
        return key in self._roots

    def __len__(self) -> int:
        self._check_open()
        return len(self._roots)

    def __repr__(self) -> str:
        what = "closed" if self._heap.closed else f"{len(self):,} values"
        return f"<{type(self).__name__} {what}>"

    def __del__(self, _closed: type[ClosedError] = ClosedError) -> None:
        try:
            for root in self._roots.values():
                self._heap._forget(root)
        except (_closed, AttributeError):  # its values are gone already; or it was half made
            pass

    def _check_open(self) -> None:
        if self._heap.closed:
            raise ClosedError("the heap of these values is closed, or another process's")


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

    __slots__ = ("_nbytes", "_on_evict", "limit")

    def __init__(
        self, heap: HeapBase, limit: int, on_evict: Callable[[K, Any], object] | None = None
    ) -> None:
        super().__init__(heap)
        self.limit = limit
        self._nbytes = 0
        self._on_evict = on_evict

    @property
    def nbytes(self) -> int:
        """Bytes of payload of all values."""
        self._check_open()
        return self._nbytes

    def __getitem__(self, key: K) -> Any:
        value = self._heap._value(self._roots[key])
        self._roots.move_to_end(key)
        return value

    def view(self, key: K) -> memoryview:
        """A read-only memoryview of a value where it lies; see Map.view. A use of it."""
        view = self._heap._view(self._roots[key])
        self._roots.move_to_end(key)
        return view

    def __setitem__(self, key: K, value: Any) -> None:
        nbytes = len(value) if type(value) is bytes else memoryview(value).nbytes
        if nbytes > self.limit:
            raise ValueError(f"a value of {nbytes:,} bytes does not fit into a cache of {self.limit:,}")
        roots = self._roots
        before = roots.get(key)
        if before is None:
            if self._nbytes + nbytes > self.limit:
                self._make_room(nbytes)
            roots[key] = self._heap._keep(value)
            self._nbytes += nbytes
            return
        roots[key] = self._heap._keep(value)
        roots.move_to_end(key)
        self._nbytes += nbytes - self._heap._forget(before)
        if self._nbytes > self.limit:
            self._make_room(0)

    def _peek(self, key: K) -> Any:
        return super().__getitem__(key)

    def values(self) -> ValuesView[Any]:
        """Copies of all values, the least recently used first; none counts as used."""
        return _Values(self)

    def items(self) -> ItemsView[K, Any]:
        """Keys and copies of their values, the least recently used first; none counts as used."""
        return _Items(self)

    def __delitem__(self, key: K) -> None:
        self._check_open()
        self._nbytes -= self._heap._forget(self._roots.pop(key))

    def _make_room(self, nbytes: int) -> None:
        roots, forget = self._roots, self._heap._forget
        while self._nbytes + nbytes > self.limit:
            if self._on_evict is None:
                self._nbytes -= forget(roots.popitem(last=False)[1])
                continue
            key = next(iter(roots))
            value = self._peek(key)
            del self[key]
            self._on_evict(key, value)
