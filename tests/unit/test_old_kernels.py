"""The routes older kernels take, walked on this one: the newer calls answer as those kernels do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import seccomp
from support import PATIENCE_S

PRELUDE = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import ctypes, mmap, os, resource, tempfile
import numpy as np, mirrormap as mm, seccomp
from mirrormap import procmaps
from support import stores_without_fault
seccomp.act_like_an_old_kernel()
PAGE = mmap.PAGESIZE

def faults(array, write):
    return stores_without_fault(array, write=write)
"""


def run(script: str) -> None:
    if not seccomp.numbers():
        pytest.skip("system call numbers of this architecture are not listed in tests/seccomp.py")
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr


def test_the_newer_calls_really_are_away() -> None:
    run("""
found = mm.probe()
assert not found.procmap_query and not found.pagemap_scan
assert found.populate and found.works
""")


def test_population_touches_every_page_for_reading_and_writing() -> None:
    run("""
for source in (mm.Pages(256 * PAGE).map(), mmap.mmap(-1, 256 * PAGE)):
    view = mm.mirror(source, populate=True)
    assert view.resident == view.nbytes, view.resident
    array = view.array()
    faults(array, True)
    assert faults(array, True) == 0 and faults(array, False) == 0
with tempfile.NamedTemporaryFile() as file:
    view = mm.Pages.open(file.name, 64 * PAGE).map(populate=True)
    array = view.array()
    count = faults(array, True)
    assert count == 0, count
    array[:] = 7
    view.populate(write=True)
    assert (array == 7).all()
""")


def test_a_hole_past_the_end_is_an_exception_and_never_a_sigbus() -> None:
    run("""
with tempfile.NamedTemporaryFile() as file:
    file.truncate(8 * PAGE)
    view = mm.Pages.open(file.name).map()
    os.truncate(file.name, 4 * PAGE)
    try:
        view.populate()
    except mm.MapError as error:
        assert "bytes 0 to" in str(error), error
    else:
        raise AssertionError("populated past the end")
""")


def test_pieces_keep_their_own_protection_when_maps_is_parsed() -> None:
    run("""
source = mmap.mmap(-1, 3 * PAGE)
address = np.frombuffer(source, "u1").ctypes.data
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + PAGE), PAGE, 1) == 0
view = mm.mirror(source)
assert view.protection == "mixed", view.protection
assert len(view._arrangement.runs) == 3
assert not view.array(shape=PAGE, offset=PAGE).flags.writeable
assert view.array(shape=PAGE, offset=0).flags.writeable
""")


def test_private_memory_is_refused_by_the_parsed_entries_too() -> None:
    run("""
try:
    mm.mirror(np.zeros(1 << 20))
except mm.NotMirrorableError as error:
    assert "share(array)" in str(error)
else:
    raise AssertionError
assert mm.shares_memory(a := mm.zeros(5000), mm.mirror(a))
""")


def test_huge_pages_are_recognised_by_smaps(huge: int) -> None:
    run(f"""
huge = {huge}
source = mmap.mmap(-1, 2 * huge, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | 0x40000)
source[huge] = 5
view = mm.mirror(source)
assert view.page_size == huge and view.array()[huge] == 5
view.populate()
assert view.resident == view.resident_huge == 2 * huge, (view.resident, view.resident_huge)
""")


def test_every_entry_is_found_by_address_as_smaps_lists_it(huge: int) -> None:
    run(f"""
from pathlib import Path
huge = {huge}
kept = [mmap.mmap(-1, huge, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | 0x40000), mm.Pages(huge, page_size=huge).map()]
kept += [mmap.mmap(-1, 4 * PAGE), mm.Pages(2 * huge).map(), mm.Pages(2 * huge).map(), mm.mirror(mm.empty(huge, "u1"))]
listed = list(procmaps.parse_smaps(Path("/proc/self/smaps").read_text()))
assert {{vma.page_nbytes for vma in listed}} == {{PAGE, huge}}
for vma in listed:
    if vma.shared:
        with procmaps.AddressSpace() as space:
            found = space.at(vma.end - 1)
            assert found == space.at(vma.start) == vma, (found, vma)
with procmaps.AddressSpace() as space:
    shared = [vma for vma in listed if vma.shared]
    below = [space.at(vma.start - 1, following=True) for vma in shared]
    assert {{vma for vma in below if vma.shared}} <= {{*shared}}  # private ones may have grown
    assert space.at(0) is None and space.at(0, following=True).start == listed[0].start
    assert space.at((1 << 64) - 1) is None and space.at((1 << 64) - 1, following=True) is None
""")


def test_memory_that_moved_meanwhile_is_noticed_by_the_text_too() -> None:
    run("""
from mirrormap import foreign
source, other = mmap.mmap(-1, 2 * PAGE), mmap.mmap(-1, 2 * PAGE)
address = np.frombuffer(source, "u1").ctypes.data
instead = np.frombuffer(other, "u1").ctypes.data
place = foreign.placement.place
def while_another_thread_replaces_it(*arguments, **options):
    region = place(*arguments, **options)
    moved = ctypes.CDLL(None).mremap
    moved.restype = ctypes.c_void_p
    assert moved(ctypes.c_void_p(instead), ctypes.c_size_t(0), ctypes.c_size_t(2 * PAGE), 3, ctypes.c_void_p(address)) == address
    return region
foreign.placement.place = while_another_thread_replaces_it
try:
    mm.mirror(source)
except mm.MapError as error:
    assert "replaced by another thread" in str(error)
else:
    raise AssertionError
""")
