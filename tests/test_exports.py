"""The public surface is pinned: adding or losing a name is a decision, not an accident."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import mirrormap

PUBLIC = [
    "BusyError", "MREMAP_DONTUNMAP", "MREMAP_FIXED", "MREMAP_MAYMOVE", "MREMAP_MIRROR", "Capabilities",
    "ClosedError", "CorruptError", "Growable", "Handle", "handle", "stitch", "Allocator", "numpy_allocator", "Snapshot", "snapshot", "MapError", "Mapping", "MirrorError", "NotMirrorableError", "Overrun", "Pages",
    "Reader", "Ring", "WriterGone", "copyto", "empty", "full",
    "Channel", "Message", "Peer", "Receiver", "Reservation", "Sender", "SenderGone",
    "is_mirror", "mirror", "mremap", "probe", "share", "shares_memory", "zeros",
    "Census", "Frozen", "FrozenRecord", "FrozenRef", "FrozenRoots", "Heap", "HeapArray", "HeapStats", "LRU", "Map", "Pauses", "Pin",
    "Record", "Ref", "Roots", "Weak",
    "Footprint", "MirrorGroup", "MirrorView", "Mirrors", "NotPermittedError", "ProcessGone", "Vma", "mappings", "mirrors",
]  # fmt: skip


def test_the_public_names_are_these() -> None:
    assert sorted(mirrormap.__all__) == sorted(PUBLIC)
    assert all(hasattr(mirrormap, name) for name in PUBLIC)


def test_importing_takes_along_nothing_that_few_use() -> None:
    code = "import sys, mirrormap; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    # event loops and TLS were a third of the time
    assert {"asyncio", "ssl", "hashlib"}.isdisjoint(loaded.split())


@pytest.mark.parametrize("name", [name for name in PUBLIC if not name.startswith("MREMAP")])
def test_every_public_object_is_documented(name: str) -> None:
    documented = getattr(mirrormap, name)
    assert inspect.getdoc(documented)
    if inspect.isclass(documented):
        for attribute, value in vars(documented).items():
            if not attribute.startswith("_") and (
                callable(value) or isinstance(value, property | classmethod)
            ):
                assert inspect.getdoc(getattr(documented, attribute)), f"{name}.{attribute}"


def test_errors_are_what_the_contract_says() -> None:
    assert issubclass(mirrormap.MapError, OSError)
    assert issubclass(mirrormap.MapError, mirrormap.MirrorError)
    assert issubclass(mirrormap.NotMirrorableError, mirrormap.MapError)
    assert issubclass(mirrormap.ClosedError, ValueError)
    assert issubclass(mirrormap.ClosedError, mirrormap.MirrorError)


def test_the_flag_is_ours_alone() -> None:
    kernels = {1, 2, 4, 8, 16}  # MAYMOVE, FIXED, DONTUNMAP, and two that a pending series claims
    assert mirrormap.MREMAP_MIRROR not in kernels
    assert all(not mirrormap.MREMAP_MIRROR & bit for bit in kernels)
