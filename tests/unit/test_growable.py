"""Growable: growth under live arrays, memory given back, files that survive a kill."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mirrormap as mm
from mirrormap import procmaps
from mirrormap.arrayfile import LIVE_AT
from support import PAGE, SANITIZED, TESTS, run_python


def pss_kib() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError


def test_arrays_taken_before_stay_and_show_the_same() -> None:
    with mm.Growable("i8", (2,)) as grown:
        grown.append([1, 2])
        first = grown.array
        address = grown.address
        for start in range(0, 100_000, 1000):
            grown.extend(np.arange(start, start + 2000).reshape(1000, 2))
        assert grown.address == address
        assert len(grown) == 100_001
        first[0] = 7, 8
        assert grown.array[0].tolist() == [7, 8]
        assert np.shares_memory(first, grown.array)
        assert first.shape == (1, 2)
        del first


def test_beyond_the_reserve_old_views_are_mirrors() -> None:
    grown = mm.Growable("f8", reserve=PAGE)
    grown.append(1.5)
    views = [grown.array]
    for _ in range(12):
        grown.extend(np.ones(3 * len(grown)))
        views.append(grown.array)
    addresses = {view.__array_interface__["data"][0] for view in views}
    assert len(addresses) > 1
    views[0][0] = 42
    assert all(view[0] == 42 for view in views)
    assert mm.shares_memory(views[0], views[-1])
    assert (grown.array[1:] == 1).all()
    del views
    grown.close()


@pytest.mark.skipif(SANITIZED, reason="a sanitizer's own memory is in the figures")
def test_memory_is_taken_as_it_is_used_and_given_back() -> None:
    with mm.Growable("u1") as grown:
        before = pss_kib()
        grown.extend(np.ones(64 << 20, "u1"))
        assert grown.array.all()  # where no huge pages were taken, rows are written before they are mapped
        full = pss_kib()
        assert 60 << 10 < full - before < 80 << 10
        assert grown.allocated < 66 << 20
        grown.resize(1 << 20)
        assert full - pss_kib() > 60 << 10
        assert grown.allocated == 1 << 20
        grown.resize(2 << 20)
        assert not grown.array[1 << 20 :].any()
        assert grown.array[: 1 << 20].all()
        grown.shrink_to_fit()
        grown.append(3)
        assert grown[-1] == 3


def test_what_a_view_shows_cannot_be_taken_away() -> None:
    grown = mm.Growable("u1")
    grown.extend(np.ones(10 * PAGE, "u1"))
    view = grown.array[: PAGE - 5]
    with pytest.raises(BufferError, match="still show rows beyond 100"):
        grown.resize(100)
    assert len(grown) == 10 * PAGE
    assert view.all()
    other = mm.mirror(grown.array)
    del view
    with pytest.raises(BufferError):
        grown.resize(100)
    del other
    short = grown.array[:0]
    del short
    grown.resize(100)
    keep = grown.array
    grown.resize(200)
    grown.resize(100)
    grown.shrink_to_fit()
    assert keep.all()
    with pytest.raises(BufferError):
        grown.close()
    grown.append(1)
    del keep
    grown.close()
    with pytest.raises(mm.ClosedError):
        _ = grown.array


def test_huge_pages(huge: int) -> None:
    beyond = procmaps.huge_pool(huge).available + 1
    with mm.Growable("u1", page_size=huge, reserve=2 * beyond * huge) as grown:
        grown.extend(np.full(huge + 1, 3, "u1"))
        assert grown.allocated == 2 * huge
        with pytest.raises(mm.MapError, match="pool of"):
            grown.resize(beyond * huge)
        assert len(grown) == huge + 1
        grown.resize(5)
        grown.shrink_to_fit()
        assert grown.allocated == huge
        assert grown.array.tolist() == [3] * 5


def test_types_of_rows() -> None:
    kind = np.dtype([("t", "datetime64[ns]"), ("v", "f4", (2,))])
    with mm.Growable(kind) as grown:
        grown.append((np.datetime64(5, "ns"), [1, 2]))
        grown.extend(np.zeros(3, kind))
        assert grown.array["v"][0].tolist() == [1, 2]
    with mm.Growable(("f4", (3,)), 2) as grown:
        grown.append(np.ones((2, 3)))
        assert grown.array.shape == (1, 2, 3)
        assert grown.item_shape == (2, 3)
    with mm.Growable("u1") as grown:
        grown.extend([1, 2, 3])
        grown.extend(grown.array)
        assert np.asarray(grown).tolist() == [1, 2, 3, 1, 2, 3]
        grown[0] = 9
        assert grown[:2].tolist() == [9, 2]


def test_refusals_come_before_anything_is_touched() -> None:
    for wrong in (lambda: mm.Growable("O"), lambda: mm.Growable("f4", reserve="64 apples"),
                  lambda: mm.Growable("f4", (-1,)), lambda: mm.Growable("f4", (0,)),
                  lambda: mm.Growable("S0"), lambda: mm.Growable("f4", page_size=3),
                  lambda: mm.Growable("f4", path="x", page_size="huge")):  # fmt: skip
        with pytest.raises((TypeError, ValueError)):
            wrong()
    with mm.Growable("f4", (2,)) as grown:
        for bad in ([1], [[1, 2]], 1, "x"):
            with pytest.raises(ValueError):
                grown.append(bad)
        for bad in ([1, 2], [[1], [2]], 3, [[[1, 2]]]):
            with pytest.raises(ValueError):
                grown.extend(bad)
        with pytest.raises(ValueError, match="negative"):
            grown.resize(-1)
        with pytest.raises(TypeError):
            grown.resize(1.5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="more than any object"):
            grown.resize(1 << 62)
        with pytest.raises(TypeError, match="handle"):
            pickle.dumps(grown)
        assert len(grown) == 0
        assert grown.array.shape == (0, 2)
        grown.extend(np.zeros((0, 2)))
        assert len(grown) == 0


def test_a_forked_child_reads_and_may_not_append() -> None:
    with mm.Growable("i4") as grown:
        grown.extend(range(10))
        child = os.fork()
        if not child:
            try:
                grown.append(1)
            except mm.MirrorError:
                os._exit(int(grown.array.sum()))
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 45
        assert len(grown) == 10


def test_threads_take_turns() -> None:
    with mm.Growable("i4", (2,)) as grown:

        def work(number: int) -> None:
            for index in range(500):
                grown.append((number, index))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rows = grown.array
        assert sorted(map(tuple, rows.tolist())) == [(n, i) for n in range(4) for i in range(500)]
        del rows


# --- files ---------------------------------------------------------------------------------


def test_a_file_is_appended_to_while_others_read(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    with mm.Growable("i8", (3,), path=path) as grown, mm.Growable.open(path, "r") as reader:
        assert len(reader) == 0
        assert reader.array.shape == (0, 3)
        for round in range(5):
            grown.extend(np.full((10_000, 3), round))
            assert len(reader) == 10_000 * (round + 1)
            assert (reader.array[-1] == round).all()
        assert not reader.array.flags.writeable
        with pytest.raises(mm.MirrorError, match="mode='r'"):
            reader.append([1, 2, 3])
        with pytest.raises(mm.BusyError, match="writer"):
            mm.Growable.open(path)
        offset = grown.data_offset
    assert path.stat().st_size == offset + 50_000 * 24
    assert (np.memmap(path, "i8", "r", offset).reshape(-1, 3)[::10_000, 0] == range(5)).all()
    with mm.Growable.open(path) as again:
        assert again.dtype == "i8"
        assert len(again) == 50_000
        again.append([7, 7, 7])
        again.resize(2)
        assert again.array.tolist() == [[0] * 3] * 2
    with mm.Growable("i8", (3,), path=path) as again:
        assert len(again) == 2
        again.resize(4)
        assert not again.array.any()
    with pytest.raises(ValueError, match="holds rows of dtype int64"):
        mm.Growable("i4", (3,), path=path)


WRITER = """
import sys, numpy as np, mirrormap as mm
grown = mm.Growable("i8", path=sys.argv[1])
for block in range(10**9):
    grown.extend(np.full(1000, block))
    if block % 5 == 0:
        grown.flush()
        print(len(grown), flush=True)
"""


def test_after_kill_9_what_was_flushed_is_there(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    for _ in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(20)]
        writer.send_signal(signal.SIGKILL)
        told += [int(line) for line in writer.stdout if line.endswith("\n")]
        writer.wait()
        writer.stdout.close()
        with mm.Growable.open(path) as grown:
            assert len(grown) >= told[-1]
            assert (grown.array[: told[-1]].reshape(-1, 1000) == grown.array[: told[-1] : 1000, None]).all()
            count = len(grown)
            grown.resize(count + 5000)
            assert not grown.array[count:].any()  # what was not committed left nothing behind
            grown.resize(0)


def damage(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_damaged_headers_are_refused_or_cost_one_commit(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    with mm.Growable("i8", path=path) as grown:
        grown.extend(range(1000))
        grown.flush()
        grown.extend(range(1000))
    whole = path.read_bytes()
    damage(path, 128, b"\xff" * 40)
    with mm.Growable.open(path, "r") as reader:
        assert len(reader) in (1000, 2000)
    damage(path, 192, b"\xff" * 40)
    with pytest.raises(mm.CorruptError, match="both commits"):
        mm.Growable.open(path)
    for at, data in ((0, b"x"), (16, b"\7"), (20, b"\1"), (24, b"\xff\xff"), (28, b"abcd"), (260, b"'''")):
        path.write_bytes(whole)
        damage(path, at, data)
        with pytest.raises(mm.CorruptError):
            mm.Growable.open(path)
    path.write_bytes(whole[:5000])
    with pytest.raises(mm.CorruptError, match="ends before them"):
        mm.Growable.open(path)
    path.write_bytes(b"")
    with pytest.raises(mm.CorruptError, match="no array file"):
        mm.Growable.open(path)
    path.write_bytes(whole)
    with mm.Growable.open(path, "r") as reader:
        damage(path, LIVE_AT, b"\xff" * 8)
        with pytest.raises(mm.CorruptError, match="ends before them"):
            len(reader)
    with pytest.raises(FileNotFoundError):
        mm.Growable.open(tmp_path / "none")
    with pytest.raises(ValueError, match="mode"):
        mm.Growable.open(path, "w")  # type: ignore[arg-type]


def test_random_damage_never_crashes(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    with mm.Growable([("a", "i4"), ("b", "f8")], (2,), path=path) as grown:
        grown.resize(100)
    whole = path.read_bytes()
    random = np.random.default_rng(3)
    for _ in range(300):
        head = bytearray(whole)
        for at in random.integers(0, 400, 3):
            head[at] = random.integers(0, 256)
        path.write_bytes(head)
        try:
            with mm.Growable.open(path, "r") as reader:
                reader.array.sum if len(reader) else None
        except mm.CorruptError:
            pass


FULL = """
import resource, signal, sys, numpy as np, mirrormap as mm
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
grown = mm.Growable("u1", path=sys.argv[1])
grown.extend(np.ones(1 << 20, "u1"))
resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
try:
    for _ in range(100):
        grown.extend(np.ones(1 << 20, "u1"))
except mm.MapError as error:
    print(error.errno, len(grown) >> 20, bool(grown.array.all()))
"""


def test_a_file_that_may_not_grow_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    code = FULL.replace("sys.argv[1]", repr(str(tmp_path / "rows")))
    done = run_python(code)
    assert done.stdout.split() == [str(errno.EFBIG), "2", "True"], done.stderr


@pytest.mark.skipif(SANITIZED, reason="a sanitizer needs more address space than the limit leaves")
def test_a_limited_address_space_says_so() -> None:
    done = run_python(
        "import resource, mirrormap as mm\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "try: mm.Growable()\n"
        "except mm.MapError as error: print(error)\n"
        "mm.Growable(reserve='1GiB').append(1)"
    )
    assert "RLIMIT_AS" in done.stdout, done.stderr
    assert done.returncode == 0


def test_a_file_without_a_header_page_is_not_left_behind(tmp_path: Path) -> None:
    many: Any = [(f"field{index:03}", "i4") for index in range(PAGE // 12)]
    with pytest.raises(ValueError, match="more than a header holds"):
        mm.Growable(many, path=tmp_path / "rows")
    assert not list(tmp_path.iterdir())
    assert TESTS.exists()
    assert resource.getpagesize() == PAGE
