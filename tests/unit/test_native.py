"""The C types by themselves: windows, exports, moves under live views, no reference lost."""

from __future__ import annotations

import gc
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import mirrormap as mm
from mirrormap import kernel
from mirrormap.kernel import Exporter, Region
from support import PAGE, SANITIZED, is_mapped, read, scaled


def window(count: int) -> Region:
    return kernel.reserve(count * PAGE)


def filled(count: int) -> tuple[Region, mm.Pages]:
    pages = mm.Pages(count * PAGE)
    region = kernel.map_anywhere(count * PAGE, 3, pages.fileno(), 0)
    region.expose(count * PAGE, True, True)
    return region, pages


def test_a_region_unmaps_its_window_when_it_goes() -> None:
    region = window(3)
    address = region.address
    assert is_mapped(address, 3 * PAGE)
    del region
    assert not is_mapped(address, 3 * PAGE)


def test_nothing_is_placed_outside_the_window() -> None:
    region, pages = window(2), mm.Pages(4 * PAGE)
    for at, nbytes in ((2 * PAGE, PAGE), (PAGE, 2 * PAGE), (-PAGE, PAGE), (0, 0), (sys.maxsize, PAGE)):
        with pytest.raises(ValueError, match="window"):
            kernel.map_over(region, at, nbytes, 3, pages.fileno(), 0)
        with pytest.raises(ValueError, match="window"):
            kernel.mprotect(region, at, nbytes, 1)
    kernel.map_over(region, PAGE, PAGE, 3, pages.fileno(), 0)
    assert read(region.address + PAGE, 1) == b"\0"


def test_an_alias_onto_itself_is_refused_in_c_too() -> None:
    region, pages = filled(2)
    with pytest.raises(ValueError, match="overlap"):
        kernel.remap_alias(region, 0, PAGE, region.address)
    assert read(region.address, 1) == b"\0"
    assert pages.nbytes == 2 * PAGE


def test_a_failed_placement_leaves_the_reservation() -> None:
    region = window(2)
    with pytest.raises(mm.MapError):
        kernel.map_over(region, 0, PAGE, 3, -1, 0)
    assert region.window == 2 * PAGE
    assert is_mapped(region.address, 2 * PAGE)


def test_exports_hold_what_they_show_and_no_more() -> None:
    region, pages = filled(4)
    front = memoryview(kernel.span(region, 0, PAGE))
    assert region.shown(0, 1)
    assert not region.shown(PAGE, 4 * PAGE)
    kernel.trim(region, PAGE)
    with pytest.raises(BufferError):
        kernel.unmap(region)
    front.release()
    kernel.unmap(region)
    assert region.closed
    with pytest.raises(mm.ClosedError):
        memoryview(region)
    assert pages.nbytes == 4 * PAGE


def test_splitting_gives_two_owners() -> None:
    region = window(4)
    rest = region.split(PAGE)
    assert (region.window, rest.window) == (PAGE, 3 * PAGE)
    assert rest.address == region.address + PAGE
    address = rest.address
    kernel.unmap(region)
    assert is_mapped(address, 3 * PAGE)


def test_a_released_range_is_the_caller_s() -> None:
    region = window(1)
    address = region.release()
    del region
    assert is_mapped(address)
    kernel.munmap(address, PAGE)


def test_a_view_keeps_the_region_it_was_taken_from() -> None:
    class Shown(Exporter):
        """As Mapping does it."""

    first, pages = filled(1)
    second, others = filled(1)
    shown = Shown()
    shown._region = first
    array = np.frombuffer(shown, "u1")
    address = first.address
    shown._region = second
    del first
    assert is_mapped(address)
    array[0] = 7
    del array
    assert not is_mapped(address)
    shown._region = None
    with pytest.raises(mm.ClosedError):
        memoryview(shown)
    with pytest.raises(TypeError):
        shown._region = 5  # type: ignore[assignment]
    assert pages.nbytes == others.nbytes


def test_a_confined_region_is_closed_in_a_child() -> None:
    region = window(1)
    region.confine(True)
    child = os.fork()
    if child == 0:
        os._exit(0 if region.closed else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not region.closed


def resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE >> 10


def test_thousands_of_lives_cost_nothing() -> None:
    def life() -> None:
        with mm.Pages(PAGE) as pages, pages.map() as view, view.mirror() as other:
            other.array()[0] = 1
            with memoryview(view):
                pass
            with pytest.raises(ValueError, match="fit"):
                view.mirror(PAGE * 2)

    for _ in range(500):
        life()
    gc.collect()
    before, references = resident_kib(), sys.getrefcount(Region)
    for _ in range(scaled(10_000, 3_000)):
        life()
    gc.collect()
    if not SANITIZED:  # AddressSanitizer keeps freed memory in quarantine
        assert resident_kib() - before < 4000
    assert sys.getrefcount(Region) <= references + 2


def test_threads_exporting_while_another_closes() -> None:
    for _ in range(20):
        view = mm.Pages(PAGE).map()
        go = threading.Barrier(4)
        failures: list[BaseException] = []

        def use(
            view: mm.Mapping = view, go: threading.Barrier = go, failures: list[BaseException] = failures
        ) -> None:
            go.wait()
            try:
                for _ in range(200):
                    memoryview(view).release()
                    view.array()[0] = 1
            except mm.ClosedError:
                pass
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        go.wait()
        while not view.closed:
            try:
                view.close()
            except BufferError:
                continue
        for thread in threads:
            thread.join()
        assert not failures
