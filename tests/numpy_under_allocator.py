"""A pytest plugin: NumPy's own tests with every array on shareable pages.

python -m pytest -p numpy_under_allocator --pyargs numpy._core.tests.test_multiarray
"""

from __future__ import annotations

import os

import numpy as np
import pytest

import mirrormap as mm

MIN_NBYTES = int(os.environ.get("MIRRORMAP_MIN_NBYTES", "1"))
allocator = mm.numpy_allocator(MIN_NBYTES)


def pytest_configure() -> None:
    allocator.install()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> None:
    with allocator:  # whatever context the test runs in
        return (yield)


def pytest_sessionfinish() -> None:
    probe = np.empty(max(MIN_NBYTES, 64), "u1")
    assert mm.is_mirror(probe, mm.mirror(probe))
    print(f"\narrays under the allocator at the end: {allocator.state}")
