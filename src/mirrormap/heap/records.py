"""Classes of records: fields by name and kind, and what is allowed to be one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeVar

import numpy as np

from mirrormap.kernel.heaps import FrozenRecord, Layout, Record, Ref, record_class

__all__ = ["Kind", "class_of", "kind_of", "layout_of"]

R = TypeVar("R", Record, FrozenRecord)

Kind = str
_KINDS: Final = {
    "b1": "?", "i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "i8": "q", "u8": "Q",
    "f4": "f", "f8": "d",
}  # fmt: skip
_REFERENCE: Final = "R"


def kind_of(declared: Any) -> Kind:
    """The kind of a field, as in the module struct; "R" for a reference.

    Args: declared: Ref, a class of records, or a dtype of numbers or bool in this machine's byte order.
    Raises: TypeError for anything else.
    """
    if _refers(declared):
        return _REFERENCE
    dtype = np.dtype(declared)
    kind = _KINDS.get(f"{dtype.kind}{dtype.itemsize}")
    if kind is None or not dtype.isnative or dtype.fields is not None:
        raise TypeError(f"a field of a record is Ref, a number of up to 8 bytes or bool, not {dtype}")
    return kind


def _refers(declared: Any) -> bool:
    return isinstance(declared, type) and issubclass(declared, Ref | Record)


def layout_of(name: str, number: int, fields: Iterable[tuple[str, Kind]]) -> Layout:
    """Where the fields lie. Raises: ValueError, TypeError for names and kinds that cannot be."""
    pairs = tuple(fields)
    for each in (name, *(field for field, _ in pairs)):
        if not each.isidentifier() or each.startswith("_"):
            raise ValueError(f"{each!r} is no name for a class of records, or for a field")
    return Layout(name, number, pairs)


def class_of(base: type[R], name: str, layout: Layout, doc: str) -> type[R]:
    """A class of records, whose fields are those of the layout."""
    names = tuple(field.name for field in layout.fields)
    fields = dict(zip(names, layout.fields, strict=True))
    about = {"__doc__": doc, "__match_args__": names, "_layout": layout}
    made: type[R] = record_class(base, f"mirrormap.heap.{name}", {**fields, **about})
    return made
