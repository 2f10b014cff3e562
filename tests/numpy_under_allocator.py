"""A pytest plugin: NumPy's own tests with every array on shareable pages.

python -m pytest -p numpy_under_allocator --pyargs numpy._core.tests.test_multiarray
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

import mirrormap as mm

MIN_NBYTES = int(os.environ.get("MIRRORMAP_MIN_NBYTES", "1"))
allocator = mm.numpy_allocator(MIN_NBYTES)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """What a test and its fixtures make. What modules make at their import, and keep, would be more mappings than
    a process may have."""
    allocator.install()
    try:
        with allocator:  # whatever context the test runs in
            return (yield)
    finally:
        allocator.uninstall()


def pytest_sessionfinish() -> None:
    with allocator:
        probe = np.empty(max(MIN_NBYTES, 64), "u1")
    assert mm.is_mirror(probe, mm.mirror(probe))
    print(f"\narrays under the allocator at the end: {allocator.state}")
