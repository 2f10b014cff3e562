"""Records, general objects and images against plain Python objects, with collections anywhere."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import mirrormap as mm
from heap_modes import MODES, TRIED
from mirrormap import Ref

KEYS = st.integers(-(2**63), 2**63 - 1)
WEIGHTS = st.floats(width=32, allow_nan=False)
PICKS = st.integers(0, 1 << 20)


class Plain:
    """What a record, or an object with an array and two references, should be."""

    def __init__(self, key: int, weight: float, data: Any = None) -> None:
        self.key, self.weight, self.data = key, weight, data
        self.refs: list[Plain | None] = [None, None]


class Records(RuleBasedStateMachine):
    @initialize(mode=st.sampled_from(TRIED))
    def start(self, mode: str) -> None:
        self.heap = mm.Heap("32MiB", **MODES[mode])
        self.node: Any = self.heap.record("Node", small="u1", key="i8", left=Ref, weight="f4", right=Ref)
        self.held: list[tuple[Any, Plain]] = []
        self.named: dict[str, Plain] = {}
        self.images: list[tuple[mm.Frozen, dict[str, Any]]] = []

    def pick(self, which: int) -> tuple[Any, Plain]:
        return self.held[which % len(self.held)]

    @rule(key=KEYS, weight=WEIGHTS, garbage=st.integers(0, 3000))
    def make(self, key: int, weight: float, garbage: int) -> None:
        for number in range(garbage):
            self.node(key=number)
        self.held.append((self.node(key=key, weight=weight, small=key & 255), Plain(key, weight)))

    @rule(data=st.binary(max_size=40))
    def make_general(self, data: bytes) -> None:
        ref = self.heap.new(len(data), 2)
        with ref.writable() as array:
            array[:] = np.frombuffer(data, "u1")
        del array
        self.held.append((ref, Plain(0, 0, data)))

    @precondition(lambda self: self.held)
    @rule(which=PICKS, key=KEYS, weight=WEIGHTS)
    def store(self, which: int, key: int, weight: float) -> None:
        real, plain = self.pick(which)
        if plain.data is None:
            real.key, real.weight, real.small = key, weight, key & 255
            plain.key, plain.weight = key, weight

    @precondition(lambda self: self.held)
    @rule(which=PICKS, other=PICKS, side=st.integers(0, 1), none=st.booleans())
    def link(self, which: int, other: int, side: int, none: bool) -> None:
        real, plain = self.pick(which)
        to, target = (None, None) if none else self.pick(other)
        if plain.data is None:
            setattr(real, ("left", "right")[side], to)
        else:
            real[side] = to
        plain.refs[side] = target

    @precondition(lambda self: self.held)
    @rule(which=PICKS, name=st.sampled_from("abc"))
    def name(self, which: int, name: str) -> None:
        self.heap.roots[name], self.named[name] = self.pick(which)

    @precondition(lambda self: self.named)
    @rule(which=PICKS)
    def forget_name(self, which: int) -> None:
        name = list(self.named)[which % len(self.named)]
        del self.heap.roots[name], self.named[name]

    @precondition(lambda self: self.held)
    @rule(which=PICKS)
    def drop(self, which: int) -> None:
        del self.held[which % len(self.held)]

    @rule()
    def collect(self) -> None:
        self.heap.collect()

    @rule()
    def freeze(self) -> None:
        self.images.append((self.heap.freeze(), {name: tell(plain) for name, plain in self.named.items()}))

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        self.heap.verify()
        for real, plain in self.held:
            compare(real, tell(plain))
        for name, plain in self.named.items():
            compare(self.heap.roots[name], tell(plain))
        for image, told in self.images:
            assert sorted(image.roots) == sorted(told)
            for name, graph in told.items():
                compare(image.roots[name], graph)

    def teardown(self) -> None:
        if not hasattr(self, "heap"):
            return
        for image, _ in self.images:
            image.close()
        self.held.clear()
        gc.collect()
        self.heap.close()


def tell(plain: Plain) -> list[Any]:
    """A graph as a list: (key, weight, data, numbers of both references), the start first."""
    numbers, order, told = {plain: 0}, [plain], []
    for here in order:
        for to in here.refs:
            if to is not None and to not in numbers:
                numbers[to] = len(order)
                order.append(to)
        told.append(
            (here.key, here.weight, here.data, [None if to is None else numbers[to] for to in here.refs])
        )
    return told


def refs_of(real: Any) -> list[Any]:
    return [real.left, real.right] if isinstance(real, mm.Record | mm.FrozenRecord) else [real[0], real[1]]


def compare(real: Any, told: list[Any]) -> None:
    numbers, order = {real: 0}, [real]
    for here, (key, weight, data, links) in zip(order, told, strict=False):
        if data is None:
            assert (here.key, here.weight, here.small) == (key, weight, key & 255)
        else:
            assert bytes(here) == data
        for to, number in zip(refs_of(here), links, strict=True):
            if to is None:
                assert number is None
                continue
            if to not in numbers:
                numbers[to] = len(order)
                order.append(to)
            assert numbers[to] == number
    assert len(order) == len(told)


TestRecords = Records.TestCase
