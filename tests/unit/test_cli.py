"""The commands, run as a user runs them."""

from __future__ import annotations

import json
import os
import re
from importlib.metadata import version
from pathlib import Path

from support import SANITIZED, pools_alone
from support import command as run


def test_check_prints_a_table_and_succeeds_where_mirroring_works() -> None:
    done = run("check")
    assert done.returncode == 0, done.stderr
    assert "mirror shared memory" in done.stdout
    assert "Memory can be mirrored here." in done.stdout


def test_check_names_the_command_for_what_is_missing() -> None:
    found = json.loads(run("check", "--json").stdout)
    text = run("check").stdout
    for check in found["checks"]:
        if not check["ok"]:
            assert check["cure"] in text


def test_check_json_is_the_whole_answer() -> None:
    found = json.loads(run("check", "--json").stdout)
    assert found["works"] is True
    assert found["mirror_route"] in ("mremap", "descriptor")
    assert {"huge_pools", "map_count", "max_map_count", "refused", "checks"} <= set(found)


def test_demo_runs_to_its_end_and_leaves_nothing() -> None:
    before = sorted(os.listdir("/dev/shm"))
    with pools_alone():
        pools = {pool: pool.read_text() for pool in Path("/sys/kernel/mm/hugepages").glob("*/nr_hugepages")}
        done = run("demo")
        assert {pool: pool.read_text() for pool in pools} == pools
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "HELLO, mirror!" in done.stdout
    assert "written by the child" in done.stdout
    faults = re.findall(r"then ([\d,]+) faults", done.stdout)
    lazy, populated = (int(count.replace(",", "")) for count in faults)
    assert populated <= (8 if SANITIZED else 0) < lazy
    assert "mirrormap.share" in done.stdout
    assert sorted(os.listdir("/dev/shm")) == before


def test_version_and_help() -> None:
    assert run("--version").stdout.strip() == f"mirrormap {version('mirrormap')}"
    assert "check" in run("--help").stdout


def test_no_command_is_a_usage_error() -> None:
    done = run()
    assert done.returncode == 2
    assert "COMMAND" in done.stderr
