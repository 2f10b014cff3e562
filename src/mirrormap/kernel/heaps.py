"""What the extension has for containers, records and images of a heap."""

from __future__ import annotations

from mirrormap._core import (
    Container,
    FrozenBase,
    FrozenRecord,
    FrozenRef,
    HeapBase,
    Layout,
    Record,
    Ref,
    record_class,
)

__all__ = [
    "Container",
    "FrozenBase",
    "FrozenRecord",
    "FrozenRef",
    "HeapBase",
    "Layout",
    "Record",
    "Ref",
    "record_class",
]
