"""Sizes, rounding, and the one range check."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrormap.units import (
    LIMIT_NBYTES,
    as_nbytes,
    as_range,
    check_range,
    format_nbytes,
    next_power_of_two,
    round_down,
    round_up,
)


@pytest.mark.parametrize(
    ("size", "nbytes"),
    [
        (1, 1),
        ("1", 1),
        ("64KiB", 65536),
        ("2 MiB", 2 << 20),
        ("1GiB", 1 << 30),
        (np.int64(7), 7),
        ("1TiB", 1 << 40),
    ],
)
def test_sizes_are_ints_or_iec_strings(size: int | str, nbytes: int) -> None:
    assert as_nbytes(size) == nbytes


@pytest.mark.parametrize(
    "size", ["64KB", "2M", "", "-1", "1.5GiB", "0x10", "GiB", 0, -1, 1 << 63, "99999999TiB"]
)
def test_what_is_no_size_is_a_value_error(size: int | str) -> None:
    with pytest.raises(ValueError, match="size"):
        as_nbytes(size)


@pytest.mark.parametrize("size", [1.5, None, b"64KiB", [1]])
def test_what_is_no_number_is_a_type_error(size: object) -> None:
    with pytest.raises(TypeError, match="int in bytes"):
        as_nbytes(size)  # type: ignore[arg-type]


@given(st.integers(0, 1 << 62), st.integers(0, 30).map(lambda bits: 1 << bits))
def test_rounding_brackets_the_number(number: int, unit: int) -> None:
    assert round_down(number, unit) <= number <= round_up(number, unit)
    assert round_up(number, unit) % unit == round_down(number, unit) % unit == 0
    assert round_up(number, unit) - round_down(number, unit) in (0, unit)


@given(st.integers(-10, 100), st.integers(-10, 100), st.integers(0, 100))
def test_the_range_check_is_the_definition(offset: int, nbytes: int, limit: int) -> None:
    fits = offset >= 0 and nbytes >= 0 and offset + nbytes <= limit
    if fits:
        check_range(offset, nbytes, limit)
    else:
        with pytest.raises(ValueError, match="does not fit"):
            check_range(offset, nbytes, limit)


@given(st.integers(1, 1 << 50))
def test_next_power_of_two(number: int) -> None:
    power = next_power_of_two(number)
    assert power >= number
    assert power & (power - 1) == 0
    assert power // 2 < number


def test_a_range_of_pages_takes_strings_and_the_rest_by_default() -> None:
    assert as_range("4KiB", None, 12288, 4096, "x") == (4096, 8192)
    assert as_range(0, 100, 12288, 4096, "x") == (0, 100)
    with pytest.raises(ValueError, match="multiple of the page size 4,096; use 8,192 or 12,288"):
        as_range(0, 8193, 16384, 4096, "x", whole=True)
    with pytest.raises(ValueError, match="multiple of the page size"):
        as_range(1, None, 12288, 4096, "x")
    with pytest.raises(ValueError, match="does not fit"):
        as_range(16384, None, 12288, 4096, "x")


def test_sizes_are_written_for_people() -> None:
    assert [format_nbytes(n) for n in (0, 1000, 65536, 3 << 29, LIMIT_NBYTES)] == [
        "0 B", "1,000 B", "64 KiB", "1.5 GiB", "8,388,608.0 TiB",
    ]  # fmt: skip
