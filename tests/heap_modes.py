"""The modes in which a heap may be made. `make heap-modes` runs every test of heaps in each of them.

MIRRORMAP_HEAPS names the one that all heaps are made in where a test does not say otherwise: modes/sitecustomize.py,
found by PYTHONPATH, sees to that in every process. The package itself knows nothing of it.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

import mirrormap as mm

MODES: Final[dict[str, dict[str, Any]]] = {
    "one": {"views": 1, "guard": False},
    "views": {"views": 3, "guard": False},
    "guard": {"views": 1, "guard": True},
}
ASKED: Final = os.environ.get("MIRRORMAP_HEAPS")
TRIED: Final = [ASKED] if ASKED else list(MODES)


def make_all(mode: str) -> None:
    """Every heap of this process from now on."""
    defaults = mm.Heap.__init__.__kwdefaults__
    assert defaults is not None
    defaults.update(MODES[mode])


def colours_of(heap: mm.Heap) -> list[int]:
    """Addresses of the views of the colours; none in a heap with one view."""
    return [view.address for view in heap._colours]


def protections_of(heap: mm.Heap) -> list[str]:
    """As the kernel has them, of the views of the colours."""
    found = {entry.start: entry.protection for entry in mm.mappings()}
    return [found[address] for address in colours_of(heap)]


def mode_of(heap: mm.Heap) -> str:
    protections = protections_of(heap)
    if not protections:
        return "one"
    return "guard" if sorted(protections) == ["none", "none", "rw"] else "views"


def shift_of(heap: mm.Heap) -> int:
    """Where the colour begins in a reference."""
    return heap._pages.nbytes.bit_length() - 1


def reference_in(ref: mm.Ref, index: int) -> int:
    """A reference slot as it stands, past the barrier."""
    address = ref.array.ctypes.data + (ref.nbytes + 7 & -8) + 8 * index
    return ctypes.c_uint64.from_address(address).value
