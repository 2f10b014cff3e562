"""A thread of C that reads what live views show, without the interpreter's lock, while their pages come to share frames."""

from __future__ import annotations

import ctypes
import threading
import time
from pathlib import Path

import mirrormap as mm
from hammer import build
from pinned import Looks
from support import PAGE, PATIENCE_S


class Watch:
    """Reads all that `looks` shows until `end()`, which says whether it was right each time."""

    def __init__(self, library: str, looks: Looks) -> None:
        self.watch = ctypes.CDLL(library).watch
        self.watch.restype = ctypes.c_uint64
        count = len(looks.views)
        self.expected = [ctypes.create_string_buffer(data, len(data)) for data in looks.data.values()]
        self.where = (ctypes.c_void_p * count)(*(looks.where[at] for at in looks.data))
        self.what = (ctypes.c_void_p * count)(*map(ctypes.addressof, self.expected))
        self.nbytes = (ctypes.c_uint64 * count)(*map(len, looks.data.values()))
        self.stop, self.rounds, self.found = ctypes.c_int32(0), ctypes.c_int64(0), -1
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        self.found = self.watch(
            self.where, self.what, self.nbytes, ctypes.c_uint64(len(self.nbytes)),
            ctypes.byref(self.stop), ctypes.byref(self.rounds),
        )  # fmt: skip

    def see(self, rounds: int) -> None:
        """Let it read everything so many times more."""
        goal, end = self.rounds.value + rounds, time.monotonic() + PATIENCE_S
        while self.rounds.value < goal and self.thread.is_alive():
            assert time.monotonic() < end
            time.sleep(0.001)

    def end(self) -> None:
        self.see(1)
        self.stop.value = 1
        self.thread.join()
        assert self.found == 0


def test_reading_while_pages_come_together_and_part(tmp_path: Path) -> None:
    library = build(tmp_path, "watch", [], "-shared", "-fPIC")
    with mm.Heap(PAGE << 14, collector="manual") as heap:
        looks = Looks(heap, False, 6000, 8)
        values = Looks(heap, True, 6000, 8)
        watches = [Watch(library, each) for each in (looks, values)]
        for _ in range(5):
            heap.collect()
            assert heap.stats().meshed
            heap.verify()
            for ref in list(looks.refs.values())[::3]:
                with ref.writable():  # which gives its pages frames of their own
                    pass
            watches[0].see(1)
        for watch in watches:
            watch.end()
        for each in (looks, values):
            each.check()
            each.clear()
        del ref
