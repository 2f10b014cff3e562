"""mappings() and mirrors(): which ranges show the same pages, counted against what is known of them."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import multiprocessing
import os
import subprocess
import time
from collections import Counter
from collections.abc import Generator
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mirrormap as mm
from mirrormap import kernel, pagetables, procfs, sameness
from mirrormap.kernel import VmaInfo
from mirrormap.sameness import Snapshot
from support import MAP_ANONYMOUS, MAP_PRIVATE, PAGE, PATIENCE_S, RW, Raw, checked, libc, read, refused

MIB = 1 << 20


def group_of(found: mm.Mirrors, name: str) -> mm.MirrorGroup:
    (group,) = [group for group in found if group.name.endswith(name)]
    return group


def spans(group: mm.MirrorGroup) -> list[tuple[int, int, int]]:
    return [(view.start, view.end, view.offset) for view in group.views]


# --- one process ---------------------------------------------------------------------------


def test_a_ring_is_two_views_of_its_pages_and_rss_counts_both() -> None:
    with mm.Pages(4 * MIB, name="inspected") as pages:
        ring = pages.arrange([(0, 4 * MIB)] * 2, populate=True)
        group = group_of(mm.mirrors(), "mirrormap:inspected")
        at = ring.address
        assert spans(group) == [(at, at + 4 * MIB, 0), (at + 4 * MIB, at + 8 * MIB, 0)]
        assert group.nbytes == 4 * MIB
        assert (group.resident, group.rss) == (4 * MIB, 8 * MIB)
        assert group.counts == ((0, 4 * MIB, 2),)
        assert (group.most_views, group.kind, group.page_size) == (2, "object", PAGE)
        assert {view.protection for view in group.views} == {"rw"}
        ring.close()


def test_one_view_is_no_mirror_and_pages_of_their_own_are_none() -> None:
    with mm.Pages(8 * PAGE, name="inspected") as pages, pages.map(0, 4 * PAGE), pages.map(4 * PAGE):
        assert not [group for group in mm.mirrors() if group.name.endswith("inspected")]


def test_every_page_s_views_are_counted_where_they_overlap() -> None:
    with mm.Pages(8 * PAGE, name="inspected") as pages:
        views = [pages.map(), pages.map(2 * PAGE, 3 * PAGE), pages.map(4 * PAGE, 4 * PAGE)]
        group = group_of(mm.mirrors(), "inspected")
        expected = ((0, 2, 1), (2, 2, 2), (4, 1, 3), (5, 3, 2))
        assert group.counts == tuple(
            (offset * PAGE, count * PAGE, views) for offset, count, views in expected
        )
        assert (group.nbytes, group.most_views) == (8 * PAGE, 3)
        for view in views:
            view.close()


def test_a_copy_in_pieces_is_one_view() -> None:
    with mm.Pages(4 * PAGE, name="inspected") as pages:
        backwards = [(page * PAGE, PAGE) for page in (3, 2, 1, 0)]
        with pages.arrange(backwards) as one, pages.arrange(backwards) as other:
            group = group_of(mm.mirrors(), "inspected")
            first, second = sorted((one.address, other.address))
            assert spans(group) == [
                (first, first + 4 * PAGE, 3 * PAGE),
                (second, second + 4 * PAGE, 3 * PAGE),
            ]
            assert [view.pieces for view in group.views] == [4, 4]
            one.protect("r", 0, PAGE)
            assert sorted(view.protection for view in group_of(mm.mirrors(), "inspected").views) == [
                "mixed",
                "rw",
            ]


@pytest.mark.parametrize("make", ["anonymous", "SharedMemory", "file", "SysV", "deleted"])
def test_every_sort_of_shared_object_is_found(make: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        if make == "anonymous":
            source = stack.enter_context(mmap.mmap(-1, 4 * PAGE))
        elif make == "SharedMemory":
            block = shared_memory.SharedMemory(create=True, size=4 * PAGE)
            stack.callback(block.unlink)
            stack.callback(block.close)
            source = block
        elif make == "SysV":
            source = stack.enter_context(sysv(4 * PAGE))
        else:
            path = tmp_path / "file"
            path.write_bytes(bytes(4 * PAGE))
            with open(path, "r+b") as file:
                source = stack.enter_context(mmap.mmap(file.fileno(), 4 * PAGE))
            if make == "deleted":
                path.unlink()
        before = mm.mirrors()
        with mm.mirror(source) as view:
            new = [
                group
                for group in mm.mirrors()
                if (group.dev, group.inode, group.views)
                not in {(old.dev, old.inode, old.views) for old in before}
            ]
            assert len(new) == 1
            assert len(new[0].views) == 2
            assert view.address in [each.start for each in new[0].views]
            assert new[0].nbytes == 4 * PAGE
            assert not new[0].name.endswith("(deleted)")


@contextlib.contextmanager
def sysv(nbytes: int) -> Generator[ctypes.Array[ctypes.c_ubyte]]:
    number = checked(libc.shmget(0, ctypes.c_size_t(nbytes), 0o1600))
    libc.shmat.restype = ctypes.c_void_p
    address = checked(libc.shmat(number, None, 0))
    try:
        yield (ctypes.c_ubyte * nbytes).from_address(address)
    finally:
        libc.shmdt(ctypes.c_void_p(address))
        libc.shmctl(number, 0, None)


def test_the_number_of_a_sysv_segment_is_no_inode_of_a_memfd() -> None:
    shm = VmaInfo(1 << 20, 2 << 20, 3, True, PAGE, 0, 1, 42, "/SYSV00000000 (deleted)")
    memfd = shm._replace(start=4 << 20, end=5 << 20, name="/memfd:x (deleted)")
    assert not sameness.by_object([Snapshot(os.getpid(), [shm, memfd], None)])
    again = shm._replace(start=8 << 20, end=9 << 20)
    (group,) = sameness.by_object([Snapshot(os.getpid(), [shm, memfd, again], None)])
    assert [view.start for view in group.views] == [1 << 20, 8 << 20]


def test_huge_pages_count_though_rss_leaves_them_out(huge: int) -> None:
    with mm.Pages(2 * huge, page_size=huge, name="inspected") as pages:
        before = mm.mirrors().processes[0].hugetlb
        with pages.map(populate=True), pages.map(populate=True):
            found = mm.mirrors()
            group = group_of(found, "inspected")
            assert (group.nbytes, group.page_size) == (2 * huge, huge)
            assert (group.resident, group.rss) == (2 * huge, 0)
            assert found.processes[0].hugetlb - before == 4 * huge
            record = next(vma for vma in mm.mappings() if vma.name.startswith("/memfd:mirrormap:inspected"))
            assert record.page_size == huge
            assert record.huge == record.resident == record.nbytes


def test_a_private_mapping_shows_what_it_has_not_copied() -> None:
    with mm.Pages(4 * PAGE, name="inspected") as pages, pages.map(populate=True):
        with Raw(4 * PAGE, RW, MAP_PRIVATE, fd=pages.fileno()) as private:
            read(private.address, 4 * PAGE)
            group = group_of(mm.mirrors(), "inspected")
            assert [
                view.shared for view in sorted(group.views, key=lambda view: view.start == private.address)
            ] == [True, False]
            assert group.rss == 8 * PAGE
            private.buffer[0] = 1
            assert group_of(mm.mirrors(), "inspected").rss == 7 * PAGE


def test_devices_and_libraries_are_not_taken_for_mirrors() -> None:
    node = os.stat("/dev").st_dev
    entry = VmaInfo(1 << 20, 2 << 20, 3, True, PAGE, 0, node, 42, "/dev/some/card0")
    second = entry._replace(start=4 << 20, end=5 << 20)
    ring = (
        entry._replace(dev=99, name="anon_inode:[perf_event]"),
        second._replace(dev=99, name="anon_inode:[perf_event]"),
    )
    code = (
        entry._replace(dev=98, shared=False, name="/lib/x.so"),
        second._replace(dev=98, shared=False, name="/lib/x.so"),
    )
    assert not sameness.by_object([Snapshot(1, [entry, second, *ring, *code], None)])


def test_the_first_sysv_segment_of_a_system_has_inode_0() -> None:
    entry = VmaInfo(1 << 20, 2 << 20, 3, True, PAGE, 0, 1, 0, "/SYSV00000000 (deleted)")
    second = entry._replace(start=4 << 20, end=5 << 20)
    private = VmaInfo(8 << 20, 9 << 20, 3, False, PAGE, 0, 0, 0, "")
    (group,) = sameness.by_object([Snapshot(1, [entry, second, private], None)])
    assert [view.start for view in group.views] == [1 << 20, 4 << 20]


def test_costs_are_those_of_the_kernel() -> None:
    with mm.Pages(16 * MIB, name="inspected") as pages:
        views = pages.views(3, populate=True)
        found = mm.mirrors()
        (cost,) = found.processes
        assert cost.pid == os.getpid()
        # VmRSS is added up from the threads' own counts once in a while, before Linux 6.2
        assert abs(cost.rss - procfs.status(cost.pid)["VmRSS"]) < 8 * MIB
        assert cost.pss is not None
        assert cost.rss - cost.pss >= 32 * MIB
        assert found.overcounted is not None
        assert found.overcounted is None or 32 * MIB <= found.overcounted <= cost.rss
        assert (found.rss, found.pss) == (cost.rss, cost.pss)
        assert 0 < cost.vmas < cost.max_map_count
        assert cost.page_tables >= 3 * 16 * MIB // PAGE * 8
        assert repr(found).startswith("<Mirrors of ")
        assert "counted more than once" in repr(found)
        for view in views:
            view.close()


def test_records_tell_residency_page_by_page() -> None:
    with mm.Pages(64 * PAGE, name="inspected") as pages, pages.map() as view:
        view.array()[:: 2 * PAGE] = 1
        (record,) = [vma for vma in mm.mappings() if vma.start == view.address]
        assert (record.resident, record.swapped, record.huge) == (32 * PAGE, 0, 0)
        assert (record.nbytes, record.protection, record.shared, record.offset) == (64 * PAGE, "rw", True, 0)
        assert sum(vma.nbytes for vma in mm.mappings(os.getpid())) > 64 * PAGE


def test_transparent_huge_pages_are_told() -> None:
    with mm.Pages("4MiB", page_size="thp", name="inspected") as pages, pages.map(populate=True) as view:
        record = next(vma for vma in mm.mappings() if vma.start == view.address)
        assert record.huge == view.resident_huge


def test_progress_is_told_while_it_goes_on() -> None:
    seen: list[tuple[int, int]] = []
    with mm.Pages(MIB) as pages, pages.map(populate=True):
        mm.mirrors(progress=lambda found, expected: seen.append((found, expected)))
    assert seen[0][0] == 0 < seen[-1][0]
    assert all(0 < found <= expected for found, expected in seen[1:])
    assert seen == sorted(seen)


# --- several -------------------------------------------------------------------------------


def _worker(name: str, ready: object, done: object) -> None:
    block = shared_memory.SharedMemory(name=name)
    np.frombuffer(block.buf, "u1").sum()  # type: ignore[arg-type]
    ready.release()  # type: ignore[attr-defined]
    done.wait()  # type: ignore[attr-defined]
    block.close()


def test_workers_over_a_shared_memory_block() -> None:
    context = multiprocessing.get_context("fork")
    ready, done = context.Semaphore(0), context.Event()
    block = shared_memory.SharedMemory(create=True, size=8 * MIB)
    assert block.buf is not None
    block.buf[:] = bytes([7]) * (8 * MIB)
    private = np.ones(32 * MIB, "u1")  # of the parent, shared by the forks until written
    workers = [context.Process(target=_worker, args=(block.name, ready, done)) for _ in range(3)]
    try:
        for worker in workers:
            worker.start()
        for _ in workers:
            assert ready.acquire(timeout=PATIENCE_S)
        everybody = [os.getpid(), *procfs.descendants(os.getpid())]
        assert {worker.pid for worker in workers} <= set(everybody)
        found = mm.mirrors([os.getpid(), *(worker.pid for worker in workers if worker.pid)])
        group = group_of(found, block.name)
        assert group.nbytes == 8 * MIB
        assert group.resident == 8 * MIB
        # each worker inherited the parent's view and opened one of its own
        assert Counter(view.pid for view in group.views) == {
            os.getpid(): 1,
            **{worker.pid: 2 for worker in workers},
        }
        assert len(found.processes) == 4
        assert found.pss is not None
        assert found.rss - found.pss > 3 * 8 * MIB
        if os.geteuid() == 0:
            address = private.ctypes.data
            forked = max(
                (
                    group
                    for group in found
                    if group.kind == "fork" and any(v.start <= address + PAGE < v.end for v in group.views)
                ),
                key=lambda group: group.nbytes,
            )
            assert forked.nbytes >= 31 * MIB
            assert forked.most_views == 4
    finally:
        done.set()
        for worker in workers:
            worker.join(PATIENCE_S)
        block.close()
        block.unlink()


def test_a_page_written_after_the_fork_is_shared_no_longer() -> None:
    if os.geteuid():
        pytest.skip("only root is told physical frames")
    with Raw(64 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS) as memory:
        ctypes.memset(memory.address, 1, 64 * PAGE)
        libc.madvise(memory.address, 64 * PAGE, 15)  # MADV_NOHUGEPAGE
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            ctypes.memset(memory.address, 2, 16 * PAGE)
            os.write(writing, b"x")
            time.sleep(60)
            os._exit(0)
        try:
            os.read(reading, 1)
            found = mm.mirrors([os.getpid(), child])
            shared = sum(
                min(view.end, memory.address + 64 * PAGE) - max(view.start, memory.address)
                for group in found
                if group.kind == "fork"
                for view in group.views
                if view.pid == child and view.start < memory.address + 64 * PAGE and view.end > memory.address
            )
            assert shared == 48 * PAGE
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)
            os.close(reading)
            os.close(writing)


@contextlib.contextmanager
def merging() -> Generator[None]:
    """KSM at full speed, put back as it was."""
    folder = Path("/sys/kernel/mm/ksm")
    if os.geteuid() or not (folder / "run").exists():
        pytest.skip("KSM is not in this kernel, or we are not root")
    before = {name: (folder / name).read_text() for name in ("run", "sleep_millisecs", "pages_to_scan")}
    try:
        (folder / "sleep_millisecs").write_text("1")
        (folder / "pages_to_scan").write_text("10000")
        (folder / "run").write_text("1")
        yield
    finally:
        if before["run"].strip() == "0":
            (folder / "run").write_text("2")  # what was merged for us is taken apart
        for name, text in before.items():
            (folder / name).write_text(text)


def test_pages_of_zeros_are_nobodys_whichever_way_the_table_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid():
        pytest.skip("only root is told physical frames")

    with Raw(64 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS) as memory:
        libc.madvise(memory.address, 64 * PAGE, 15)  # MADV_NOHUGEPAGE
        read(memory.address, 64 * PAGE)
        for refusing in (False, True):  # with and without PAGEMAP_SCAN
            if refusing:
                monkeypatch.setattr(kernel, "pagemap_stretches", refused)
            found = mm.mirrors(frames=True)
            at = [view.start for group in found if group.kind != "object" for view in group.views]
            assert not [start for start in at if memory.address <= start < memory.address + 64 * PAGE]


def test_pages_that_ksm_merged_are_found() -> None:
    with merging(), Raw(64 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS) as memory:
        ctypes.memset(memory.address, 0x5A, 64 * PAGE)
        if libc.madvise(memory.address, 64 * PAGE, 12):  # MADV_MERGEABLE
            pytest.skip("this kernel merges no pages")
        if pagetables.calls_all_merged():
            pytest.skip("this kernel says of every private page that it is merged")
        merging_pages = Path("/proc/self/ksm_merging_pages")  # Linux 5.19; else those of everybody
        if not merging_pages.exists():
            merging_pages = Path("/sys/kernel/mm/ksm/pages_sharing")
        deadline = time.monotonic() + PATIENCE_S
        while int(merging_pages.read_text()) < 60:
            assert time.monotonic() < deadline, "KSM did not merge equal pages"
            time.sleep(0.05)
        groups = [group for group in mm.mirrors() if group.kind == "ksm"]
        (group,) = [group for group in groups if group.views[0].start <= memory.address + 63 * PAGE]
        assert group.nbytes < 8 * PAGE
        assert group.rss is not None
        assert group.rss > 50 * PAGE
        assert group.most_views > 8


def test_one_of_several_that_has_ended_is_left_out_and_named() -> None:
    with subprocess.Popen(["true"]) as child:
        child.wait()
    found = mm.mirrors([os.getpid(), child.pid])
    assert [process.pid for process in found.processes] == [os.getpid()]
    assert f"process {child.pid} has ended" in found.left_out[0]
    with pytest.raises(mm.ProcessGone):
        mm.mirrors([child.pid])
    with pytest.raises(ValueError, match="at least one"):
        mm.mirrors([])


# --- any arrangement at all ----------------------------------------------------------------


@st.composite
def snapshots(draw: st.DrawFn) -> list[Snapshot]:
    found = []
    for pid in range(1, draw(st.integers(1, 3)) + 1):
        entries, at = [], 16
        for _ in range(draw(st.integers(0, 12))):
            at += draw(st.integers(0, 3))
            count = draw(st.integers(1, 6))
            inode = draw(st.integers(0, 3))
            entries.append(
                VmaInfo(
                    at * PAGE, (at + count) * PAGE, draw(st.sampled_from([1, 3])), draw(st.integers(0, 4)) > 0, PAGE,
                    draw(st.sampled_from([0, 1, 2, 3, 7, (1 << 62) // PAGE])) * PAGE, min(inode, 1), inode, "/memfd:x",
                )
            )  # fmt: skip
            at += count
        rows = [
            (page * PAGE, (page + 1) * PAGE, 12) for vma in entries for page in range(vma.start // PAGE, vma.end // PAGE) if draw(st.booleans())
        ]  # fmt: skip
        found.append(Snapshot(pid, list(entries), np.array(rows, np.uint64).reshape(-1, 3)))
    return found


@given(snapshots())
def test_groups_are_what_a_slow_count_of_pages_finds(seen: list[Snapshot]) -> None:
    shown: Counter[tuple[int, int]] = Counter()
    present: Counter[tuple[int, int]] = Counter()
    eligible = {row[7] for snapshot in seen for row in snapshot.entries if row[3] and row[7]}
    for snapshot in seen:
        assert snapshot.rows is not None
        pages = set((snapshot.rows[:, 0] // np.uint64(PAGE)).tolist())
        for row in map(VmaInfo._make, snapshot.entries):
            for index in range((row.end - row.start) // PAGE):
                key = row.inode, row.offset // PAGE + index
                shown[key] += 1
                present[key] += row.start // PAGE + index in pages
    groups = {group.inode: group for group in sameness.by_object(seen)}
    assert set(groups) == {inode for (inode, _), count in shown.items() if count > 1 and inode in eligible}
    for inode, group in groups.items():
        counts = {page: count for (owner, page), count in shown.items() if owner == inode}
        told = {
            offset // PAGE + index: count
            for offset, nbytes, count in group.counts
            for index in range(nbytes // PAGE)
        }
        assert told == counts
        assert group.nbytes == len(counts) * PAGE
        resident = [count for (owner, _), count in present.items() if owner == inode]
        assert group.rss == sum(resident) * PAGE
        assert group.resident == sum(map(bool, resident)) * PAGE
        assert sum(view.nbytes for view in group.views) == sum(counts.values()) * PAGE
        assert all(view.nbytes <= group.nbytes for view in group.views)
        assert sum(view.resident or 0 for view in group.views) == group.rss
