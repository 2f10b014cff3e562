"""Reading other processes: the parsers on any text a kernel could write, the readers on live processes."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import mirrormap as mm
from mirrormap import kernel, pagetables, procfs, procmaps, residency
from mirrormap.kernel import VmaInfo
from support import PAGE, address_of, refused, scaled

HOLD = """
import mmap, sys, mirrormap as mm
pages = mm.Pages("1MiB", name="held")
ring = pages.arrange([(0, "1MiB"), (0, "1MiB")], populate=True)
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def running(script: str = HOLD, *arguments: str) -> Generator[subprocess.Popen[str]]:
    """A Python process that has printed a line, and stands still until its input ends."""
    child = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline()
        yield child
    finally:
        child.kill()
        child.communicate()


# --- texts ---------------------------------------------------------------------------------

NAMES = st.one_of(
    st.just(""),
    st.sampled_from(["[heap]", "[stack]", "[vdso]", "[anon:glibc: malloc]", "/dev/zero (deleted)", "/SYSV0000162e (deleted)"]),
    # what seq_path() writes: any bytes but NUL, with "\n" as "\012"
    st.text(st.characters(blacklist_characters="\0\n", blacklist_categories=("Cs",)), min_size=1).map(lambda text: f"/{text}"),
    st.binary(min_size=1, max_size=30).map(
        lambda raw: "/x" + raw.replace(b"\0", b"0").replace(b"\n", b"\\012").decode(errors="surrogateescape")
    ),
)  # fmt: skip


@st.composite
def entry_lists(draw: st.DrawFn) -> list[VmaInfo]:
    found, at = [], draw(st.integers(1, 1 << 34)) * PAGE
    for _ in range(draw(st.integers(0, 12))):
        start = at + draw(st.sampled_from([0, 0, 1, 1 << 20])) * PAGE
        at = start + draw(st.integers(1, 1 << 20)) * PAGE
        found.append(
            VmaInfo(
                start, at, draw(st.integers(0, 7)), draw(st.booleans()), PAGE,
                draw(st.integers(0, (1 << 51) - 1)) * PAGE, os.makedev(draw(st.integers(0, 255)), draw(st.integers(0, 255))),
                draw(st.integers(0, (1 << 64) - 1)), draw(NAMES),
            )
        )  # fmt: skip
    return found


def head(vma: VmaInfo) -> str:
    """A line of /proc/PID/maps as fs/proc/task_mmu.c prints it."""
    letters = "".join(
        letter if vma.protection & bit else "-" for letter, bit in zip("rwx", (1, 2, 4), strict=True)
    )
    letters += "s" if vma.shared else "p"
    line = (
        f"{vma.start:08x}-{vma.end:08x} {letters} {vma.offset:08x} "
        f"{os.major(vma.dev):02x}:{os.minor(vma.dev):02x} {vma.inode} "
    )
    return (f"{line:73}{vma.name}" if vma.name else line) + "\n"


@given(entry_lists())
def test_a_maps_text_gives_back_what_was_written(entries: list[VmaInfo]) -> None:
    assert list(procmaps.parse_smaps("".join(map(head, entries)))) == entries


FIELDS = ["Rss", "Pss", "Pss_Dirty", "Shared_Clean", "Private_Clean", "Private_Dirty", "AnonHugePages", "ShmemPmdMapped", "FilePmdMapped", "Shared_Hugetlb", "Private_Hugetlb", "Swap", "SwapPss", "Locked"]  # fmt: skip


@given(entry_lists(), st.data())
def test_an_smaps_text_gives_back_its_sums(entries: list[VmaInfo], data: st.DataObject) -> None:
    text, expected = "", []
    for vma in entries:
        page_kib = data.draw(st.sampled_from([PAGE >> 10, 2048, 1 << 20]))
        told = data.draw(st.lists(st.sampled_from(FIELDS), unique=True))  # older kernels tell fewer
        sums = {name: data.draw(st.integers(0, 1 << 40)) for name in told}
        lines = [f"{'Size: ':16}{(vma.end - vma.start) >> 10:8} kB", f"KernelPageSize: {page_kib:8} kB"]
        lines += [f"{name + ': ':16}{kib:8} kB" for name, kib in sums.items()]
        text += (
            head(vma)
            + "\n".join([*lines, "THPeligible:           0", "VmFlags: rd wr mr mw me ac sd "])
            + "\n"
        )
        nbytes = {name: sums.get(name, 0) << 10 for name in FIELDS}
        expected.append((
            vma._replace(page_nbytes=page_kib << 10), nbytes["Rss"], nbytes["Pss"],
            nbytes["Private_Clean"] + nbytes["Private_Dirty"], nbytes["Swap"], sum(nbytes[name] for name in FIELDS[6:11]),
        ))  # fmt: skip
    assert [tuple(entry) for entry in procfs.parse_smaps(text)] == expected


@given(
    st.text()
    | st.lists(entry_lists().map(lambda entries: "".join(map(head, entries))) | st.text()).map("".join)
)
def test_no_text_breaks_the_parsers(text: str) -> None:
    for entry in procfs.parse_smaps(text):
        assert entry.rss >= 0
    assert all(nbytes >= 0 for nbytes in procfs.parse_fields(text).values())


# --- live processes ------------------------------------------------------------------------


def test_the_ioctl_and_the_text_agree_on_a_live_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as child:
        asked = [VmaInfo._make(row) for row in procfs.entries(child.pid)]
        monkeypatch.setattr(kernel, "procmap_entries", refused)  # as before Linux 6.11
        told = [VmaInfo._make(row) for row in procfs.entries(child.pid)]
    assert [vma for vma in told if vma.name != "[vsyscall]"] == [
        vma for vma in asked if vma.name != "[vsyscall]"
    ]
    assert any(vma.name == "/memfd:mirrormap:held (deleted)" and vma.shared for vma in told)


@pytest.mark.skipif(shutil.which("pmap") is None, reason="pmap is not installed: apt-get install procps")
def test_psutil_and_pmap_see_the_same_process() -> None:
    with running() as child:
        found = {vma.start: vma for vma in mm.mappings(child.pid)}
        peers = psutil.Process(child.pid).memory_maps(grouped=False)
        alone = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # a sanitizer's
        listing = subprocess.run(
            ["pmap", "-x", str(child.pid)], capture_output=True, text=True, check=True, env=alone
        ).stdout
    seen = {int(peer.addr.split("-")[0], 16): peer for peer in peers}
    assert {start for start in seen if start < procfs.USER_END} <= set(found) | {
        start for start, peer in seen.items() if peer.path == "[vsyscall]"
    }
    for start, vma in found.items():
        peer = seen[start]
        assert int(peer.addr.split("-")[1], 16) == vma.end
        assert peer.perms[3] == ("s" if vma.shared else "p")
        assert peer.swap == vma.swapped
        if vma.name not in ("[vvar]", "[vdso]", "[vvar_vclock]"):  # RSS leaves the kernel's own pages out
            assert peer.rss <= vma.resident
        if vma.shared:
            assert peer.rss == vma.resident
    rows = re.findall(r"^([0-9a-f]{16}) +(\d+) +(\d+)", listing, re.MULTILINE)
    for start, kib, rss_kib in rows:
        vma = found.get(int(start, 16))
        if vma is not None:
            assert int(kib) << 10 == vma.nbytes
            assert not vma.shared or int(rss_kib) << 10 == vma.resident
    assert len(rows) >= len(found)


def test_a_guard_is_nothing_that_was_swapped() -> None:
    """Newer C libraries put one below the stack of every thread."""
    with mmap.mmap(-1, 8 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as own:
        own[0] = 1
        start = address_of(own)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.madvise(ctypes.c_void_p(start + 2 * PAGE), ctypes.c_size_t(3 * PAGE), 102):
            pytest.skip("this kernel has no guards (MADV_GUARD_INSTALL, Linux 6.13)")
        (vma,) = [vma for vma in mm.mappings() if vma.start <= start < vma.end]
        assert vma.swapped == 0
        with procmaps.opened("/proc/self/pagemap") as fd:
            rows = residency.stretches_read(fd, start, start + 8 * PAGE)
        assert rows[:, 0].tolist() == [start]
        assert residency.present_stretches(start, 8 * PAGE) == [(0, PAGE)]


def test_residency_by_the_page_table_and_by_smaps_agree() -> None:
    with running() as child:
        table = {vma.start: vma for vma in mm.mappings(child.pid)}
        sums = {entry.vma.start: entry for entry in procfs.smaps(child.pid)}
    for start, vma in table.items():
        entry = sums[start]
        if vma.inode and vma.shared:
            assert (vma.resident, vma.swapped, vma.huge) == (entry.rss, entry.swap, entry.huge)


WAYS = {"scanned": pagetables.stretches, "read": pagetables.stretches_read}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", [511, 512, 513, 1024, 3000, 1 << 14, 3 << 14])
def test_stretches_are_found_once_however_many_there_are(count: int, way: str) -> None:
    if way == "scanned" and not mm.probe().pagemap_scan:
        pytest.skip("PAGEMAP_SCAN is of Linux 6.7")
    with mm.Pages(2 * count * PAGE) as pages, pages.map() as view:
        view.array()[:: 2 * PAGE] = 1  # every other page: no two of them are neighbours
        found = procfs.entries(os.getpid())
        rows = WAYS[way](os.getpid(), found, lambda nbytes: None)
        assert rows is not None
        assert (rows[1:, 0] >= rows[:-1, 1]).all()
        starts = view.address + 2 * PAGE * np.arange(count, dtype=np.uint64)
        assert np.array_equal(rows[np.isin(rows[:, 0], starts), 1], starts + np.uint64(PAGE))
        assert view.resident == count * PAGE
        only = [vma for vma in found if vma[0] == view.address]
        alone = WAYS[way](os.getpid(), only, lambda nbytes: None)
        assert alone is not None
        assert np.array_equal(alone[:, 0], starts)


def test_both_ways_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    if not mm.probe().pagemap_scan:
        pytest.skip("PAGEMAP_SCAN is of Linux 6.7")
    told: list[int] = []
    monkeypatch.setattr(pagetables, "_STEP_PAGES", 16)  # of many steps
    with running() as child:
        found = [vma for vma in procfs.entries(child.pid) if vma[1] - vma[0] <= 1 << 40]
        scanned = pagetables.stretches(child.pid, found, lambda nbytes: None)
        rows = pagetables.stretches_read(child.pid, found, told.append)
    assert scanned is not None
    assert rows is not None
    within = [any(vma[0] <= start < vma[1] for vma in found) for start in scanned[:, 0].tolist()]
    scanned = scanned[np.array(within)]
    assert told == sorted(told)
    assert told[-1] == int((rows[:, 1] - rows[:, 0]).sum())
    sorts = kernel.PAGE_IS_PRESENT | kernel.PAGE_IS_SWAPPED | kernel.PAGE_IS_FILE
    pages = [
        {
            (at, kind & sorts)
            for start, end, kind in each.tolist()
            if not kind & kernel.PAGE_IS_PFNZERO
            for at in range(start, end, PAGE)
        }
        for each in (scanned, rows)
    ]
    zeros = {
        at
        for start, end, kind in scanned.tolist()
        if kind & kernel.PAGE_IS_PFNZERO
        for at in range(start, end, PAGE)
    }
    assert pages[0] == {page for page in pages[1] if page[0] not in zeros}


def test_stretches_of_our_own_are_read_where_they_cannot_be_scanned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with mm.Pages(64 * PAGE) as pages, pages.map(reserve=f"{4 << 30}") as view:
        view.array()[: 64 * PAGE : 4 * PAGE] = 1
        wanted = [(at * PAGE, PAGE) for at in range(0, 64, 4)]
        if mm.probe().pagemap_scan:
            assert residency.present_stretches(view.address, 64 * PAGE) == wanted
        monkeypatch.setattr(kernel, "pagemap_stretches", refused)
        assert residency.present_stretches(view.address, 64 * PAGE) == wanted
        assert residency.present_stretches(view.address, 4 << 30) == []
        assert residency.present_stretches(view.address + PAGE, PAGE) == []


def test_terabytes_that_are_only_reserved_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    words = residency.words

    def counted(fd: int, first: int, count: int) -> NDArray[np.uint64]:
        asked.append(count)
        return words(fd, first, count)

    monkeypatch.setattr(residency, "words", counted)
    with mm.Pages(PAGE) as pages, pages.map(reserve="1TiB"):
        found = procfs.entries(os.getpid())
        assert sum(end - start for start, end, *_ in found if start < procfs.USER_END) > 1 << 40
        assert pagetables.stretches_read(os.getpid(), found, lambda nbytes: None) is not None
    assert sum(asked) * PAGE < 1 << 40


def test_without_the_ioctls_the_records_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as child:
        new = mm.mappings(child.pid)
        ring = mm.mirrors(child.pid)
        monkeypatch.setattr(kernel, "procmap_entries", refused)
        monkeypatch.setattr(kernel, "pagemap_stretches", refused)
        old = mm.mappings(child.pid)
        old_ring = mm.mirrors(child.pid)
    shared = [vma for vma in new if vma.shared]
    assert shared
    assert [vma for vma in old if vma.shared] == shared
    assert [(view.start, view.end, view.offset) for view in old_ring[0].views] == [
        (view.start, view.end, view.offset) for view in ring[0].views
    ]
    assert (old_ring[0].rss, old_ring[0].resident) == (ring[0].rss, ring[0].resident)
    assert old_ring.overcounted == ring.overcounted
    assert not old_ring.left_out


# --- processes that end, or may not be looked at --------------------------------------------


def test_a_process_that_has_ended_is_said_to_have() -> None:
    with subprocess.Popen(["true"]) as child:
        child.wait()
    with pytest.raises(mm.ProcessGone, match=f"process {child.pid} has ended"):
        mm.mappings(child.pid)
    with pytest.raises(ProcessLookupError):  # of the builtin family too
        mm.mirrors(child.pid)


def test_a_zombie_has_ended() -> None:
    child = subprocess.Popen(["true"])
    try:
        deadline = time.monotonic() + 10
        while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(mm.ProcessGone):
            mm.mappings(child.pid)
    finally:
        child.wait()


def test_a_process_that_ends_while_it_is_read_is_an_error_that_says_so() -> None:
    with running() as child:

        def kill(found: int, expected: int) -> None:
            child.kill()
            child.wait()

        with pytest.raises(mm.ProcessGone):
            mm.mappings(child.pid, progress=kill)


def test_whatever_the_moment_of_its_end_there_is_one_error() -> None:
    outcomes = set()
    for pause in np.linspace(0, 0.03, scaled(40, 15)):
        child = subprocess.Popen([sys.executable, "-S", "-c", "pass"])
        time.sleep(pause)
        try:
            while True:
                mm.mirrors(child.pid)
                outcomes.add("seen")
        except mm.ProcessGone:
            outcomes.add("gone")
        finally:
            child.wait()
    assert outcomes == {"seen", "gone"}


def test_a_kernel_thread_has_no_memory_of_its_own() -> None:
    threads = [process.pid for process in psutil.process_iter(["ppid"]) if process.info["ppid"] == 2]
    if not threads:
        pytest.skip("this container shows no threads of the kernel")
    with pytest.raises(mm.MirrorError, match="thread of the kernel"):
        mm.mappings(threads[0])


def test_somebody_else_s_process_is_not_shown_and_that_is_said() -> None:
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    script = f"""
import ctypes, os, mirrormap as mm
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    mm.mappings()
except mm.NotPermittedError as error:
    assert "PR_SET_DUMPABLE" in str(error)  # after setuid a process is hidden, even from itself
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
try:
    mm.mappings({os.getpid()})
except PermissionError as error:
    assert isinstance(error, mm.NotPermittedError), error
    assert "belongs to somebody else" in str(error)
else:
    raise SystemExit("shown")
child = os.fork()
if not child:
    import time; time.sleep(5); os._exit(0)
found = mm.mirrors([child, {os.getpid()}])
os.kill(child, 9)
assert [process.pid for process in found.processes] == [child]
assert "{os.getpid()} belongs to somebody else" in found.left_out[0], found.left_out
found = mm.mirrors("self", frames=True)
assert "CAP_SYS_ADMIN" in found.left_out[0], found.left_out
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("pid", "error"), [(0, ValueError), (-1, ValueError), (1 << 31, ValueError), ("x", ValueError), ("", ValueError), (1.5, TypeError), (None, TypeError), (True, TypeError), ("\uff11", ValueError)])  # fmt: skip
def test_what_is_no_pid_is_refused(pid: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        mm.mappings(pid)  # type: ignore[arg-type]
    with pytest.raises(error):
        mm.mirrors([pid])  # type: ignore[list-item]


def test_names_and_children() -> None:
    script = "import os, sys, time; pid = os.fork(); pid or os.fork(); print('x', flush=True) if pid else 0; time.sleep(60)"
    with running(script) as child:
        deadline = time.monotonic() + 10
        while len(procfs.descendants(child.pid)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        below = procfs.descendants(child.pid)
        assert len(below) == 2
        assert child.pid in procfs.named(procfs.command_name(child.pid))
        assert child.pid in procfs.named(Path(sys.executable).name)
        for pid in below:
            os.kill(pid, signal.SIGKILL)
    assert procfs.command_name(child.pid) == "?"
    assert procfs.named("no such program") == []


def test_a_name_may_hold_anything(tmp_path: Path) -> None:
    names = ["with space", "carriage\rreturn", "form\ffeed", "\u2028", "(deleted)", "x" * 250]
    names.append(os.fsdecode(b"latin-\xff"))
    for name in names:
        path = tmp_path / name
        path.write_bytes(b"\0" * PAGE)
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), PAGE):
            asked = [vma for vma in mm.mappings() if vma.name == str(path)]
            told = [
                vma
                for vma in procmaps.parse_smaps(procfs._text(os.getpid(), "maps"))
                if vma.name == str(path)
            ]
            assert len(asked) == len(told) == 1
            assert asked[0].inode == os.stat(path).st_ino
