"""How an array lies in memory, as text that other processes and files can be told."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from mirrormap import dtypes
from mirrormap.errors import CorruptError
from mirrormap.views import check_dtype

__all__ = ["read_layout", "write_layout"]

_LIMIT = 1 << 18


def write_layout(dtype: np.dtype[Any], **numbers: tuple[int, ...]) -> str:
    """A dtype and some tuples of ints as a JSON object, the dtype as in the header of .npy.

    Raises: ValueError for a dtype that such text cannot hold, such as those of extensions.
    """
    text = json.dumps({"descr": dtypes.told(dtype), **numbers}, ensure_ascii=False)
    if dtypes.dtype_from(json.loads(text)["descr"]) != dtype:
        raise ValueError(f"dtype {dtype} cannot be written down")
    return text


def read_layout(text: str, *names: str) -> tuple[Any, ...]:
    """The dtype and the tuples of those names from a text of write_layout, which nobody need trust.

    Raises: CorruptError.
    """
    try:
        found: dict[str, Any] = json.loads(text)
        dtype = check_dtype(dtypes.dtype_from(found["descr"]))
        numbers: list[Any] = [found[name] for name in names]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, MemoryError):
        raise CorruptError("the description of the array cannot be read") from None
    for each in numbers:
        if not _is_numbers(each):
            raise CorruptError(f"the description of the array has {each!r} where numbers belong")
    return dtype, *map(tuple, numbers)


def _is_numbers(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    numbers: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType]
    return len(numbers) <= _LIMIT and all(type(number) is int for number in numbers)
