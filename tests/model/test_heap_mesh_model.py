"""A heap whose objects are under views, against a dict of bytes: frames come together and part in any order of acts."""

from __future__ import annotations

import gc
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import mirrormap as mm
from support import address_of, phase_of

LENGTHS = st.one_of(st.integers(1, 300), st.integers(1, 3000), st.sampled_from([4080, 5000, 20_000]))


class Looked:
    """One object or value under a view: where it is, and what it shows."""

    def __init__(self, view: memoryview, data: bytes, ref: mm.Ref | None, key: int) -> None:
        self.view, self.data, self.ref, self.key = view, data, ref, key
        self.address = address_of(view)
        self.writer: Any = None


class Meshed(RuleBasedStateMachine):
    @initialize(
        ratio=st.sampled_from([1.02, 1.1, 1.5]),
        collector=st.sampled_from(["manual", "manual", "incremental", "background"]),
        stress=st.sampled_from([0, 0, 20_000]),
        most=st.sampled_from([0, 20, 1000, 1000]),
    )
    def start(self, ratio: float, collector: Any, stress: int, most: int) -> None:
        self.heap = mm.Heap("32MiB", target=ratio, collector=collector, stress=stress)
        self.map: mm.Map[int] = self.heap.map()
        self.looked: list[Looked] = []
        self.loose: list[tuple[mm.Ref, bytes]] = []
        self.count = 0
        self.most = most

    def bytes_of(self, nbytes: int) -> bytes:
        self.count += 1
        return (self.count.to_bytes(4, "little") * (nbytes // 4 + 1))[:nbytes]

    def pick(self, at: int) -> Looked:
        return self.looked[at % len(self.looked)]

    @rule(nbytes=LENGTHS, count=st.integers(20, 200), keep=st.integers(2, 20), owned=st.booleans())
    def scatter(self, nbytes: int, count: int, keep: int, owned: bool) -> None:
        """Many objects, of which every `keep`th lives on under a view."""
        for at in range(count):
            data = self.bytes_of(nbytes + at % 7)
            if owned:
                self.map[self.count] = data
                view = self.map.view(self.count) if at % keep == 0 else None
                if view is not None:
                    self.looked.append(Looked(view, data, None, self.count))
                else:
                    del self.map[self.count]
            else:
                ref = self.heap.put(data)
                if at % keep == 0:
                    self.looked.append(Looked(memoryview(ref), data, ref, 0))

    @precondition(lambda self: self.looked)
    @rule(at=st.integers(0), count=st.integers(1, 30), die=st.booleans())
    def unlook(self, at: int, count: int, die: bool) -> None:
        for _ in range(min(count, len(self.looked))):
            looked = self.looked.pop(at % len(self.looked))
            looked.writer = None
            looked.view.release()
            if looked.ref is not None and not die:
                self.loose.append((looked.ref, looked.data))
            elif looked.ref is None:
                self.map.pop(looked.key, None)

    @precondition(lambda self: self.loose)
    @rule(at=st.integers(0))
    def look_again(self, at: int) -> None:
        ref, data = self.loose.pop(at % len(self.loose))
        self.looked.append(Looked(memoryview(ref), data, ref, 0))

    @precondition(lambda self: self.loose)
    @rule()
    def lose(self) -> None:
        del self.loose[::2]

    @precondition(lambda self: self.looked)
    @rule(at=st.integers(0), value=st.integers(0, 255))
    def write(self, at: int, value: int) -> None:
        looked = self.pick(at)
        if looked.ref is None:
            return
        if looked.writer is None:
            with looked.ref.writable() as looked.writer:
                pass
        assert looked.writer.ctypes.data == looked.address
        looked.writer[:] = value
        looked.data = bytes([value]) * len(looked.data)

    @precondition(lambda self: any(looked.writer is not None for looked in self.looked))
    @rule()
    def end_writing(self) -> None:
        for looked in self.looked:
            looked.writer = None

    @rule(us=st.sampled_from([0, 0, 50]), count=st.integers(1, 200))
    def step(self, us: int, count: int) -> None:
        self.heap._mesh_most(self.most)
        for _ in range(count):
            self.heap.step(us)

    @rule()
    def stop_while_meshing(self) -> None:
        self.heap._mesh_most(self.most)
        self.heap.put(b"reason")
        while self.heap.step(0) and phase_of(self.heap) != "mesh":
            pass

    @rule()
    def collect(self) -> None:
        self.heap.collect()
        stats = self.heap.stats()
        assert stats.live == self.heap.verify().nbytes

    @invariant()
    def the_same(self) -> None:
        self.heap.verify()
        for looked in self.looked:
            assert address_of(looked.view) == looked.address
            assert looked.view == looked.data
        for ref, data in self.loose[-20:]:
            assert bytes(ref) == data

    def teardown(self) -> None:
        if not hasattr(self, "heap"):
            return
        assert all(bytes(ref) == data for ref, data in self.loose)
        self.looked.clear()
        self.loose.clear()
        self.map.clear()
        gc.collect()
        self.heap.collect()
        self.heap.collect()
        self.heap.verify()
        assert (self.heap.stats().committed, self.heap.stats().mappings) == (0, 0)
        self.heap.close()


TestMeshed = Meshed.TestCase
TestMeshed.settings = settings(settings(), stateful_step_count=40)
