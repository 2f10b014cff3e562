"""Heap against plain Python objects: graphs, pins, containers and collections in any order."""

from __future__ import annotations

import gc
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import mirrormap as mm
from heap_modes import MODES, TRIED
from support import phase_of

LENGTHS = st.one_of(
    st.integers(0, 200), st.integers(0, 5000), st.sampled_from([65_000, 65_520, 65_521, 300_000])
)


class Thing:
    """What an object of the heap should be."""

    def __init__(self, data: bytes, nrefs: int) -> None:
        self.data = data
        self.slots: list[Thing | None] = [None] * nrefs


class Garbage(RuleBasedStateMachine):
    @initialize(
        ratio=st.sampled_from([1.02, 1.1, 2.0]),
        collector=st.sampled_from(["manual", "incremental", "background"]),
        stress=st.sampled_from([0, 0, 2000, 100_000]),
        in_place=st.booleans(),
        mode=st.sampled_from(TRIED),
    )
    def start(self, ratio: float, collector: Any, stress: int, in_place: bool, mode: str) -> None:
        self.heap = mm.Heap("32MiB", target=ratio, collector=collector, stress=stress, **MODES[mode])
        self.heap._slide(in_place)
        self.held: list[tuple[mm.Ref, Thing]] = []
        self.named: dict[str, Thing] = {}
        self.weak: list[tuple[mm.Weak, Thing]] = []
        self.pinned: list[tuple[Thing, np.ndarray[Any, Any]]] = []
        self.views: list[tuple[np.ndarray[Any, Any], int, bytes]] = []
        self.map: mm.Map[int] = self.heap.map()
        self.mapped: dict[int, bytes] = {}
        self.count = 0

    def pick(self, at: int) -> tuple[mm.Ref, Thing]:
        return self.held[at % len(self.held)]

    def bytes_of(self, nbytes: int) -> bytes:
        self.count += 1
        return (self.count.to_bytes(4, "little") * (nbytes // 4 + 1))[:nbytes]

    def alive(self) -> set[Thing]:
        found: set[Thing] = set()
        todo = (
            [thing for _, thing in self.held]
            + list(self.named.values())
            + [thing for thing, _ in self.pinned]
        )
        while todo:
            thing = todo.pop()
            if thing not in found:
                found.add(thing)
                todo += [other for other in thing.slots if other is not None]
        return found

    @rule(nbytes=LENGTHS, count=st.integers(1, 40))
    def put(self, nbytes: int, count: int) -> None:
        for _ in range(count if nbytes < 5000 else 1):
            data = self.bytes_of(nbytes)
            self.held.append((self.heap.put(data), Thing(data, 0)))

    @rule(nbytes=st.integers(0, 100), nrefs=st.sampled_from([1, 2, 3, 5, 9000]), count=st.integers(1, 40))
    def new(self, nbytes: int, nrefs: int, count: int) -> None:
        for _ in range(count if nrefs < 9000 else 1):
            self.held.append((self.heap.new(nbytes, nrefs), Thing(bytes(nbytes), nrefs)))

    @precondition(lambda self: self.held)
    @rule(source=st.integers(0), other=st.integers(0), slot=st.integers(0), none=st.booleans())
    def link(self, source: int, other: int, slot: int, none: bool) -> None:
        ref, thing = self.pick(source)
        if thing.slots:
            slot %= len(thing.slots)
            to, meant = (None, None) if none else self.pick(other)
            ref[slot] = to
            thing.slots[slot] = meant

    @precondition(lambda self: self.held)
    @rule(source=st.integers(0), slot=st.integers(0))
    def follow(self, source: int, slot: int) -> None:
        ref, thing = self.pick(source)
        if thing.slots:
            slot %= len(thing.slots)
            found, meant = ref[slot], thing.slots[slot]
            assert (found is None) == (meant is None)
            if found is not None and meant is not None:
                assert bytes(found) == meant.data
                self.held.append((found, meant))

    @precondition(lambda self: self.held)
    @rule(keep=st.integers(1, 8), offset=st.integers(0))
    def drop(self, keep: int, offset: int) -> None:
        self.held = [pair for at, pair in enumerate(self.held) if (at + offset) % 8 < keep - 1]

    @precondition(lambda self: self.held)
    @rule(at=st.integers(0), name=st.sampled_from("abc"))
    def name(self, at: int, name: str) -> None:
        ref, self.named[name] = self.pick(at)
        self.heap.roots[name] = ref

    @precondition(lambda self: self.named)
    @rule(data=st.data())
    def unname(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.named)))
        assert bytes(self.heap.roots[name]) == self.named.pop(name).data
        del self.heap.roots[name]

    @precondition(lambda self: self.held)
    @rule(at=st.integers(0))
    def look_weakly(self, at: int) -> None:
        ref, thing = self.pick(at)
        self.weak.append((self.heap.weak(ref), thing))

    @precondition(lambda self: self.held)
    @rule(at=st.integers(0))
    def pin(self, at: int) -> None:
        ref, thing = self.pick(at)
        self.pinned.append((thing, ref.array))

    @precondition(lambda self: self.pinned)
    @rule(at=st.integers(0))
    def unpin(self, at: int) -> None:
        self.pinned.pop(at % len(self.pinned))

    @rule(key=st.integers(0, 20), nbytes=LENGTHS)
    def own(self, key: int, nbytes: int) -> None:
        self.mapped[key] = self.bytes_of(nbytes)
        self.map[key] = self.mapped[key]

    @precondition(lambda self: self.mapped)
    @rule(data=st.data())
    def disown(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.mapped)))
        assert self.map.pop(key) == self.mapped.pop(key)

    @precondition(lambda self: self.mapped)
    @rule(data=st.data())
    def view(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.mapped)))
        array = np.frombuffer(self.map.view(key), "u1")
        self.views.append((array, array.ctypes.data, self.mapped[key]))

    @precondition(lambda self: self.views)
    @rule(at=st.integers(0))
    def unview(self, at: int) -> None:
        self.views.pop(at % len(self.views))

    @rule(us=st.sampled_from([0, 0, 20]), count=st.integers(1, 300))
    def step(self, us: int, count: int) -> None:
        for _ in range(count):
            self.heap.step(us)

    @rule(phase=st.sampled_from(["trace", "weak", "sweep", "choose", "move"]))
    def stop_in(self, phase: str) -> None:
        """Go on until a collection is in a certain phase, if it comes to it."""
        while self.heap.step(0) and phase_of(self.heap) != phase:
            pass

    @precondition(lambda self: self.weak)
    @rule(at=st.integers(0))
    def find_weakly(self, at: int) -> None:
        """Also what nobody else holds may be had back, and is then held."""
        weak, thing = self.weak[at % len(self.weak)]
        found = weak()
        assert found is not None or thing not in self.alive()
        if found is not None:
            assert bytes(found) == thing.data
            self.held.append((found, thing))

    @rule(always=st.booleans())
    def slide(self, always: bool) -> None:
        """Compact blocks in place from now on, or evacuate them."""
        self.heap._slide(always)

    @rule()
    def collect(self) -> None:
        where = [array.ctypes.data for _, array in self.pinned]
        self.heap.verify()
        self.heap.collect()
        assert [array.ctypes.data for _, array in self.pinned] == where
        alive = self.alive()
        census, stats = self.heap.verify(), self.heap.stats()
        values = len(self.mapped) + len(
            {address for _, address, data in self.views if data not in self.mapped.values()}
        )
        assert len(alive) + len(self.mapped) <= census.objects <= len(alive) + values
        assert stats.live == census.nbytes, "exact after a collection"
        for weak, thing in self.weak:
            found = weak()
            assert (found is not None) == (thing in alive)
            assert found is None or bytes(found) == thing.data

    @invariant()
    def the_same(self) -> None:
        self.heap.verify()
        for ref, thing in self.held[-20:]:
            assert bytes(ref) == thing.data
            assert ref.nrefs == len(thing.slots)
        refs = {thing: ref for ref, thing in self.held}
        assert len(set(refs.values())) == len(refs), "as many Refs as objects"
        for ref, thing in self.held:
            assert ref == refs[thing]
            assert hash(ref) == hash(refs[thing])
        for thing, array in self.pinned:
            assert array.tobytes() == thing.data
        for array, address, data in self.views:
            assert array.ctypes.data == address
            assert array.tobytes() == data
        for key, data in self.mapped.items():
            assert self.map[key] == data

    def teardown(self) -> None:
        if not hasattr(self, "heap"):
            return
        assert all(bytes(ref) == thing.data for ref, thing in self.held)
        self.held.clear()
        self.pinned.clear()
        self.views.clear()
        self.heap.collect()
        named = self.alive()
        assert self.heap.verify().objects == len(named) + len(self.mapped)
        self.heap.roots.clear()
        self.map.clear()
        gc.collect()
        self.heap.collect()
        assert self.heap.verify().objects == 0
        assert self.heap.stats().committed == 0
        self.heap.close()


TestGarbage = Garbage.TestCase
TestGarbage.settings = settings(settings(), stateful_step_count=60)
