"""Memory for the table of a container's entries made to fail, each time that it is asked for."""

from __future__ import annotations

import errno

import pytest

import mirrormap as mm
from faults import arm, disarm, needs_faults

pytestmark = needs_faults


@pytest.mark.parametrize("call", ["room", "mmap", "mremap"])
@pytest.mark.parametrize("nth", range(1, 12))
def test_a_table_that_cannot_grow_changes_nothing(call: str, nth: int) -> None:
    with mm.Heap("16MiB", collector="manual") as heap:
        values, model = heap.map(), dict[int, bytes]()
        arm(call, nth, errno.ENOMEM)
        failed = 0
        for at in range(20_000):
            try:
                values[at] = b"%d" % at
                model[at] = b"%d" % at
            except MemoryError:
                failed += 1
                assert at not in values
                assert len(values) == len(model)
                heap.verify()
        disarm()
        assert failed <= 1
        assert dict(values) == model
        arm(call, nth, errno.ENOMEM)
        for at in model:
            del values[at]  # a table that cannot shrink stays long
        disarm()
        assert heap.verify().objects == 0


def test_a_container_for_which_there_is_no_memory() -> None:
    with mm.Heap("1MiB", collector="manual") as heap:
        arm("room", 1, errno.ENOMEM)
        with pytest.raises(MemoryError):
            heap.map()
        disarm()
        heap.map()[1] = b"value"
        heap.verify()
