"""Fixtures every test may rely on: no leaks, and huge pages that are reserved and given back."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from multiprocessing import resource_tracker

import pytest
from hypothesis import HealthCheck, settings

from support import default_huge_nbytes, give_back_huge_pages, grown_since, held, libc, reserved, warm_up

settings.register_profile(
    "ci", max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "emulated", max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.register_profile("dev", max_examples=200, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


# one heap for all threads: glibc reserves another for each otherwise, which looks like a leak
libc.mallopt(-8, 1)
# multiprocessing's own helper process and its pipe stay for the session; start them before counting
resource_tracker.ensure_running()
warm_up()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--soak", action="store_true", help="many times the kills, headers and items (make soak)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Of several workers each has threads before it comes here: for them the environment says what mallopt() did."""
    if config.getoption("dist", "no") != "no":
        os.environ["MALLOC_ARENA_MAX"] = "1"


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether this run has hours instead of minutes."""
    return bool(request.config.getoption("--soak"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of several workers one has all that counts mappings, pages or processes; the others what stands apart."""
    if config.getoption("dist", "no") == "loadgroup":
        for item in items:
            if not item.get_closest_marker("apart"):
                item.add_marker(pytest.mark.xdist_group("memory"))


def pytest_collection_finish() -> None:
    """Take what the tests' own modules hold out of every later collection: there are two a test."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """The fault tests lose huge pages when an unmapping is made to fail; the pool gets them back."""
    give_back_huge_pages()


@pytest.fixture(autouse=True)
def nothing_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compare mappings and descriptors before and after each test, and huge pages around each reservation."""
    if request.node.get_closest_marker("leaks_by_nature"):
        yield
        return
    before = held()
    yield
    grown = grown_since(before, 5)
    assert not grown, f"left behind (before, after): {grown}"


@pytest.fixture
def huge() -> Iterator[int]:
    """The default huge page size, with 16 pages of it free for the test."""
    with reserved(default_huge_nbytes(), 16) as page_nbytes:
        yield page_nbytes
