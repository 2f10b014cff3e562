"""dtypes as values that JSON can carry: what NumPy writes into .npy headers, with lists for tuples.

JSON, not literals of Python: CPython 3.11 parses no two of those in two threads at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib import format as npy

__all__ = ["dtype_from", "told"]


def told(dtype: np.dtype[Any]) -> Any:
    """A name, or a list of fields (name, kind, shape)."""
    return npy.dtype_to_descr(dtype)


def dtype_from(value: Any) -> np.dtype[Any]:
    """The dtype that a parsed JSON value names, which nobody need trust.

    Raises: TypeError, ValueError, KeyError, IndexError, RecursionError for what names none.
    """
    try:
        found = npy.descr_to_dtype(_descr(value))
    # NumPy reads some names, such as ",f4", as Python; of others, "a5", it warns, which may be an error
    except (SyntaxError, DeprecationWarning) as error:
        raise ValueError(f"{value!r} names no dtype") from error
    if found.subdtype is not None:  # no array has such a dtype: its dimensions are the array's
        raise ValueError(f"{value!r} names several items")
    return found


def _descr(value: Any) -> Any:
    if isinstance(value, str):
        return value
    fields: list[Any] = []
    for name, kind, *shape in value:
        titled: Any = name if isinstance(name, str) else tuple(name)
        fields.append((titled, _descr(kind), *map(tuple, shape)))
    return fields
