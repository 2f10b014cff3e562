"""mprotect(2) of a guarded heap made to fail: when it is made, and at a turn of the colour."""

from __future__ import annotations

import errno

import pytest

import mirrormap as mm
from faults import arm, disarm, fault_hits, needs_faults
from heap_modes import protections_of

pytestmark = needs_faults


def test_what_cannot_be_guarded_is_not_made() -> None:
    for nth in (1, 2, 3):
        arm("mprotect", nth, errno.ENOMEM)
        with pytest.raises(OSError, match="memory"):
            mm.Heap("8MiB", collector="manual", guard=True)
    disarm()


@pytest.mark.parametrize("nth", [1, 2])
def test_a_colour_that_cannot_turn_moves_nothing(nth: int) -> None:
    with mm.Heap("8MiB", collector="manual", guard=True) as heap:
        kept = [heap.put(at.to_bytes(4, "little") * 100) for at in range(4000)][::8]
        node = heap.new(0, 1)
        node[0] = kept[0]
        before = protections_of(heap)
        arm("mprotect", nth, errno.ENOMEM)
        heap.collect()
        assert fault_hits() == (1, "mprotect")
        disarm()
        assert heap.stats().moved == 0
        assert heap.stats().stayed > 0
        assert protections_of(heap) == before
        heap.verify()
        heap.collect()
        assert heap.stats().moved > 0
        assert protections_of(heap) != before
        heap.verify()
        assert node[0] == kept[0]
        assert [bytes(ref) for ref in kept] == [at.to_bytes(4, "little") * 100 for at in range(0, 4000, 8)]
