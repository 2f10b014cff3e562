"""Sizes in bytes, rounding to pages, and the one range check of the package."""

from __future__ import annotations

import operator
import re
from typing import SupportsIndex

__all__ = [
    "LIMIT_NBYTES",
    "Size",
    "as_nbytes",
    "as_range",
    "check_address",
    "check_multiple",
    "check_range",
    "format_nbytes",
    "next_power_of_two",
    "round_down",
    "round_up",
]

Size = SupportsIndex | str

LIMIT_NBYTES = (1 << 63) - 1
"""The largest offset the kernel's off_t can hold."""

_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_PATTERN = re.compile(r"\s*(\d+)\s*([A-Za-z]*)\s*")


def as_nbytes(size: Size, what: str = "size", *, minimum: int = 1) -> int:
    """A size in bytes from an int or an IEC string such as "64KiB", "2MiB", "1GiB".

    Raises: TypeError for other types; ValueError for an unknown unit, or a
        number below `minimum` or beyond what an off_t holds.
    """
    if type(size) is int and minimum <= size <= LIMIT_NBYTES:  # nearly always
        return size
    if isinstance(size, str):
        match = _PATTERN.fullmatch(size)
        if match is None or match[2] not in _UNITS:
            raise ValueError(f"{what} {size!r} is not a size; write 65536, '64KiB', '2MiB' or '1GiB'")
        nbytes = int(match[1]) * _UNITS[match[2]]
    else:
        try:
            nbytes = operator.index(size)
        except TypeError:
            raise TypeError(
                f"{what} must be an int in bytes or a string such as '64KiB', not {type(size).__name__}"
            ) from None
    if not minimum <= nbytes <= LIMIT_NBYTES:
        raise ValueError(f"{what} {nbytes:,} must be between {minimum} and {LIMIT_NBYTES:,} bytes")
    return nbytes


def round_up(nbytes: int, unit: int) -> int:
    """The smallest multiple of `unit`, a power of two, that is >= nbytes."""
    return (nbytes + unit - 1) & -unit


def round_down(nbytes: int, unit: int) -> int:
    """The largest multiple of `unit`, a power of two, that is <= nbytes."""
    return nbytes & -unit


def next_power_of_two(number: int) -> int:
    """The smallest power of two >= number, for number >= 1."""
    return 1 << (number - 1).bit_length()


def check_range(offset: int, nbytes: int, limit: int, what: str = "range") -> None:
    """The only range check in the package: [offset, offset + nbytes) inside [0, limit).

    Raises: ValueError, with all three numbers.
    """
    if not (0 <= offset <= limit and 0 <= nbytes <= limit - offset):
        raise ValueError(f"{what} of {nbytes:,} bytes at offset {offset:,} does not fit in {limit:,} bytes")


def check_multiple(number: int, unit: int, what: str) -> None:
    """Raises: ValueError unless `number` is a multiple of `unit`."""
    if number % unit:
        raise ValueError(
            f"{what} {number:,} is not a multiple of the page size {unit:,}; "
            f"use {number - number % unit:,} or {number - number % unit + unit:,}"
        )


def check_address(address: int | None, page_nbytes: int) -> None:
    """Raises: ValueError unless `address` is None or a positive multiple of the page size."""
    if address is not None:
        as_nbytes(address, "address")
        check_multiple(address, page_nbytes, "address")


def as_range(
    offset: Size, nbytes: Size | None, limit: int, unit: int, what: str, *, whole: bool = False
) -> tuple[int, int]:
    """Offset and length in bytes of a stretch of pages inside [0, limit).

    Args: nbytes: None: up to the limit. unit: the page size, of which the offset must be a multiple.
        whole: the length must be one too, unless it reaches the limit.
    Raises: TypeError, ValueError.
    """
    # an argument's full name is put together only where it is needed for a refusal
    start = offset if type(offset) is int else as_nbytes(offset, f"{what} offset", minimum=0)
    if nbytes is None:
        check_range(start, 0, limit, what)
        count = limit - start
    else:
        count = nbytes if type(nbytes) is int else as_nbytes(nbytes, f"{what} nbytes", minimum=0)
        check_range(start, count, limit, what)
    if start % unit:
        check_multiple(start, unit, f"{what} offset")
    if whole and start + count != limit:
        check_multiple(count, unit, f"{what} nbytes")
    return start, count


def format_nbytes(nbytes: int) -> str:
    """A size for people: "64 KiB", "1.5 GiB"; whole numbers stay whole."""
    for name, unit in reversed(_UNITS.items()):
        if unit > 1 and nbytes >= unit:
            whole, rest = divmod(nbytes, unit)
            return f"{whole:,} {name}" if not rest else f"{nbytes / unit:,.1f} {name}"
    return f"{nbytes:,} B"
