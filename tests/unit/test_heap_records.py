"""Records of a heap: what may be declared, fields in and out, references, and where else a record goes."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import mirrormap as mm
from mirrormap import Ref
from support import heaps_are_gone, succeeds

LIMITS = {
    "b1": (False, True), "i1": (-128, 127), "u1": (0, 255), "i2": (-(2**15), 2**15 - 1), "u2": (0, 2**16 - 1),
    "i4": (-(2**31), 2**31 - 1), "u4": (0, 2**32 - 1), "i8": (-(2**63), 2**63 - 1), "u8": (0, 2**64 - 1),
}  # fmt: skip


@pytest.fixture
def heap() -> Iterator[mm.Heap]:
    made = mm.Heap("16MiB")
    yield made
    gc.collect()
    made.close()


@pytest.fixture
def node(heap: mm.Heap) -> type[mm.Record]:
    return heap.record("Node", key="i8", weight="f4", left=Ref, right=Ref)


# --- fields -----------------------------------------------------------------------------------


def test_fields_not_given_are_zero_or_none(node: Any) -> None:
    empty = node()
    assert (empty.key, empty.weight, empty.left, empty.right) == (0, 0.0, None, None)
    assert node.__match_args__ == ("key", "weight", "left", "right")


def test_by_name_and_in_order(node: Any) -> None:
    leaf = node(key=1)
    for made in (node(key=5, weight=0.5, left=leaf), node(5, 0.5, leaf), node(5, weight=0.5, left=leaf)):
        assert (made.key, made.weight, made.left, made.right) == (5, 0.5, leaf, None)
    match made:
        case node(key, weight):
            assert (key, weight) == (5, 0.5)


@pytest.mark.parametrize("kind", LIMITS)
def test_every_whole_number_that_fits_comes_back_and_no_other(heap: mm.Heap, kind: str) -> None:
    made: Any = heap.record("One", before="u1", value=kind, behind="u1")(before=255, behind=255)
    for value in LIMITS[kind]:
        made.value = value
        assert made.value == value
        assert type(made.value) is type(value)
        made.value = np.dtype(kind).type(value)
        assert made.value == value
    if kind != "b1":
        low, high = LIMITS[kind]
        for value in (low - 1, high + 1, 10**30, -(10**30)):
            with pytest.raises(OverflowError, match="does not fit"):
                made.value = value
        with pytest.raises(TypeError):
            made.value = 1.5
        assert made.value == high
    assert (made.before, made.behind) == (255, 255)


def test_floats(heap: mm.Heap) -> None:
    made: Any = heap.record("Floats", single=np.float32, double=float)(0.1, 0.1)
    assert (made.single, made.double) == (float(np.float32(0.1)), 0.1)
    made.single = made.double = float("-inf")
    assert made.single == made.double == float("-inf")
    with pytest.raises(TypeError):
        made.double = "1"
    with pytest.raises(OverflowError):
        made.double = 10**400


def test_a_value_that_closes_the_heap_while_it_is_converted() -> None:
    heap = mm.Heap("1MiB")
    made: Any = heap.record("One", value="i8")()

    class Closes:
        def __index__(self) -> int:
            heap.close()
            return 1

    with pytest.raises(mm.ClosedError):
        made.value = Closes()


def test_a_value_that_collects_while_it_is_converted() -> None:
    with mm.Heap("16MiB", collector="manual") as heap:  # nobody else moves anything
        kind: Any = heap.record("One", value="i8", pad="i8")
        kept = [kind(n) for n in range(30_000)]
        del kept[::3], kept[::5]
        moved = heap.stats().moved

        class Collects:
            def __index__(self) -> int:
                heap.collect()
                return 7

        kept[-1].value = Collects()
        assert heap.stats().moved > moved
        assert kept[-1].value == 7
        assert kind(Collects()).value == 7
        heap.verify()
        del kept


def test_bad_fields(node: Any) -> None:
    made = node(1)
    for call in (
        lambda: node(1, 2.0, None, None, None), lambda: node(unknown=1), lambda: node(1, key=2),
        lambda: node("1"), lambda: node(left=5), lambda: node(left=node), lambda: setattr(made, "left", b""),
    ):  # fmt: skip
        with pytest.raises(TypeError):
            call()
    for call in (lambda: made.typo, lambda: setattr(made, "typo", 1), lambda: delattr(made, "key")):
        with pytest.raises(AttributeError):
            call()
    assert (made.key, made.left) == (1, None)


def test_fields_of_another_class_are_refused(heap: mm.Heap, node: Any) -> None:
    other: Any = heap.record("Other", key="i8")
    field = vars(node)["key"]
    assert field.name == "key"
    assert repr(field) == "<Field key>"
    for stranger in (other(1), heap.put(b""), 5, object()):
        with pytest.raises(TypeError, match="none of"):
            field.__get__(stranger)
        with pytest.raises(TypeError, match="none of"):
            field.__set__(stranger, 1)
    with mm.Heap("1MiB") as second:
        twin = second.record("Node", key="i8", weight="f4", left=Ref, right=Ref)()
        with pytest.raises(TypeError):
            field.__get__(twin)
        with pytest.raises(ValueError, match="another heap"):
            node(left=twin)


# --- declaring --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [{"a": "O"}, {"a": "S5"}, {"a": "f2"}, {"a": "c16"}, {"a": np.dtype("i8").newbyteorder()}, {"a": "M8[s]"}, {"a": "(2,)i4"},
     {"a": [("b", "i4")]}, {"a": "no such"}, {"a": str}, {"a": mm.Heap}, {"a": 5}],
)  # fmt: skip
def test_what_is_no_field(heap: mm.Heap, fields: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        heap.record("Bad", **fields)


@pytest.mark.parametrize("name", ["", "1", "a b", "_hidden", "__class__", "a.b"])
def test_what_is_no_name(heap: mm.Heap, name: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        heap.record(name, key="i8")
    with pytest.raises(ValueError, match="no name"):
        heap.record("Good", **{name: "i8"})
    assert heap.record("Good", key="i8")(1).key == 1


def test_declaring_again(heap: mm.Heap, node: type[mm.Record]) -> None:
    assert heap.record("Node", key=np.int64, weight="f4", left=node, right=Ref) is node
    for fields in ({"key": "i8"}, {"weight": "f4", "key": "i8", "left": Ref, "right": Ref}):
        with pytest.raises(ValueError, match="other fields"):
            heap.record("Node", **fields)


def test_how_many_fields_and_classes(heap: mm.Heap) -> None:
    wide: Any = heap.record(
        "Wide", **{f"f{n}": "i8" for n in range(1023)}, **{f"r{n}": Ref for n in range(1023)}
    )
    made = wide(**{f"f{n}": n for n in range(1023)})
    made.r1022 = made
    assert [getattr(made, f"f{n}") for n in (0, 511, 1022)] == [0, 511, 1022]
    assert made.r1022 == made
    heap.verify()
    for fields in (
        {f"f{n}": "i8" for n in range(1024)},
        {f"r{n}": Ref for n in range(1024)},
        {f"f{n}": "u1" for n in range(8185)},
    ):
        with pytest.raises(ValueError, match="1,023 references"):
            heap.record("Wider", **fields)
    last: Any = None
    for number in range(2047):
        last = heap.record(f"Kind{number}", value="i4")
    assert last(5).value == 5
    with pytest.raises(ValueError, match="2048 types"):
        heap.record("TooMany", value="i4")
    heap.verify()


def test_a_record_without_fields_and_one_without_references(heap: mm.Heap) -> None:
    empty, plain = heap.record("Empty")(), heap.record("Plain", value="u1")(value=7)
    assert repr(empty) == "Empty()"
    heap.collect()
    assert (heap.verify().objects, plain.value) == (2, 7)
    assert heap.stats().live == 32


def test_the_bytes_of_a_node(heap: mm.Heap) -> None:
    node = heap.record("Node", key="i8", left=Ref, right=Ref)
    kept = [node(number) for number in range(8192)]
    assert heap.stats().live == 32 * len(kept)
    assert "32 bytes" in str(node.__doc__)


def test_classes_are_made_by_heaps_only(node: Any) -> None:
    with pytest.raises(TypeError, match=r"Heap\.record"):
        mm.Record()
    with pytest.raises(TypeError):
        type("Derived", (node,), {})
    with pytest.raises(TypeError, match=r"Heap\.record"):
        type("Derived", (mm.Record,), {})()
    with pytest.raises(TypeError):
        object.__new__(node)
    stolen = type("Stolen", (mm.Record,), {"_layout": node._layout})
    with pytest.raises(TypeError, match="cannot be derived"):
        stolen()


# --- as a Ref ---------------------------------------------------------------------------------


def test_a_record_goes_wherever_a_ref_goes(heap: mm.Heap, node: Any) -> None:
    made, general, data = node(key=1), heap.new(0, 2), heap.put(np.arange(3.0))
    made.left, made.right = general, data
    general[0], general[1] = made, data
    heap.roots["made"] = made
    weak = heap.weak(made)
    assert general[0] == made == weak() == heap.roots["made"] == made.left[0]
    assert isinstance(weak(), node)
    assert isinstance(made, mm.Record)
    assert len({general[0], made, weak()}) == 1
    assert made != general
    assert made != node(key=1)
    assert made.right.array.tolist() == [0, 1, 2]
    del made, general, data
    heap.collect()
    assert heap.roots["made"].left[0].key == 1
    del heap.roots["made"]
    heap.collect()
    assert weak() is None
    assert heap.verify().objects == 0


def test_records_show_no_bytes_and_stay_in_their_process(node: Any) -> None:
    made = node(1)
    with pytest.raises(TypeError):
        memoryview(made)
    with pytest.raises(TypeError):
        bytes(made)
    for attribute in ("array", "nbytes", "writable"):
        assert not hasattr(made, attribute)
    for call in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            call(made)


def test_cycles_of_records_die(heap: mm.Heap, node: Any) -> None:
    one, other = node(1), node(2)
    one.left, other.left, one.right = other, one, one
    del one, other
    heap.collect()
    assert heap.stats().committed == 0


def test_records_move_and_their_fields_with_them(heap: mm.Heap, node: Any) -> None:
    kept = [node(number, number / 2) for number in range(40_000)]
    for before, after in zip(kept, kept[1:], strict=False):
        before.left = after
    first, last = kept[0], kept[-1]
    for at in range(0, 39_999, 2):
        kept[at].left = kept[min(at + 2, 39_999)]
    del kept
    heap.collect()
    assert heap.stats().moved
    heap.verify()
    count, here = 0, first
    while here is not None:
        assert here.weight == here.key / 2
        count, here = count + 1, here.left
    assert count == 20_001
    assert last.key == 39_999


def test_repr(heap: mm.Heap, node: Any) -> None:
    made = node(5, 0.5, node(6), heap.put(b""))
    assert repr(made) == "Node(key=5, weight=0.5, left=<Node>, right=<Ref>)"


def test_a_full_heap_is_a_memory_error(heap: mm.Heap, node: Any) -> None:
    kept: Any = None
    with pytest.raises(MemoryError, match="no room for 16 bytes"):
        for number in range(1_000_000):
            kept = node(number, 0, kept)
    assert heap.verify().objects > 340_000
    kept = None
    assert node(1).key == 1


def test_the_heap_ends_before_its_records() -> None:
    heap = mm.Heap("1MiB")
    node: Any = heap.record("Node", key="i8", left=Ref)
    made = node(1)
    heap.close()
    for call in (
        lambda: made.key,
        lambda: setattr(made, "key", 1),
        node,
        lambda: heap.record("Other", key="i8"),
    ):
        with pytest.raises(mm.ClosedError):
            call()
    assert repr(made) == "<Node closed>"


def test_a_record_holds_its_heap_and_its_class_does_not() -> None:
    heap = mm.Heap("1MiB", collector="manual")  # a thread would hold it for moments
    node: Any = heap.record("Node", key="i8", left=Ref)
    made = node(2, node(1))
    del heap  # a record holds it
    assert made.left.key == 1
    del made
    with pytest.raises(mm.ClosedError, match="gone"):
        node(1)
    heaps_are_gone()


def test_a_forked_child_is_refused() -> None:
    succeeds("""
import os
import mirrormap as mm
heap = mm.Heap("8MiB")
node = heap.record("Node", key="i8", left=mm.Ref)
made = node(5, node(4))
child = os.fork()
if not child:
    for call in (lambda: made.key, lambda: made.left, lambda: setattr(made, "key", 6), lambda: node(1), heap.freeze,
                 lambda: heap.record("Other", key="i8")):
        try:
            call()
        except mm.ClosedError:
            continue
        os._exit(1)
    assert repr(made) == "<Node closed>"
    del made
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert made.left.key == 4
heap.verify()
""")


def test_declaring_leaks_nothing() -> None:
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(50):
        with mm.Heap("1MiB") as heap:
            node: Any = heap.record("Node", key="i8", left=Ref)
            node(1, node(2))
    del node
    gc.collect()
    assert len(gc.get_objects()) <= before + 20
