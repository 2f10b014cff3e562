"""Heap: objects of bytes and references in shareable pages, collected and compacted.

    offsets   | block | block | run ......... | (no pages) | block |      a power of two long
    pages     | held  | holes | held          |            | held  |      of one sparse memfd

Python holds objects by Refs; the heap may move whatever nobody has a view of.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from mirrormap import cgroups, portraits, procmaps
from mirrormap.backing import page_kind
from mirrormap.drawing import drawing
from mirrormap.errors import CorruptError, MirrorError
from mirrormap.heap import collecting
from mirrormap.heap.arrays import HeapArray
from mirrormap.heap.containers import LRU, Map
from mirrormap.heap.frozen import Frozen, Schema, freeze
from mirrormap.heap.records import class_of, kind_of, layout_of
from mirrormap.heap.reports import CAUSES, PHASES, Census, HeapStats, Pauses, Pin
from mirrormap.heap.roots import Roots, Weak
from mirrormap.kernel.heaps import HeapBase, Record, Ref
from mirrormap.lifetime import Closing
from mirrormap.pages import Pages
from mirrormap.units import Size, as_nbytes, format_nbytes, next_power_of_two

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

__all__ = ["Heap"]

_LEAST_NBYTES: Final = 1 << 20
_MOST_NBYTES: Final = 1 << 40
_LONGEST_STEP_US: Final = 1e9
_SPACE: Final = 8  # addresses per byte of memory: a run takes whole blocks of them, and may need few pages
_ASK_NBYTES: Final = 64 << 20  # committed between two looks at what the memory cgroup allows
_LOOKS: Final = 10
_COLOURS: Final = 3
_MESHING: Final = 2  # of the mappings that are left, meshing may use one in so many
_PINS: Final = 16


class Heap(HeapBase, Closing):
    """A garbage-collected heap outside CPython's, which gives memory back.

    Args:
        max_bytes: of pages it may hold at once, 1 MiB to 1 TiB; 256 KiB of them are set aside for
            moving objects. Eight times as many addresses are reserved, which cost nothing.
        target: how many bytes may be held for each live one, at least 1.02. Moving objects more
            often is what a lower one costs. For values of containers, what finds them is counted too.
        page_size: None, or the system's. Pages go back one by one out of blocks of 256 KiB, which huge
            ones cannot: they are refused.
        collector: who collects objects held by Refs. "manual": `collect()` and `step()`, and a full heap.
            "incremental": allocation too, in steps of at most 0.15 ms, from when so much has lost its
            last Ref or root that `target` may be broken. "background": a thread as well, which needs no
            allocation; where it dies, later calls raise MirrorError. Values of containers die, and are
            moved together, without any of that.
        views: 1, or 3: the pages are mapped once more for each colour that a reference may have, and a
            reference's colour chooses the view that it is followed in, by addition, without a mask. Four
            mappings of 8 * max_bytes and more, whatever happens; a page's frame counts in RSS once for
            each view that it was touched in. It does not pay (bench/heap_views.py).
        guard: for tests: of three such views, only that of the good colour can be touched, so that
            whoever follows a stale reference dies of SIGSEGV there. The colour turns by two mprotect(2)
            over all the heap, in one step.
        stress: for tests: at every so many bytes allocated, the smallest possible step of a collection,
            or, where that is manual, a whole one.

    An object lives while a Ref, a name in `roots`, a view, or a reference of a live object leads to
    it; cycles die. What a view shows keeps its address and its bytes while the view lives; the memory
    beside it is given back all the same, see `collect()`.

    All memory is committed before it is handed out: a full heap, system or memory cgroup is a collection
    and then a MemoryError, never a SIGBUS. The cgroup is looked up every 64 MiB, as best effort: others
    take memory meanwhile.

    A context manager. Every call, and every step of a collection, holds the interpreter's lock (the
    package's own, where the interpreter has none) throughout, so threads may share a heap. It belongs to
    the process that made it: in a forked child its calls raise ClosedError; arrays taken before the fork
    show what the parent makes of those pages.

    Raises: ValueError, TypeError for sizes that cannot be; MapError ENOMEM for addresses, EMFILE.
        Kernel calls: memfd_create(2), mmap(2), fallocate(2) for pages and for holes, eventfd(2) to wake
            the thread, mprotect(2) to guard; for pages under views mmap(2) with MAP_FIXED, and pwrite(2).
    """

    __slots__ = (
        "__weakref__", "_arrays", "_arrays_lock", "_arrays_most", "_colours", "_mapping", "_max_nbytes",
        "_names", "_pages", "_records", "_target", "_thread",
    )  # fmt: skip

    def __init__(
        self,
        max_bytes: Size = "8GiB",
        *,
        target: float = 1.10,
        page_size: Size | None = None,
        collector: collecting.Mode = "background",
        views: int = 1,
        guard: bool = False,
        stress: int = 0,
    ) -> None:
        limit = as_nbytes(max_bytes, "max_bytes", minimum=_LEAST_NBYTES)
        if limit > _MOST_NBYTES:
            raise ValueError(f"max_bytes {limit:,} must be at most {_MOST_NBYTES:,}")
        if page_kind(page_size) != page_kind(None):
            raise ValueError(
                f"page_size {page_size!r} must be the system's, {page_kind(None).nbytes:,}: "
                "a heap gives single pages out of its blocks back, which huge pages cannot be"
            )
        if views not in (1, _COLOURS):
            raise ValueError(f"views {views!r} must be 1, or {_COLOURS}: one for each colour of a reference")
        if not 1.02 <= target <= 100:
            raise ValueError(f"target {target} must be between 1.02 and 100 bytes held per live byte")
        if collector not in collecting.MODES:
            raise ValueError(f"collector {collector!r} must be one of {', '.join(collecting.MODES)}")
        stress = operator.index(stress)
        if not 0 <= stress < 1 << 63:
            raise ValueError(f"stress {stress:,} must be a number of bytes, or 0")
        if not self.closed:
            raise MirrorError("this heap is made already")
        self._max_nbytes = limit
        self._target = target
        self._names: dict[str, int] = {}
        self._arrays: WeakSet[HeapArray] = WeakSet()
        self._arrays_most = 0  # bytes they hold, or more: those of some that died may still be counted
        self._arrays_lock = threading.RLock()  # a signal handler may append too
        self._records: dict[str, tuple[Schema, type[Record]]] = {}
        self._pages = Pages(next_power_of_two(_SPACE * limit), name="heap")
        self._mapping = self._pages.map()
        self._colours = self._pages.views(_COLOURS) if guard or views != 1 else []
        self._attach(
            self._mapping._live, tuple(view._live for view in self._colours), guard,
            self._pages.fileno(), self._pages.page_size, limit, round(target * 1000),
        )  # fmt: skip
        self._look()
        self._count_mappings()
        self._pace(collecting.MODES[collector], -1, stress)
        self._thread = collecting.start(self, stress) if collector == "background" else None

    @property
    def roots(self) -> Roots:
        """Objects by name: a mutable mapping of str to Ref or record. What is named lives."""
        return Roots(self, self._names)

    def weak(self, ref: Ref | Record) -> Weak:
        """A reference that keeps nothing alive: call it for a Ref, or None once it was collected."""
        return Weak(self, ref)

    def record(self, name: str, /, **fields: Any) -> type[Record]:
        """Declare a class of records: `Node = heap.record("Node", key="i8", left=Ref, right=Ref)`.

        A record takes 8 bytes and those of its fields, rounded up to 16. `Node(key=5)` makes one, see
        Record; `node.left = other` takes a Ref, a record, or None. The same declaration again gives the
        same class.

        Args: name, fields: identifiers without a leading underscore. A field is a dtype of numbers of up
            to 8 bytes or bool, or Ref. At most 2,048 classes, 8,184 bytes and 1,023 references.
        Raises: ValueError, TypeError for what cannot be, or was declared otherwise before; ClosedError.
        """
        schema: Schema = (name, [(field, kind_of(kind)) for field, kind in fields.items()])
        known = self._live._records.get(name)
        if known is not None:
            if known[0] != schema:
                raise ValueError(f"{name!r} was declared with other fields: {known[0][1]}")
            return known[1]
        layout = layout_of(name, len(self._records), schema[1])
        made = class_of(Record, name, layout, f"Records {name!r} of a heap, {layout.nbytes} bytes each.")
        self._adopt(made, layout)
        self._records[name] = schema, made
        return made

    def freeze(self) -> Frozen:
        """A read-only image of what `roots` reaches, for any number of processes; see Frozen.

        The heap goes on, and later stores do not show. Weak references, views and containers are not
        part of it. Costs O(live) time and memory, in one step.

        Raises: MemoryError; ValueError for dtypes that cannot be written down; ClosedError.
            Kernel calls: memfd_create(2), fallocate(2), fcntl(2) F_ADD_SEALS.
        """
        schemas = [schema for schema, _ in self._live._records.values()]
        return freeze(self, self._names, self._dtypes(), schemas)

    def array(self, dtype: DTypeLike = float) -> HeapArray:
        """An empty array that grows under the arrays that show it; see HeapArray.

        Raises: TypeError, ValueError for a dtype that cannot be; MapError ENOMEM for addresses.
        """
        made = HeapArray(self._live, dtype, self._max_nbytes, self._make_room)
        self._arrays.add(made)
        return made

    def _make_room(self, nbytes: int, ahead: int) -> None:
        """For so many bytes more in an array, which takes `ahead` if it may. Raises: MemoryError."""
        committed = self._stats()[1]
        with self._arrays_lock:
            if committed + self._arrays_most + ahead > self._max_nbytes:
                arrays = self._array_nbytes()  # exact, but it asks each of them
                if committed + arrays + nbytes > self._max_nbytes:
                    raise MemoryError(
                        f"no room for {nbytes:,} bytes: the heap holds {committed:,} of at most "
                        f"{self._max_nbytes:,} bytes, and {arrays:,} in arrays"
                    )
                self._arrays_most = arrays
            self._arrays_most += ahead

    def _array_nbytes(self) -> int:
        return sum(array.nbytes for array in self._arrays)

    def map(self) -> Map[Any]:
        """A mutable mapping that owns its values; see Map."""
        return Map(self)

    def lru(self, limit: Size, *, on_evict: Callable[[Any, Any], object] | None = None) -> LRU[Any]:
        """A cache that owns its values and gives up what was used least recently; see LRU.

        Args: limit: bytes of payload. on_evict: called with key and value when room is made; not
            for what is removed or replaced.
        """
        return LRU(self, as_nbytes(limit, "limit"), on_evict)

    def collect(self) -> None:
        """Mark what can be reached, move what survives out of the emptiest blocks, give pages back.

        Returns when all phases of a collection are over that began after the call. It is made of steps:
        other threads run in between, and what they drop meanwhile may be left for the next.
        Blocks with pinned objects stay where they are and lose the pages that hold nothing alive. Where they
        still hold too much, pages in which nothing overlaps come to share a frame (meshing), as long as that
        takes at most half of the mappings that vm.max_map_count leaves; addresses stay. What is written to,
        by `writable()`, shares none, and objects with references do not.
        Raises: ClosedError, also when another thread closes the heap meanwhile.
        """
        self._look()
        if self._stats()[3]:  # views: without any, nothing comes to share a frame
            self._count_mappings()
        goal = self._goal()
        while self._advance(goal, collecting.STEP_NS):
            pass

    def step(self, us: float) -> bool:
        """Go on with the collection under way for about so many microseconds; 0: as little as can be done.

        When none is under way, one begins, unless nothing has lost a Ref or root, and no reference was
        overwritten, since the last. Returns: whether there is more to do.
        Raises: ValueError; ClosedError.
        """
        if not 0 <= us <= _LONGEST_STEP_US:
            raise ValueError(f"a step of {us} us cannot be")
        return self._step(round(us * 1000))

    def stats(self) -> HeapStats:
        """Figures: bytes live, committed, pinned, resident; what the collector did. Raises: ClosedError."""
        pauses = {cause: Pauses(*each) for cause, each in zip(CAUSES, self._pauses(), strict=True) if each[0]}
        told = self._stats()
        meshed, mappings = self._meshing()
        pins = tuple(Pin(*each) for each in self._pins(_PINS))
        resident = sum(view.resident for view in (self._mapping, *self._colours))
        return HeapStats(
            *told[:-1],
            PHASES[told[-1]],
            resident,
            pauses,
            self._array_nbytes(),
            self._index_nbytes(),
            meshed,
            mappings,
            pins,
        )

    def verify(self) -> Census:
        """Trace all that is alive once more, apart from the collector, and check every book kept of it.

        Costs O(live) time. Returns: what there is.
        Raises: CorruptError, saying what is wrong and where; ClosedError.
        """
        objects, references, nbytes, wrong, where = self._verify()
        if wrong is not None:
            raise CorruptError(f"the heap is damaged at offset {where:#x}: {wrong}")
        return Census(objects, references, nbytes)

    def close(self) -> None:
        """Let go of everything; Refs and containers raise ClosedError from then on. Again: no effect.

        Raises: BufferError while arrays or memoryviews of its objects live.
        """
        if not self.closed:
            for array in self._arrays:
                array._check_unseen()
        self._detach()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._thread = None
        for array in self._arrays:
            array._close()
        self._names.clear()
        self._records.clear()
        for view in (self._mapping, *self._colours):
            view.close()
        self._pages.close()

    @property
    def _live(self) -> Heap:
        _ = self._stats()
        return self

    def _look(self) -> None:
        """Before more pages are committed: beyond what memory cgroup and overcommit allow comes a signal."""
        for _ in range(_LOOKS):
            committed = self._stats()[1]
            left = cgroups.least_left()
            self._allow(
                _ASK_NBYTES if left is None else max(0, min(_ASK_NBYTES, left - cgroups.SPARE_NBYTES))
            )
            if self._stats()[1] == committed:  # else the thread gave pages back meanwhile: there is more left
                return

    def _count_mappings(self) -> None:
        """How many mappings meshing may make: none where nobody can count those there are."""
        used = self._meshing()[1]
        try:
            left = procmaps.max_map_count() - procmaps.map_count()
        except OSError:
            left = 0
        self._mesh_most(max(0, used + left // _MESHING))

    def _repr_html_(self) -> str:
        if self.closed:
            return drawing("Heap closed", {}, [], 0)
        told = self.stats()
        facts = {
            "live": format_nbytes(told.live),
            "committed": format_nbytes(told.committed),
            "pinned": f"{format_nbytes(told.pinned)} by {told.views:,} views",
            "collections": f"{told.collections:,}",
        }
        return portraits.of_sparse(self._mapping._live, repr(self), facts)

    def __repr__(self) -> str:
        if self.closed:
            return "<Heap closed>"
        try:
            live, committed, *_ = self._stats()
        except MirrorError:
            return "<Heap failed>"
        most = format_nbytes(self._max_nbytes)
        return f"<Heap {format_nbytes(live)} live in {format_nbytes(committed)} of at most {most}>"
