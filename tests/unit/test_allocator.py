"""numpy_allocator(): everybody's arrays on shareable pages, and nobody notices."""

from __future__ import annotations

import asyncio
import os
import pickle
import re
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mirrormap as mm
from support import PAGE, TESTS, run_python, succeeds

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _empty_cache() -> Generator[None]:
    """The cache is the process's, and would look like a leak."""
    yield
    mm.numpy_allocator().trim()


def is_ours(array: np.ndarray[Any, Any]) -> bool:
    try:
        return bool(mm.is_mirror(array, mm.mirror(array)))
    except mm.NotMirrorableError:
        return False


def test_large_arrays_can_be_mirrored_and_outlive_the_block() -> None:
    with mm.numpy_allocator() as allocator:
        large, small = np.ones(MIB), np.ones(1000)
        text = np.full(MIB, "x", "U1")
        assert is_ours(large)
        assert is_ours(large * 2)
        assert is_ours(text)
        assert not is_ours(small)
        assert allocator.state.arrays == 2
    assert not is_ours(np.ones(MIB))
    other = mm.mirror(large)
    other[0] = 7
    assert large[0] == 7
    shown = mm.handle(large).open()
    del large, other
    assert shown[0] == 7
    del text, shown
    assert allocator.state.arrays == 0


def test_what_libraries_make() -> None:
    pd = pytest.importorskip("pandas")
    signal = pytest.importorskip("scipy.signal")
    with mm.numpy_allocator("64KiB"):
        assert is_ours(signal.hilbert(np.ones(PAGE * 10)))
        frame = pd.DataFrame({"a": np.arange(100_000.0), "b": 1.0})
        assert is_ours(frame.rolling(3).mean()["a"].to_numpy())
        assert is_ours(np.fft.fft(np.ones(100_000)))


def test_pages_that_a_mirror_shows_are_not_used_again() -> None:
    with mm.numpy_allocator() as allocator:
        first = np.full(MIB, 1, "u1")
        address = first.ctypes.data
        del first
        assert allocator.state.cached == 1
        again = np.full(MIB, 2, "u1")
        assert again.ctypes.data == address
        shown = mm.mirror(again)
        del again
        assert allocator.state.cached == 0
        fresh = [np.full(MIB, 3, "u1") for _ in range(3)]
        assert shown.min() == shown.max() == 2
        del fresh, shown
        assert allocator.state.cached == 3
        assert allocator.trim(2 * MIB) == MIB
        assert allocator.trim() == 2 * MIB
        assert allocator.state.cached_nbytes == 0


def test_zeros_are_zero_also_on_used_pages() -> None:
    with mm.numpy_allocator():
        used = np.full(4 * MIB, 255, "u1")
        del used
        assert not np.zeros(4 * MIB - 5, "u1").any()
        assert not np.zeros(4 * MIB, "u1").any()


def test_the_cache_is_bounded() -> None:
    with mm.numpy_allocator(cache="3MiB") as allocator:
        many = [np.ones(MIB, "u1") for _ in range(10)]
        del many
        assert allocator.state.cached_nbytes == 3 * MIB
        huge = np.ones(8 * MIB, "u1")
        del huge
        assert allocator.state.cached_nbytes == 3 * MIB
    with mm.numpy_allocator(cache=0) as allocator:
        assert allocator.state.cached_nbytes == 0
        one = np.ones(MIB, "u1")
        del one
        assert allocator.state.cached_nbytes == 0


def test_the_cache_keeps_no_more_blocks_than_can_be_looked_through() -> None:
    with mm.numpy_allocator(1) as allocator:
        allocator.trim()
        arrays = [np.full(3, number) for number in range(2000)]
        assert all((array == number).all() for number, array in enumerate(arrays))
        arrays.clear()
        assert allocator.state.cached == 1024
        assert allocator.trim() >= 1024 * PAGE


MAPPINGS_RUN_OUT = """
import mmap, numpy as np, mirrormap as mm
most = int(open("/proc/sys/vm/max_map_count").read())
with mm.numpy_allocator("64KiB") as allocator:
    kept = [np.ones(1 << 16, "u1") for _ in range(200)]
    kept.clear()
    assert allocator.state.cached == 200
    others = []
    try:
        while True:  # neighbours of other protection do not merge
            others.append(mmap.mmap(-1, mmap.PAGESIZE, prot=1 + 2 * (len(others) % 2)))
    except OSError:
        pass
    array = np.ones(1 << 17, "u1")  # too large for any of those that are kept
    assert array.all() and allocator.state.cached == 0
    del others
"""


def test_what_is_kept_makes_room_for_a_new_array_where_mappings_run_out() -> None:
    if int(Path("/proc/sys/vm/max_map_count").read_text()) > 1 << 17:
        pytest.skip("more mappings than a test should make")
    succeeds(MAPPINGS_RUN_OUT)


MANY = """
import numpy as np, mirrormap as mm
most = int(open("/proc/sys/vm/max_map_count").read())
with mm.numpy_allocator(1) as allocator:
    arrays = [np.full(2, number) for number in range(most + 1)]
    zeros = np.zeros(9)
    assert allocator.state.arrays <= most // 2 and not zeros.any()
    assert all(array[1] == number for number, array in enumerate(arrays))
    arrays[-1].resize(900, refcheck=False)
    assert arrays[-1].sum() == 2 * most
    mm.mirror(arrays[0])[0] = 7
    assert arrays[0][0] == 7
"""


def test_more_arrays_than_a_process_may_have_mappings() -> None:
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    if most > 1 << 17:
        pytest.skip("more mappings than a test should make")
    if most * PAGE > psutil.virtual_memory().available:
        pytest.skip("as many pages as there may be mappings are more than this machine has")
    succeeds(MANY)


@given(st.lists(st.integers(0, 40 * PAGE), min_size=2, max_size=8))
def test_resizing_keeps_what_there_was(counts: list[int]) -> None:
    with mm.numpy_allocator(8 * PAGE):
        array = np.arange(counts[0], dtype="u4")
        plain = array.copy()
        for count in counts[1:]:
            array.resize(count, refcheck=False)
            plain = np.concatenate([plain[:count], np.zeros(max(0, count - len(plain)), "u4")])
            assert np.array_equal(array, plain)
            assert is_ours(array) == (array.nbytes >= 8 * PAGE) if count else not array.size


def test_growth_is_by_page_tables_and_mirrors_stay() -> None:
    with mm.numpy_allocator() as allocator:
        array = np.full(MIB, 7, "u1")
        shown = mm.mirror(array)
        array.resize(64 * MIB, refcheck=False)
        array[0] = 9
        assert shown[0] == 9
        assert mm.shares_memory(array, shown)
        array.resize(2 * MIB, refcheck=False)
        assert allocator.state.nbytes == 2 * MIB
        assert array[0] == 9
        assert array[1] == 7


def test_huge_pages(huge: int) -> None:
    with mm.numpy_allocator(page_size=huge, cache=0):
        array = np.ones(3 * huge // 2, "u1")
        shown = mm.mirror(array)
        assert mm.is_mirror(array, shown)
        array.resize(2 * huge + 1, refcheck=False)
        array[-1] = 5
        assert array[: 3 * huge // 2].all()
        many = [np.ones(8 * huge, "u1") for _ in range(3)]  # more than the pool has
        assert all(is_ours(one) for one in many)
        del many, array, shown
    with mm.numpy_allocator(page_size="thp"):
        assert is_ours(np.ones(8 * MIB, "u1"))


def test_this_context_only() -> None:
    async def other() -> bool:
        return is_ours(np.ones(MIB))

    async def tasks() -> list[bool]:
        with mm.numpy_allocator():
            inside = asyncio.create_task(other())
        outside = asyncio.create_task(other())
        return [await inside, await outside]

    assert asyncio.run(tasks()) == [True, False]
    with mm.numpy_allocator(), ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: is_ours(np.ones(MIB))).result() is False
    with mm.numpy_allocator(2 * MIB), mm.numpy_allocator(MIB):
        assert is_ours(np.ones(MIB, "u1"))


def test_installed_it_is_there_in_threads_started_later() -> None:
    ready, go, seen = threading.Event(), threading.Event(), []

    def early() -> None:
        ready.set()
        go.wait()
        seen.append(is_ours(np.ones(MIB)))

    class Worker(threading.Thread):
        def run(self) -> None:
            seen.append(is_ours(np.ones(MIB)))

    running = threading.Thread(target=early)
    running.start()
    ready.wait()
    allocator = mm.numpy_allocator()
    allocator.install()
    try:
        with pytest.raises(mm.MirrorError, match="already"):
            mm.numpy_allocator().install()
        go.set()
        running.join()
        worker = Worker()
        worker.start()
        worker.join()
        with ThreadPoolExecutor(1) as pool:
            seen.append(pool.submit(lambda: is_ours(np.ones(MIB))).result())
    finally:
        allocator.uninstall()
    assert seen == [False, True, True]
    assert not is_ours(np.ones(MIB))
    with pytest.raises(mm.MirrorError, match="not installed"):
        allocator.uninstall()
    late = Worker()
    late.start()
    late.join()
    assert seen[-1] is False


def test_threads_at_once() -> None:
    def work(number: int) -> bool:
        with mm.numpy_allocator(PAGE):
            random = np.random.default_rng(number)
            held = []
            for _ in range(300):
                array = np.full(int(random.integers(1, 50)) * PAGE, number, "u1")
                held.append(array)
                if len(held) > 5:
                    held.pop(int(random.integers(0, 5)))
                array.resize(int(random.integers(1, 50)) * PAGE, refcheck=False)
            return all((array[: min(len(array), PAGE)] == number).all() for array in held)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


FORK = """
import os, numpy as np, mirrormap as mm
with mm.numpy_allocator() as allocator:
    kept, freed = np.full(1 << 20, 1, "u1"), np.full(1 << 20, 2, "u1")
    cached = np.full(1 << 20, 3, "u1"); del cached
    child = os.fork()
    if not child:
        assert allocator.state.cached == 0
        del freed                                # the parent has it still
        assert allocator.state.cached == 0
        new = [np.full(1 << 20, 9, "u1") for _ in range(4)]
        assert kept.min() == kept.max() == 1
        del new
        assert allocator.state.cached == 4       # these are the child's own
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert freed.min() == freed.max() == 2 and kept.min() == kept.max() == 1
    del freed
    assert allocator.state.cached == 1           # not `freed`, which a child may have shown
    assert not np.zeros(1 << 20, "u1").any()
"""


def test_fork() -> None:
    done = run_python(FORK)
    assert done.returncode == 0, done.stderr


def test_pickles_and_tracemalloc() -> None:
    with mm.numpy_allocator():
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            array = np.ones(4 * MIB, "u1")
            assert tracemalloc.get_traced_memory()[0] - before > 4 * MIB - 1000
            again = pickle.loads(pickle.dumps(array, protocol=5))
            assert np.array_equal(array, again)
            del array, again
            assert tracemalloc.get_traced_memory()[0] - before < MIB
        finally:
            tracemalloc.stop()


def test_few_descriptors_are_taken() -> None:
    done = run_python(
        "import resource, os, numpy as np, mirrormap as mm\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "with mm.numpy_allocator(65536, cache=0):\n"
        "    many = [np.full(65536, index, 'u1') for index in range(200)]\n"
        "    assert len(os.listdir('/proc/self/fd')) < 30\n"
        "    assert all(mm.is_mirror(a, mm.mirror(a)) for a in many)\n"
        "    for index, a in enumerate(many):\n"
        "        a.resize(200_000, refcheck=False)\n"
        "        assert (a[:65536] == index).all() and not a[65536:].any()\n"
        "    del many, a\n"
        "    assert len(os.listdir('/proc/self/fd')) < 8"
    )
    assert done.returncode == 0, done.stderr


def test_no_memory_is_a_memory_error() -> None:
    with mm.numpy_allocator():
        with pytest.raises(MemoryError):
            np.empty((1 << 63) - 1, "u1")
        with pytest.raises(MemoryError):
            np.zeros((1 << 63) - 1, "u1")
        array = np.ones(MIB, "u1")
        with pytest.raises(MemoryError):
            array.resize((1 << 63) - 1, refcheck=False)
        assert array.all()


def test_bad_input() -> None:
    for wrong in ({"min_nbytes": 0}, {"min_nbytes": "1MB"}, {"page_size": 12345}, {"cache": -1}):
        with pytest.raises(ValueError):
            mm.numpy_allocator(**wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        mm.numpy_allocator(1.5)  # type: ignore[arg-type]
    assert "from 1 MiB" in repr(mm.numpy_allocator())


def test_part_of_numpys_own_tests() -> None:
    """All of them: make test-numpy."""
    pytest.importorskip("numpy._core.tests")
    chosen = "TestResize or TestCreation or TestPickling or TestIO or TestTake or TestStats or TestFromBuffer"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "numpy_under_allocator",
        "-p",
        "no:cacheprovider",
        "-q",
        "--pyargs",
    ]
    done = subprocess.run(
        [*command, "numpy._core.tests.test_multiarray", "-k", chosen],
        capture_output=True, text=True, timeout=250, cwd="/", env={**os.environ, "PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 200
