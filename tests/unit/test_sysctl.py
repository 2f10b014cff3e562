"""Strict overcommit and Yama's scopes: what works, what is refused, with which words. Set by root, and set back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from mirrormap import cgroups
from support import GUEST, SANITIZED, succeeds

OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
KBYTES = Path("/proc/sys/vm/overcommit_kbytes")
RATIO = Path("/proc/sys/vm/overcommit_ratio")
YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
MOST_LEFT = 256 << 20

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may set what the whole system does")
alone = pytest.mark.skipif(
    not GUEST, reason="it concerns every process of the machine: in the guests of make matrix"
)


def meminfo(name: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise AssertionError(name)


@pytest.fixture
def strict() -> Generator[None]:
    """vm.overcommit_memory = 2 with little more than what is committed already."""
    ratio = RATIO.read_text()
    kept = sum(
        int(Path(f"/proc/sys/vm/{whose}_reserve_kbytes").read_text()) << 10 for whose in ("admin", "user")
    )
    try:
        OVERCOMMIT.write_text("2")
        KBYTES.write_text(
            str((meminfo("Committed_AS") + meminfo("MemTotal") // 256 + kept + MOST_LEFT) >> 10)
        )
        yield
    finally:
        OVERCOMMIT.write_text("0")
        KBYTES.write_text("0")
        RATIO.write_text(ratio)


BECOME = {"root": "", "user": "import os; os.setgid(1000); os.setuid(1000)\n"}
IMPORT = "import errno, mmap, numpy as np, mirrormap as mm\nMIB = 1 << 20\n"


def test_without_strict_overcommit_nothing_is_said_to_be_left() -> None:
    if OVERCOMMIT.read_text().strip() == "2":
        pytest.skip("overcommit is strict here")
    assert cgroups.commit_left() is None
    assert cgroups.least_left() == cgroups.memory_left()


@root
@alone
@pytest.mark.parametrize("who", BECOME)
def test_strict_overcommit_counts_pages_as_they_come_and_mirrors_never(who: str, strict: None) -> None:
    succeeds(f"""{BECOME[who]}{IMPORT}
with mm.Pages("4GiB") as pages, pages.map() as view, mm.Pages("1MiB").map(reserve="64GiB") as grows:
    view.array()[5] = 6
    grows.resize("2MiB")
source = mmap.mmap(-1, 64 * MIB)
views = [mm.mirror(source) for _ in range(100)]
source[7] = 8
assert all(view.array()[7] == 8 for view in views)
live = mm.full(40 * MIB, 1, "u1")
with mm.snapshot(live) as frozen:
    live[0] = 2
    assert frozen[0] == 1
with mm.Ring(4 * MIB, "u1") as ring, mm.Channel("4MiB") as channel, mm.Growable("u1") as grown:
    ring.extend(b"ab")
    grown.extend(np.ones(MIB, "u1"))
heap = mm.Heap()
kept = heap.map()
kept["a"] = b"b"
assert mm.probe().works
""")


@root
@alone
@pytest.mark.skipif(SANITIZED, reason="a sanitizer's own memory is committed too")
@pytest.mark.parametrize("who", BECOME)
@pytest.mark.parametrize(
    "work",
    [
        'mm.Pages("1GiB").map(populate=True)',
        'mm.Pages("1GiB", page_size="thp").map(populate=True)',
        'mm.zeros(1 << 30, "u1", populate=True)',
        'mm.full(1 << 30, 1, "u1")',
        'mm.share(np.broadcast_to(np.uint8(1), 1 << 30))',
    ],
)  # fmt: skip
def test_what_strict_overcommit_forbids_is_an_error_and_no_sigbus(work: str, who: str, strict: None) -> None:
    succeeds(f"""{BECOME[who]}{IMPORT}
try:
    {work}
except mm.MapError as error:
    assert error.errno == errno.ENOMEM and "vm.overcommit_memory is 2" in str(error), error
else:
    raise AssertionError
assert (mm.full(32 * MIB, 3, "u1") == 3).all()
""")


LOOKS = """
import mirrormap as mm, multiprocessing, subprocess, sys
SCRIPT = ("import mirrormap as mm, sys; view = mm.Pages('1MiB', name='looked-at').map(populate=True); "
          "other = view.mirror(populate=True); print('ready', flush=True); sys.stdin.read()")
LOOK = ("import mirrormap as mm, sys; pid = int(sys.argv[1]); assert len(mm.mappings(pid)) > 10; "
        "assert any(group.name.endswith('looked-at') for group in mm.mirrors(pid))")
child = subprocess.Popen([sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
assert child.stdout.readline()
# whom it looks at is not its child, as Yama would want of a debugger
subprocess.run([sys.executable, "-c", LOOK, str(child.pid)], check=True)
pages = mm.Pages("64KiB")
def store(sent):
    with sent.map() as view:
        view.array()[3] = 9
worker = multiprocessing.get_context("fork").Process(target=store, args=(pages,))
worker.start(); worker.join()
assert pages.map().array()[3] == 9
assert mm.probe().works
child.communicate()
"""


@root
@pytest.mark.parametrize("who", [None, 1000])
@pytest.mark.parametrize("scope", [0, 1, 2, pytest.param(3, marks=alone)])
def test_no_scope_of_yama_hides_or_forbids_anything_here(scope: int, who: int | None) -> None:
    """Yama restricts attaching; the package looks, and hands descriptors over by sockets."""
    if not YAMA.exists():
        pytest.skip("this kernel has no Yama")
    before = int(YAMA.read_text())
    if before == 3 != scope:
        pytest.skip("scope 3 is for good")
    try:
        YAMA.write_text(str(scope))
        succeeds(LOOKS, user=who, group=who)
    finally:
        with contextlib.suppress(OSError):
            YAMA.write_text(str(before))
