"""Handles: the same array in another process, by every road."""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import os
import pickle
import socket
import struct
import subprocess
import sys
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mirrormap as mm
from support import PAGE


def worker(handle: mm.Handle, replies: Any) -> None:
    array = handle.open()
    replies.put((str(array.dtype), array.shape, array.strides, array.flags.writeable, array.tolist()))
    if array.flags.writeable:
        array[...] = array + 1
    del array


def there_and_back(array: np.ndarray[Any, Any], method: str) -> None:
    context = multiprocessing.get_context(method)
    replies = context.SimpleQueue()
    with mm.handle(array) as sent:
        before = array.tolist()
        process = context.Process(target=worker, args=(sent, replies))
        process.start()
        seen = replies.get()
        process.join()
        process.close()
    replies.close()
    assert seen == (str(array.dtype), array.shape, array.strides, array.flags.writeable, before)
    if array.flags.writeable:
        assert np.array_equal(array, np.array(before, array.dtype) + 1)
    gc.collect()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.leaks_by_nature  # the forkserver and the resource sharer's thread stay
def test_the_same_array_in_another_process(method: str) -> None:
    base = mm.zeros((40, 50), "f4")
    base[:] = np.arange(2000).reshape(40, 50)
    there_and_back(base, method)
    there_and_back(base[5:30:3, ::-2].T, method)
    base.flags.writeable = False
    there_and_back(base, method)


@pytest.mark.leaks_by_nature  # the resource sharer's thread stays
def test_a_pickle_in_this_process_and_a_pipe() -> None:
    array = mm.full(1000, 7, "i2")
    again = pickle.loads(pickle.dumps(mm.handle(array))).open()
    again[0] = 8
    assert array[0] == 8


def by_socket(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    one, other = socket.socketpair()
    with one, other, mm.handle(array) as sent:
        sent.send(one)
        with mm.Handle.receive(other) as received:
            assert (received.dtype, received.shape, received.readonly) == (
                sent.dtype,
                sent.shape,
                sent.readonly,
            )
            return received.open()


def test_over_a_socket(tmp_path: Path, huge: int) -> None:
    kind = np.dtype([("a", "i4"), ("b", "f8", (2,))], align=True)
    file = np.memmap(tmp_path / "data", "i4", "w+", shape=(3000,))
    with mm.Growable("f8") as grown:
        grown.extend(range(10_000))
        rows = grown.array
        block = SharedMemory(create=True, size=5000)
        shared = np.frombuffer(block.buf, "u1")
        pieces = mm.stitch([mm.full(PAGE, 1, "u1"), mm.full(PAGE, 2, "u1")])
        sources: list[np.ndarray[Any, Any]] = [
            rows, rows[5::3], shared, pieces, file, file[100:200], mm.zeros(5, kind), mm.zeros((), "f4"),
            mm.full(huge, 3, "u1", page_size=huge), np.frombuffer(mmap.mmap(-1, PAGE), "M8[ns]"),
        ]  # fmt: skip
        for source in sources:
            source.flags.writeable = True
            again = by_socket(source)
            assert again.dtype == source.dtype
            assert (again.shape, again.strides) == (source.shape, source.strides)
            assert np.array_equal(again, source)
            assert mm.shares_memory(again, source)
        del sources, source, rows, shared, again
        block.close()
        block.unlink()


def test_read_only_stays_read_only_down_to_the_descriptor() -> None:
    array = mm.zeros(10)
    array.flags.writeable = False
    again = by_socket(array)
    assert not again.flags.writeable
    with pytest.raises(mm.MapError, match="opened with fewer rights"):
        mm.mirror(again, protection="rw")
    with pytest.raises(ValueError):
        again.flags.writeable = True


def test_refusals() -> None:
    with pytest.raises(mm.NotMirrorableError, match="share"):
        mm.handle(np.zeros(PAGE))
    with pytest.raises(TypeError, match="not list"):
        mm.handle([1])  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        mm.handle(np.array([None] * 9))
    with pytest.raises(ValueError, match="empty"):
        mm.handle(mm.zeros(0))
    with pytest.raises(TypeError, match=r"handle\(array\)"):
        mm.Handle()
    handle = mm.handle(mm.zeros(3))
    assert "float64 (3,)" in repr(handle)
    handle.close()
    with pytest.raises(mm.ClosedError):
        handle.open()
    with pytest.raises(mm.ClosedError):
        pickle.dumps(handle)


def sent_raw(data: bytes, fds: list[int]) -> None:
    one, other = socket.socketpair()
    with one, other:
        socket.send_fds(one, [data], fds)
        one.shutdown(socket.SHUT_WR)
        mm.Handle.receive(other).open()


def message(text: str, count: int = 1) -> bytes:
    return struct.pack("<8sII", b"mm.array", len(text), count) + text.encode()


def test_what_comes_over_a_socket_is_not_trusted() -> None:
    good = '{"descr": "<f8", "shape": [4], "strides": [8], "place": [0, 0, 0], "runs": [0, 0, 32], "sizes": [PAGE]}'.replace(
        "PAGE", str(PAGE)
    )
    with mm.Pages(PAGE) as pages:
        fd = pages.fileno()
        sent_raw(message(good), [fd])
        pipe = os.pipe()
        try:
            for old, new in (
                ("[0, 0, 32]", "[0, 0, 99999]"), ("[0, 0, 32]", "[1, 0, 32]"), ("[0, 0, 32]", "[0, 8, 32]"),
                ("[0, 0, 32]", "[]"), ("[0, 0, 32]", "[0, 0]"), ("[0, 0, 32]", "[-1, 0, 32]"),
                (f"[{PAGE}]", "[1, 2]"), ('"<f8"', '"|O"'), ("[4]", "[5]"), ("[8]", "[-8]"), ("[8]", "[8, 8]"),
                ("[4]", "[-4]"), ("[4]", '["x"]'), ("[0, 0, 0]", "[0, 64, 0]"), ("[4]", "[4.0]"), ("[4]", "{}"),
                ("[0, 0, 0]", f"[{1 << 70}, 0, 0]"), ("[0, 0, 0]", "[]"), ("{", "{{"), ("[0, 0, 0]", "[99999, 0, 0]"),
                ('"<f8"', "[[]]"), ('"<f8"', '[["a", 5]]'), ('"<f8"', "null"), ("[4]", "[2305843009213693952, 0]"),
            ):  # fmt: skip
                with pytest.raises(mm.CorruptError):
                    pytest.fail(f"{new} gave {sent_raw(message(good.replace(old, new, 1)), [fd])}")
            for data, fds in (
                (b"x" * 16, [fd]),
                (message(good, 2), [fd]),
                (message(good), [fd, fd]),
                (message(good), [pipe[0]]),
            ):
                with pytest.raises(mm.CorruptError):
                    sent_raw(data, fds)
        finally:
            os.close(pipe[0])
            os.close(pipe[1])
        for data in (b"", message(good)[:9], message(good)[:-3]):
            one, other = socket.socketpair()
            with one, other:
                if data:
                    socket.send_fds(one, [data], [fd])
                one.shutdown(socket.SHUT_WR)
                with pytest.raises(EOFError):
                    mm.Handle.receive(other)


CHILD = """
import socket, sys, mirrormap as mm
with socket.socket(fileno=int(sys.argv[1])) as connection, mm.Handle.receive(connection) as handle:
    handle.open()[:] = 5
"""


def test_an_unrelated_program_over_a_unix_socket() -> None:
    array = mm.zeros(100, "u1")
    one, other = socket.socketpair()
    with one, other, mm.handle(array) as handle:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(other.fileno())], pass_fds=[other.fileno()]
        )
        handle.send(one)
        assert child.wait() == 0
    assert (array == 5).all()
