"""What tests of meshing share: many small objects of which few live on, each under a view."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import mirrormap as mm
from support import PAGE, address_of


class Looks:
    """Every `keep`th of many small objects or values, each under a view, and what those must go on to show."""

    def __init__(self, heap: mm.Heap, owned: bool, count: int = 8000, keep: int = 16, seed: int = 1) -> None:
        rng = random.Random(seed)
        self.heap, self.values, self.entries = heap, heap.map(), entries()
        self.refs: dict[int, mm.Ref] = {}
        data = {at: rng.randbytes(rng.randrange(PAGE // 64, PAGE * 3 // 8)) for at in range(count)}
        made: dict[int, Any] = {}
        for at in range(count):
            if owned:
                self.values[at] = data[at]
            else:
                made[at] = heap.put(data[at])
        self.data = {at: data[at] for at in rng.sample(range(count), count // keep)}
        self.views = {at: self.values.view(at) if owned else memoryview(made[at]) for at in self.data}
        self.where = {at: address_of(view) for at, view in self.views.items()}
        self.refs = {at: made[at] for at in self.data if not owned}
        for at in range(count):
            if owned and at not in self.data:
                del self.values[at]

    def check(self) -> None:
        for at, view in self.views.items():
            assert address_of(view) == self.where[at]
            assert view == self.data[at]

    def drop(self, at: int) -> None:
        self.views.pop(at).release()
        self.refs.pop(at, None)
        self.values.pop(at, None)

    def clear(self) -> None:
        for at in list(self.views):
            self.drop(at)


def entries() -> int:
    """Mappings of heaps, as the kernel counts them."""
    return len(re.findall("/memfd:mirrormap:heap", Path("/proc/self/maps").read_text()))
