"""Acts that are the state machines of tests/model, with the soak's seeds: random lives against plain Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from stage import Stage
from test_channel_model import Messages
from test_growable_model import Growth
from test_heap_model import Garbage
from test_heap_records_model import Records
from test_ring_model import Stream
from test_state_machine import Life

from support import PAGE

BRIEF = settings(
    max_examples=8,
    stateful_step_count=40,
    deadline=None,
    database=None,
    derandomize=False,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)


def lived(machine: type[Any], **chosen: list[Any]) -> Callable[[Stage], None]:
    """An act: a few lives of a machine, whose attributes are chosen at random."""

    def act(stage: Stage) -> None:
        attributes = {name: stage.chance.choice(values) for name, values in chosen.items()}
        one = type(machine.__name__, (machine,), attributes)
        run_state_machine_as_test(seed(stage.chance.getrandbits(64))(one), settings=BRIEF)

    act.__name__ = f"model_{machine.__name__.lower()}"
    return act


model_pages = lived(Life)
model_ring = lived(Stream, item_nbytes=[1, 3, 12, 496, 1921, PAGE])
model_channel = lived(Messages, inflight=[None, 1, 2, 7])
model_growable = lived(Growth)
model_heap = lived(Garbage)
model_records = lived(Records)
