"""Under programs that stand between us and the kernel, and answer for it: noticed, and gone round."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest

from support import SANITIZED, pools_alone

SCRIPT = """
import json, mmap, tempfile
import numpy as np
import mirrormap as mm
found = mm.probe()
print("FOUND " + json.dumps(found.as_dict()))
memory = mmap.mmap(-1, 8 * mmap.PAGESIZE)
memory[5] = 7
view = mm.mirror(memory, populate=True)
assert view.array()[5] == 7 and view.resident == view.nbytes, view.resident
view.array()[9] = 8
assert memory[9] == 8
with tempfile.TemporaryFile() as file:
    file.truncate(8 * mmap.PAGESIZE)
    mapped = mmap.mmap(file.fileno(), 8 * mmap.PAGESIZE)
    mm.mirror(mapped).array()[3] = 4
    assert mapped[3] == 4
array = mm.zeros(10_000)
other = mm.mirror(array)
other[7] = 5
assert array[7] == 5
ring = mm.Ring(1000)
ring.extend(np.arange(3000))
assert ring.latest(1000)[0] == 2000
try:
    mm.mirror(np.zeros(100_000))
except mm.NotMirrorableError:
    print("DONE")
"""

pytestmark = pytest.mark.apart

UNDER = {
    "qemu-user": ["qemu-x86_64"],
    "valgrind": ["valgrind", "-q", "--leak-check=no", "--undef-value-errors=no"],
}


@pytest.mark.parametrize("name", UNDER)
def test_mirroring_works_where_mremap_is_emulated_and_the_probe_says_how(name: str) -> None:
    command = UNDER[name]
    if SANITIZED:
        pytest.skip("a sanitizer's runtime and an emulator do not go together")
    if not shutil.which(command[0]) or sys.platform != "linux":
        pytest.skip(f"{command[0]} is not installed: apt-get install qemu-user valgrind")
    with pools_alone():
        done = subprocess.run(
            [*command, sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=280
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "DONE" in done.stdout
    found: dict[str, Any] = json.loads(done.stdout.partition("FOUND ")[2].splitlines()[0])
    assert found["works"]
    assert found["mirror_route"] == "descriptor", "these versions refuse mremap with old_size 0"
    assert found["populate"]
    if name == "qemu-user":
        assert found["populate_route"] == "touch", "it answers MADV_POPULATE_READ with 0 and does nothing"
    else:
        assert not found["move_shared"], "it refuses MREMAP_DONTUNMAP"
    said = {check["name"]: check["detail"] for check in found["checks"]}
    assert "descriptor" in said["mirror shared memory"]
    assert ("touching" if name == "qemu-user" else "MADV_POPULATE") in said["populate page tables"]
