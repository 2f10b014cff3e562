"""Growable against a plain NumPy array, in memory and in a file, with arrays held on to."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import mirrormap as mm
from support import PAGE


class Growth(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.held: list[np.ndarray[Any, Any]] = []

    @initialize(
        width=st.integers(1, 3), reserve=st.sampled_from([PAGE, "1MiB", "1GiB"]), on_disk=st.booleans()
    )
    def start(self, width: int, reserve: Any, on_disk: bool) -> None:
        self.path = Path(self.folder.name) / "rows" if on_disk else None
        self.reserve = reserve
        self.real = mm.Growable("i4", (width,), reserve=reserve, path=self.path)
        self.model = np.zeros((0, width), "i4")
        self.committed = self.model

    @rule(value=st.integers(-9, 9))
    def append(self, value: int) -> None:
        row = np.full(self.model.shape[1], value)
        self.real.append(row)
        self.model = np.concatenate([self.model, row[None].astype("i4")])

    @rule(count=st.sampled_from([0, 1, 7, PAGE // 4, PAGE, 5 * PAGE]), value=st.integers(-9, 9))
    def extend(self, count: int, value: int) -> None:
        rows = np.full((count, self.model.shape[1]), value, "i4")
        self.real.extend(rows)
        self.model = np.concatenate([self.model, rows])

    @rule(share=st.floats(0, 1.5))
    def resize(self, share: float) -> None:
        count = int(len(self.model) * share)
        longest = max((len(array) for array in self.held), default=0)
        if count < len(self.model) and longest > count:
            before = len(self.real)
            try:
                self.real.resize(count)
            except BufferError:
                assert len(self.real) == before
                return
            raise AssertionError("rows went away under an array")
        self.real.resize(count)
        grown = np.zeros((count, self.model.shape[1]), "i4")
        kept = min(count, len(self.model))
        grown[:kept] = self.model[:kept]
        self.model = grown

    @rule()
    def shrink_to_fit(self) -> None:
        self.real.shrink_to_fit()

    @rule()
    def hold(self) -> None:
        if len(self.model):
            self.held.append(self.real.array)

    @rule()
    def let_go(self) -> None:
        self.held.clear()

    @rule(value=st.integers(-9, 9), which=st.integers(0, 9))
    def store_through_a_held_array(self, value: int, which: int) -> None:
        if self.held:
            array = self.held[which % len(self.held)]
            array[-1] = value
            self.model[len(array) - 1] = value

    @rule()
    def reopen(self) -> None:
        if self.path is not None:
            self.held.clear()
            self.real.close()
            self.real = mm.Growable.open(self.path, reserve=self.reserve)

    @invariant()
    def same_rows(self) -> None:
        if not hasattr(self, "real"):
            return
        assert len(self.real) == len(self.model)
        assert np.array_equal(self.real.array, self.model)
        for array in self.held:
            assert np.array_equal(array, self.model[: len(array)])

    def teardown(self) -> None:
        self.held.clear()
        if hasattr(self, "real"):
            self.real.close()
        self.folder.cleanup()


TestGrowth = Growth.TestCase
