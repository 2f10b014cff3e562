"""What the extension has for records and images of a heap."""

from __future__ import annotations

from mirrormap._core import FrozenBase, FrozenRecord, FrozenRef, HeapBase, Layout, Record, Ref, record_class

__all__ = ["FrozenBase", "FrozenRecord", "FrozenRef", "HeapBase", "Layout", "Record", "Ref", "record_class"]
