"""Bad input: a clear error that says what to do, before anything is touched."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mirrormap as mm
from support import PAGE, Raw, checked, is_mapped, libc, succeeds

HUGE = 1 << 63
SYS_MSEAL, SYS_MEMFD_SECRET, SYS_IO_URING_SETUP = 462, 447, 425
SYS_PERF_EVENT_OPEN = 298 if platform.machine() == "x86_64" else 241


@pytest.fixture
def view() -> Iterator[mm.Mapping]:
    with mm.Pages(4 * PAGE) as pages, pages.map() as made:
        yield made


# --- sizes and offsets ---------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [0, -1, HUGE, -HUGE, 1 << 200, "0", "nonsense", HUGE - 1])
def test_sizes_that_cannot_be(nbytes: Any) -> None:
    with pytest.raises(ValueError, match=r"nbytes|size|bytes"):
        mm.Pages(nbytes)
    with mm.Pages(PAGE) as pages:
        with pytest.raises(ValueError, match=r"nbytes|size|bytes"):
            pages.resize(nbytes)
        assert pages.nbytes == PAGE


@pytest.mark.parametrize("nbytes", [1.5, None, [], b"4096"])
def test_sizes_that_are_no_numbers(nbytes: Any) -> None:
    with pytest.raises(TypeError):
        mm.Pages(nbytes)


TAKERS = ["map", "arrange", "discard", "mapping.mirror", "mapping.protect", "mapping.discard", "mirror"]


def takers(view: mm.Mapping, pages: mm.Pages) -> dict[str, Callable[[Any, Any], Any]]:
    return {
        "map": pages.map,
        "arrange": lambda offset, nbytes: pages.arrange([(offset, nbytes)]),
        "discard": pages.discard,
        "mapping.mirror": view.mirror,
        "mapping.protect": lambda offset, nbytes: view.protect("r", offset, nbytes),
        "mapping.discard": view.discard,
        "mirror": lambda offset, nbytes: mm.mirror(memoryview(view), offset, nbytes),
    }


@pytest.mark.parametrize("name", TAKERS)
@pytest.mark.parametrize(
    ("offset", "nbytes"),
    [
        (-PAGE, PAGE), (PAGE, -1), (1, PAGE), (PAGE - 1, 1), (5 * PAGE, PAGE), (0, 5 * PAGE), (4 * PAGE, 1),
        (HUGE, PAGE), (0, HUGE), (HUGE - PAGE, PAGE), (PAGE, HUGE - 1),
    ],
    ids=str,
)  # fmt: skip
def test_ranges_that_do_not_fit(name: str, offset: int, nbytes: int, view: mm.Mapping) -> None:
    with mm.Pages(4 * PAGE) as pages:
        with pytest.raises(ValueError, match=r"fit|multiple|between"):
            takers(view, pages)[name](offset, nbytes)
    assert view.protection == "rw"


@pytest.mark.parametrize("name", TAKERS)
@pytest.mark.parametrize(("offset", "nbytes"), [(0.0, PAGE), (0, 1.0), (b"", PAGE), ([], None)], ids=str)
def test_ranges_that_are_no_numbers(name: str, offset: Any, nbytes: Any, view: mm.Mapping) -> None:
    with mm.Pages(4 * PAGE) as pages, pytest.raises(TypeError):
        takers(view, pages)[name](offset, nbytes)


def test_empty_views_and_mirrors() -> None:
    with mm.Pages(PAGE) as pages, pages.map() as view:
        for act in (
            lambda: pages.map(0, 0), lambda: pages.map(PAGE), lambda: pages.arrange([]), lambda: view.mirror(0, 0),
            lambda: mm.mirror(b""), lambda: mm.mirror(np.zeros(0)), lambda: view.resize(0),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=r"at least one|empty|between"):
                act()


def test_a_run_before_the_last_must_be_whole() -> None:
    with mm.Pages(4 * PAGE) as pages, pytest.raises(ValueError, match="before the last"):
        pages.arrange([(0, 100), (PAGE, PAGE)])


@pytest.mark.parametrize("count", [0, -1, 65])
def test_counts_of_views(count: int) -> None:
    with mm.Pages(PAGE) as pages, pytest.raises(ValueError, match="1 to 64"):
        pages.views(count)


@pytest.mark.parametrize("stride", [PAGE, 3 * PAGE, 5 * PAGE, "12KiB"])
def test_strides_that_are_too_small_or_no_power_of_two(stride: Any) -> None:
    with mm.Pages(3 * PAGE) as pages, pytest.raises(ValueError, match="power of two"):
        pages.views(2, stride=stride)


# s390x adds levels of page tables until 2^64 bytes have addresses: none that fits in an off_t lies beyond
ends = pytest.mark.skipif(platform.machine() == "s390x", reason="this processor's address space has no end")


@ends
def test_views_too_large_for_the_address_space() -> None:
    with mm.Pages(PAGE) as pages, pytest.raises(mm.MapError) as caught:
        pages.views(64, stride=1 << 45)
    assert caught.value.errno == errno.ENOMEM


@pytest.mark.parametrize(("count", "stride"), [(2, 1 << 62), (3, 1 << 61), (64, 1 << 57)])
def test_views_too_large_for_any_address_space(count: int, stride: int) -> None:
    with mm.Pages(PAGE) as pages, pytest.raises(ValueError, match="times stride"):
        pages.views(count, stride=stride)


@pytest.mark.parametrize("protection", ["w", "rwx", "", "R", None, 3, ["r"]])
def test_protections(protection: Any, view: mm.Mapping) -> None:
    with mm.Pages(PAGE) as pages, pytest.raises(ValueError, match="one of 'none', 'r', 'rw', 'rx'"):
        pages.map(protection=protection)
    with pytest.raises(ValueError, match="one of"):
        view.protect(protection)
    if protection is not None:
        with pytest.raises(ValueError, match="one of"):
            mm.mirror(view, protection=protection)


@pytest.mark.parametrize("address", [0, -PAGE, 1, PAGE + 1, HUGE, "x"])
def test_addresses(address: Any, view: mm.Mapping) -> None:
    with pytest.raises(ValueError, match=r"address|size"):
        view.mirror(address=address)
    with pytest.raises(ValueError, match=r"address|size"):
        mm.mirror(memoryview(view), address=address)


@ends
def test_an_address_beyond_the_address_space(view: mm.Mapping) -> None:
    with pytest.raises(mm.MapError) as caught:
        view.mirror(address=1 << 62)
    assert caught.value.errno == errno.ENOMEM


@pytest.mark.parametrize(
    "arguments",
    [{"shape": -1}, {"shape": (4, -4)}, {"shape": PAGE * 5}, {"offset": 4 * PAGE + 1}, {"offset": -1},
     {"dtype": "f8", "shape": PAGE}, {"shape": (1 << 40, 1 << 40)}],
    ids=str,
)  # fmt: skip
def test_array_geometry(arguments: dict[str, Any], view: mm.Mapping) -> None:
    with pytest.raises(ValueError, match=r"fit|negative|between"):
        view.array(**arguments)


def test_object_dtypes_say_why(view: mm.Mapping) -> None:
    for act in (
        lambda: view.array("O"), lambda: mm.zeros(3, object), lambda: mm.share([object()]),
        lambda: mm.full(3, None), lambda: view.array([("a", "O")]),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="Python objects"):
            act()


@pytest.mark.parametrize("name", ["x" * 240, "a\0b"])
def test_names(name: str) -> None:
    with pytest.raises(ValueError, match="name must be"):
        mm.Pages(PAGE, name=name)


@pytest.mark.parametrize("inherit", ["copy", "", None, 1])
def test_inherit(inherit: Any, view: mm.Mapping) -> None:
    with pytest.raises(ValueError, match="'share' or 'none'"):
        view.inherit = inherit


def test_a_bad_descriptor() -> None:
    with pytest.raises(mm.MapError) as caught:
        mm.Pages.from_fd(987654)
    assert caught.value.errno == errno.EBADF


# --- closed objects ------------------------------------------------------------------------------


def test_every_use_of_closed_pages_is_a_closed_error() -> None:
    pages = mm.Pages(PAGE)
    pages.close()
    for act in (
        lambda: pages.nbytes, lambda: pages.page_size, lambda: pages.allocated, pages.fileno, pages.map,
        lambda: pages.arrange([(0, PAGE)]), lambda: pages.views(1), lambda: pages.resize(PAGE), pages.discard,
        pages.flush, pages.__enter__, pages.__reduce__,
    ):  # fmt: skip
        with pytest.raises(mm.ClosedError):
            act()


def test_every_use_of_a_closed_mapping_is_a_closed_error() -> None:
    with mm.Pages(PAGE) as pages:
        view = pages.map()
        view.close()
        for act in (
            lambda: view.address, lambda: view.nbytes, lambda: len(view), lambda: view.protection,
            lambda: view.page_size, lambda: view.resident, lambda: view.resident_huge, view.array, view.mirror,
            lambda: view.resize(PAGE), lambda: view.protect("r"), view.populate, view.discard, view.flush,
            lambda: setattr(view, "inherit", "none"), view.__enter__, lambda: memoryview(view),
            lambda: mm.mirror(view), lambda: bytes(view), lambda: mm.shares_memory(view, view),
        ):  # fmt: skip
            with pytest.raises(mm.ClosedError):
                act()


def test_closed_sources() -> None:
    source = mmap.mmap(-1, PAGE)
    source.close()
    with pytest.raises(ValueError, match="closed"):
        mm.mirror(source)


# --- sources that are none -----------------------------------------------------------------------


def entry(name: str) -> tuple[int, int]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(name):
            start, end = line.split()[0].split("-")
            return int(start, 16), int(end, 16)
    pytest.skip(f"this process has no {name}")


@pytest.mark.parametrize("name", ["[stack]", "[vdso]", "[vvar]", "[heap]"])
def test_the_process_s_own_areas(name: str) -> None:
    start, _ = entry(name)
    buffer = (ctypes.c_ubyte * PAGE).from_address(start)
    with pytest.raises(mm.NotMirrorableError, match=r"cop(y|ies)|share") as caught:
        mm.mirror(buffer)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(mm.NotMirrorableError):
        mm.mremap(start, 0, PAGE, mm.MREMAP_MAYMOVE)
    assert is_mapped(start)


def test_freed_addresses() -> None:
    with Raw(PAGE) as raw:
        gone = raw.address
    with pytest.raises(mm.MapError, match="Nothing is mapped") as caught:
        mm.mirror((ctypes.c_ubyte * PAGE).from_address(gone))
    assert caught.value.errno == errno.EFAULT


def syscall(number: int, *arguments: Any) -> int:
    result: int = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        pytest.skip(f"system call {number}: {os.strerror(ctypes.get_errno())}")
    return result


def test_a_sealed_mapping_says_mseal() -> None:
    script = f"""
import ctypes, errno, mmap, mirrormap as mm
from support import PAGE, Raw, libc
raw = Raw(PAGE)
if libc.syscall(ctypes.c_long({SYS_MSEAL}), ctypes.c_void_p(raw.address), ctypes.c_size_t(PAGE), 0):
    print("skip"); raise SystemExit
raw.buffer[0] = 5
try:
    mm.mirror(raw.buffer)
except mm.NotMirrorableError as error:
    assert error.errno == errno.EPERM and "mseal" in str(error), error
    assert raw.buffer[0] == 5
    print("refused")
"""
    answer = succeeds(script).strip()
    if answer == "skip":
        pytest.skip("this kernel has no mseal (Linux 6.10)")
    assert answer == "refused"


def test_secret_memory_is_mirrored_and_populated_by_touching() -> None:
    fd = syscall(SYS_MEMFD_SECRET, 0)
    try:
        os.ftruncate(fd, 2 * PAGE)
        with Raw(2 * PAGE, flags=1, fd=fd) as raw:
            raw.buffer[5] = 9
            with mm.mirror(raw.buffer) as view:
                assert view.array()[5] == 9
                view.populate()
                assert view.resident == 2 * PAGE
    finally:
        os.close(fd)


def test_a_perf_ring_is_refused() -> None:
    attributes = bytearray(128)
    attributes[0:4] = (1).to_bytes(4, sys.byteorder)  # PERF_TYPE_SOFTWARE
    attributes[4:8] = (128).to_bytes(4, sys.byteorder)
    attributes[8:16] = (9).to_bytes(8, sys.byteorder)  # PERF_COUNT_SW_DUMMY
    fd = syscall(SYS_PERF_EVENT_OPEN, (ctypes.c_ubyte * 128).from_buffer(attributes), 0, -1, -1, 0)
    try:
        with Raw(3 * PAGE, flags=1, fd=fd) as ring:
            with pytest.raises(mm.NotMirrorableError, match="perf") as caught:
                mm.mirror(ring.buffer)
            assert caught.value.errno in (errno.EFAULT, errno.EINVAL)
            assert is_mapped(ring.address, 3 * PAGE)
    finally:
        os.close(fd)


def test_an_io_uring_is_refused() -> None:
    parameters = (ctypes.c_ubyte * 120)()
    fd = syscall(SYS_IO_URING_SETUP, 8, ctypes.byref(parameters))
    try:
        with Raw(PAGE, flags=1, fd=fd) as ring:
            with pytest.raises(mm.NotMirrorableError, match="io_uring"):
                mm.mirror(ring.buffer)
            assert is_mapped(ring.address)
    finally:
        os.close(fd)


def test_growing_beyond_a_file_size_limit() -> None:
    succeeds("""
import resource, tempfile, errno, mirrormap as mm
with tempfile.NamedTemporaryFile() as file:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    pages = mm.Pages.open(file.name, 5000)
    nbytes = pages.nbytes
    try:
        pages.resize(2 << 20)
    except mm.MapError as error:
        assert error.errno == errno.EFBIG and "RLIMIT_FSIZE" in str(error), error
    else:
        raise AssertionError
    assert pages.nbytes == nbytes
""")


def test_locked_memory_beyond_its_limit(view: mm.Mapping) -> None:
    succeeds("""
import os, resource, errno, mmap, mirrormap as mm
from support import PAGE, address_of, lock
resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 * PAGE, 64 * PAGE))
os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
source = mmap.mmap(-1, 40 * PAGE)
lock(address_of(source), 40 * PAGE)
try:
    mm.mirror(source)
except mm.MapError as error:
    assert error.errno == errno.EAGAIN and "RLIMIT_MEMLOCK" in str(error), error
else:
    raise AssertionError
""") if os.geteuid() == 0 else pytest.skip("only root can become nobody")
    assert checked(libc.munlock(view.address, PAGE)) == 0
