"""Heaps with a view for each colour: where they lie, what follows a reference, and what guards them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import mirrormap as mm
from heap_modes import ASKED, MODES, colours_of, mode_of, protections_of, reference_in, shift_of
from mirrormap import kernel
from support import PAGE, TESTS, address_of, dies_by, libc, succeeds


@pytest.fixture(params=["views", "guard"])
def heap(request: pytest.FixtureRequest) -> Iterator[mm.Heap]:
    with mm.Heap("32MiB", collector="manual", **MODES[request.param]) as made:
        yield made


def scattered(heap: mm.Heap, count: int = 4000) -> list[mm.Ref]:
    """One in eight of many, so that the next collection moves them."""
    return [heap.put(at.to_bytes(4, "little") * 100) for at in range(count)][::8]


def turn(heap: mm.Heap) -> None:
    """A collection that moves something, so that another colour is the good one after it."""
    before = heap.stats().moved
    kept = scattered(heap)
    heap.collect()
    assert heap.stats().moved > before
    assert [bytes(ref) for ref in kept] == [at.to_bytes(4, "little") * 100 for at in range(0, 4000, 8)]


@pytest.mark.skipif(ASKED is None, reason="only `make heap-modes` asks for one mode")
def test_the_tests_run_in_the_mode_that_was_asked_for() -> None:
    with mm.Heap("1MiB") as made:
        assert mode_of(made) == ASKED
    told = succeeds("import mirrormap, heap_modes\nprint(heap_modes.mode_of(mirrormap.Heap('1MiB')))")
    assert told.strip() == ASKED


def test_each_colour_has_a_view_where_its_references_count_from(heap: mm.Heap) -> None:
    first, *others = colours_of(heap)
    assert others == [first + (colour << shift_of(heap)) for colour in (1, 2)]
    node, found = heap.new(8, 1), set[int]()
    node[0] = kept = heap.put(b"what is looked for")
    for _ in range(7):
        node[0] = kept  # a reference of the colour that is good now
        reference = reference_in(node, 0)
        colour = reference >> shift_of(heap)
        found.add(colour)
        data = kept.array.ctypes.data - heap._mapping.address
        assert reference - (colour << shift_of(heap)) == data - 16  # behind the header
        assert ctypes.string_at(first + reference + 16, kept.nbytes) == bytes(kept)
        turn(heap)
        assert node[0] == kept
        heap.verify()
    assert found == {0, 1, 2}


def test_exports_lie_in_the_plain_view(heap: mm.Heap) -> None:
    cache = heap.map()
    cache["a"] = b"owned"
    ref = heap.put(b"1234")
    for shown in (ref.array, memoryview(ref), cache.view("a")):
        at = address_of(shown) - heap._mapping.address
        assert 0 < at < heap._mapping.nbytes
    view = ref.array
    with ref.writable() as array:
        array[:] = 7
    for _ in range(4):
        turn(heap)
        assert view.tobytes() == b"\7" * 4
        with ref.writable() as array:
            array[:] = array + 0  # stays writable whatever the good colour is
    del view, array, shown


def test_a_guarded_heap_opens_only_the_view_of_the_good_colour() -> None:
    with mm.Heap("32MiB", collector="manual", **MODES["guard"]) as heap:
        node = heap.new(0, 1)
        for _ in range(7):
            node[0] = kept = heap.put(b"kept")
            good = reference_in(node, 0) >> shift_of(heap)
            assert protections_of(heap) == ["rw" if colour == good else "none" for colour in range(3)]
            turn(heap)
            assert node[0] == kept
    with mm.Heap("32MiB", collector="manual", **MODES["views"]) as heap:
        turn(heap)
        assert protections_of(heap) == ["rw"] * 3


STALE = """
import ctypes
import mirrormap as mm
from heap_modes import colours_of, reference_in, shift_of
heap = mm.Heap("8MiB", collector="manual", views=3, guard=GUARD)
made = [heap.put(at.to_bytes(4, "little") * 100) for at in range(4000)]
node = heap.new(0, 1)
node[0] = made[8]
stale = reference_in(node, 0)   # kept past a turn of the colour, as no code may
kept = made[::8]
del made
heap.collect()
assert node[0] == kept[1] and heap.stats().moved
first = colours_of(heap)[0]
good = reference_in(node, 0)
assert good >> shift_of(heap) != stale >> shift_of(heap)
assert ctypes.string_at(first + good + 16, 400) == bytes(kept[1])
print(first, stale, shift_of(heap), flush=True)
ctypes.string_at(first + stale, 16)
"""


def test_whoever_follows_a_stale_reference_dies_of_it_where_it_is_guarded() -> None:
    succeeds(STALE.replace("GUARD", "False"))
    assert dies_by(STALE.replace("GUARD", "True")) == signal.SIGSEGV


CANNOT = 99
TRACED = f"""
import ctypes, os
if ctypes.CDLL(None).ptrace(0, 0, None, None):
    os._exit({CANNOT})
"""


def followed(script: str) -> tuple[str, int]:
    """What a script printed before it died of SIGSEGV, and the address that it touched."""
    resume, siginfo = 7, 0x4202
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(TESTS)!r})\n{TRACED}{script}"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    info, address = (ctypes.c_uint64 * 16)(), 0
    while os.WIFSTOPPED(status := os.waitpid(process.pid, 0)[1]):
        which = os.WSTOPSIG(status)
        if which == signal.SIGSEGV:
            assert libc.ptrace(siginfo, process.pid, None, ctypes.addressof(info)) == 0
            address = info[2]  # si_addr
        libc.ptrace(resume, process.pid, None, which)
    told = process.stdout.read()
    process.stdout.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode == CANNOT:
        pytest.skip("processes may not be traced here")
    assert process.returncode == -signal.SIGSEGV
    return told, address


def test_it_dies_in_the_view_of_the_stale_colour() -> None:
    told, address = followed(STALE.replace("GUARD", "True"))
    first, stale, shift = map(int, told.split())
    told_in = PAGE if os.uname().machine == "s390x" else 1  # there a fault tells its page only
    assert address == (first + stale) // told_in * told_in
    assert first + (stale >> shift << shift) <= address < first + ((stale >> shift) + 1 << shift)


def mapped(heap: mm.Heap) -> int:
    """Entries of the address space that show the heap's pages."""
    inode = os.fstat(heap._pages.fileno()).st_ino
    return sum(entry.inode == inode and "heap" in entry.name for entry in mm.mappings())


def test_mappings_stay_what_they_were_and_holes_go_from_all_views(heap: mm.Heap) -> None:
    assert mapped(heap) == 4
    node = heap.new(0, 1)
    for _ in range(4):
        turn(heap)
    node[0] = heap.put(bytes(5 << 20))
    found = node[0]
    heap.collect()
    assert mapped(heap) == 4
    stats = heap.stats()
    views = [heap._mapping, *heap._colours]
    assert stats.resident == sum(view.resident for view in views)
    assert all(view.resident <= stats.committed for view in views)
    node[0] = found = None
    del found
    heap.collect()
    assert heap.stats().committed <= 2 * PAGE + (1 << 16)
    assert all(view.resident <= heap.stats().committed for view in views)


def test_a_heap_with_one_view_is_mapped_once() -> None:
    with mm.Heap("8MiB", views=1, guard=False) as heap:
        assert mode_of(heap) == "one"
        assert mapped(heap) == 1


def test_marking_and_images_see_the_same_in_every_mode() -> None:
    told: list[Any] = []
    for mode in MODES.values():
        with mm.Heap("32MiB", collector="manual", **mode) as heap:
            node = heap.record("Node", key="i8", left=mm.Ref, right=mm.Ref)
            made = [node(at) for at in range(3000)]
            for at in range(1, 3000):
                setattr(made[at // 2], "right" if at % 2 else "left", made[at])
            heap.roots["top"] = made[1]
            del made
            turn(heap)
            turn(heap)
            with heap.freeze() as image:
                queue = [image.roots["top"]]
                keys = [each.key for each in queue if not queue.extend(filter(None, (each.left, each.right)))]  # type: ignore[func-returns-value]
                told.append((keys, image.nbytes, heap.stats().marked))
                del queue
    assert told[0] == told[1] == told[2]
    assert sorted(told[0][0]) == [*range(1, 3000)]


@pytest.mark.parametrize("views", [0, 2, 4, -1, "3", None])
def test_other_numbers_of_views_cannot_be(views: Any) -> None:
    with pytest.raises(ValueError, match="must be 1, or 3"):
        mm.Heap("1MiB", views=views)


def test_page_sizes() -> None:
    with mm.Heap("1MiB", page_size=PAGE) as heap:
        assert heap._pages.page_size == PAGE
    with pytest.raises(ValueError, match="page_size 'thp' must be the system's"):
        mm.Heap("1MiB", page_size="thp")
    with pytest.raises(ValueError, match="page_size"):
        mm.Heap("1MiB", page_size="2MiB")  # also where the kernel has none


def test_views_that_do_not_lie_as_references_count_are_refused() -> None:
    with mm.Pages("4MiB") as pages, pages.map() as plain, pages.map() as other:
        views = pages.views(3)
        first, second, third = (view._live for view in views)
        for colours, guard in (
            ((first, second), False), ((first, third, second), False), ((first, second, other._live), False), ((), True),
            ((first, second, "third"), False), ((first,), False),
        ):  # fmt: skip
            bare: Any = kernel.heaps.HeapBase.__new__(mm.Heap)
            with pytest.raises(ValueError, match="bad views"):
                bare._attach(plain._live, colours, guard, pages.fileno(), PAGE, 1 << 20, 1100)
            assert bare.closed
        del first, second, third, colours
        for view in views:
            view.close()
