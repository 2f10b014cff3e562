"""What mirrors() says of programs that are not ours: a JVM, a database, workers of PyTorch."""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import pytest

import mirrormap as mm
from mirrormap import procfs
from support import SANITIZED
from support import command as run

MIB = 1 << 20
HEAP = 256 * MIB

PROGRAM = """
public class Hold {
    public static void main(String[] arguments) throws Exception {
        byte[][] held = new byte[96][];
        for (int i = 0; i < held.length; i++) held[i] = new byte[1 << 20];
        System.out.println("ready " + held.length);
        System.in.read();
    }
}
"""


def clean() -> dict[str, str]:
    """The environment for programs that a sanitizer's runtime is not for."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def java_17() -> Path:
    """A JDK or JRE of version 17, whose ZGC shows the heap three times (generational ZGC shows it once)."""
    for candidate in [*sorted(glob.glob("/usr/lib/jvm/*17*/bin/java")), shutil.which("java") or ""]:
        if candidate:
            done = subprocess.run([candidate, "-version"], capture_output=True, text=True, env=clean())
            if 'version "17' in done.stderr:
                return Path(candidate)
    pytest.skip("no JVM of version 17 is installed (apt-get install openjdk-17-jdk-headless)")


@contextlib.contextmanager
def zgc(folder: Path) -> Generator[int]:
    java = java_17()
    (folder / "Hold.java").write_text(PROGRAM)
    options = ["-XX:+UseZGC", f"-Xmx{HEAP}", f"-Xms{HEAP}", "-XX:+AlwaysPreTouch", "-XX:-UsePerfData"]
    child = subprocess.Popen(
        [java, *options, "Hold.java"], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, env=clean(),
    )  # fmt: skip
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        if "compiler" in line:  # a JRE has none
            pytest.skip(f"this JVM cannot run a source file: {line}")
        assert line == "ready 96\n", line + child.stdout.read()
        yield child.pid
    finally:
        child.kill()
        child.communicate()


def test_a_jvm_with_zgc_shows_its_heap_three_times(tmp_path: Path) -> None:
    with zgc(tmp_path) as pid:
        found = mm.mirrors(pid)
        done = run("maps", str(pid), "--json")
        table = run("maps", str(pid)).stdout
        picture = run("maps", str(pid), "--svg", "-").stdout
    heap = found[0]
    assert "java_heap" in heap.name
    assert len(heap.views) == 3
    assert abs(heap.nbytes - HEAP) <= 0.02 * HEAP
    assert heap.resident is not None
    assert abs(heap.resident - HEAP) <= 0.02 * HEAP
    assert heap.rss is not None
    assert heap.rss > 2.5 * HEAP, "what top would say"
    assert found.pss is not None
    assert found.rss - found.pss > 1.5 * HEAP
    told = json.loads(done.stdout)["groups"][0]
    assert len(told["views"]) == 3
    assert abs(told["nbytes"] - HEAP) <= 0.02 * HEAP
    # the views differ in bits of the address only: coloured pointers
    assert len({view.start & ((1 << 42) - 1) for view in heap.views}) == 1
    assert "java_heap" in table
    assert "java_heap" in picture


# --- PostgreSQL ----------------------------------------------------------------------------


def programs_of_postgres() -> Path:
    for folder in sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True):
        if os.access(f"{folder}/initdb", os.X_OK):
            return Path(folder)
    found = shutil.which("initdb")
    if found is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    return Path(found).parent


def somebody() -> dict[str, int]:
    """PostgreSQL refuses to be run by root."""
    if os.geteuid():
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid}
    pytest.skip("root may not run PostgreSQL, and there is nobody else")


@contextlib.contextmanager
def postgres(backends: int) -> Generator[int]:
    """A server with some open connections. Yields: its pid."""
    programs, who = programs_of_postgres(), somebody()
    with tempfile.TemporaryDirectory(prefix="mm-pg-") as base, contextlib.ExitStack() as stack:
        if who:
            os.chown(base, who["user"], who["group"])
        data = f"{base}/data"
        options = {"cwd": base, "env": {**clean(), "LC_ALL": "C"}, **who}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        subprocess.run(
            [programs / "initdb", "-D", data, "-A", "trust", "-U", "mm", "--no-sync"],
            check=True,
            **options,
            **quiet,
        )
        log = stack.enter_context(open(f"{base}/log", "w"))
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-k", base, "-c", "listen_addresses=", "-c", "shared_buffers=64MB",
             "-c", "fsync=off", "-c", "huge_pages=off",
             "-c", "max_parallel_workers_per_gather=0"],  # else workers may have read what a backend counts
            stdout=log, stderr=log, **options,
        )  # fmt: skip
        clients = []
        try:
            client = [programs / "psql", "-h", base, "-U", "mm", "-d", "postgres", "-qAt"]
            deadline = time.monotonic() + 60
            while subprocess.run([*client, "-c", "select 1"], **options, **quiet).returncode:
                assert server.poll() is None, Path(f"{base}/log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            fill = "create table t as select g, repeat('x', 200) from generate_series(1, 100000) g"
            subprocess.run([*client, "-c", fill], check=True, **options, **quiet)
            for _ in range(backends):
                one = subprocess.Popen(
                    client, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
                )
                clients.append(one)
                assert one.stdin is not None
                assert one.stdout is not None
                one.stdin.write("select count(*) from t;\n")
                one.stdin.flush()
                assert one.stdout.readline() == "100000\n"
            yield server.pid
        finally:
            for one in clients:
                one.kill()
                one.communicate()
            server.send_signal(signal.SIGINT)
            server.wait(30)


def test_postgresql_shares_its_buffers_among_its_backends() -> None:
    with postgres(3) as pid:
        backends = [
            child
            for child in procfs.descendants(pid)
            if b"[local]" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
        found = mm.mirrors([pid, *procfs.descendants(pid)])
        told = json.loads(run("maps", str(pid), "--children", "--json").stdout)
        by_name = run("maps", "postgres").stdout
    assert len(backends) == 3
    shared = max((group for group in found if group.kind == "object"), key=lambda group: group.nbytes)
    # the buffers are 64 MiB; locks and the like come on top
    assert 64 * MIB <= shared.nbytes <= 96 * MIB
    pids = [view.pid for view in shared.views]
    assert set(pids) >= {pid, *backends}
    assert len(pids) == len(set(pids)), "one view each"
    assert shared.resident is not None
    assert shared.rss is not None
    assert 8 * MIB < shared.resident <= shared.nbytes
    assert shared.rss > 2 * shared.resident, "each backend that read the table is told to have it"
    assert found.rss - (found.overcounted or 0) < found.rss
    same = next(group for group in told["groups"] if group["nbytes"] == shared.nbytes)
    assert {view["pid"] for view in same["views"]} == set(pids)
    assert "together" in by_name


# --- PyTorch -------------------------------------------------------------------------------

LOADER = """
import os, sys, torch
from torch.utils.data import DataLoader, TensorDataset
data = TensorDataset(torch.ones(4096, 1024).share_memory_())
for batch in (batches := iter(DataLoader(data, batch_size=256, num_workers=2, persistent_workers=True))):
    break
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
@pytest.mark.skipif(SANITIZED, reason="PyTorch brings allocators that a sanitizer's runtime disturbs")
def test_a_dataloader_shares_its_tensors_with_its_workers() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", LOADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        found = mm.mirrors([child.pid, *procfs.descendants(child.pid)])
        tensor = next(group for group in found if group.kind == "object" and group.nbytes >= 16 * MIB)
        assert len({view.pid for view in tensor.views}) == 3
    finally:
        child.kill()
        child.communicate()
