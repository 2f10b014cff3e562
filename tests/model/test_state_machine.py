"""Random lives of Pages and their views, against plain bytes; leaks are counted after each."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import mirrormap as mm
from support import PAGE, default_huge_nbytes, entries, grown_since, held, protections, reserved, scaled

LIMIT_PAGES = 6


def is_plain(places: list[int]) -> bool:
    """One stretch of the object, which is what a view can be resized in."""
    return all(after == before + 1 for before, after in itertools.pairwise(places))


LETTERS = {"rw": "rw-s", "r": "r--s", "rx": "r-xs"}


class View:
    """A mapping, and for each page it shows: which page that is, and what the view allows there."""

    def __init__(self, mapping: mm.Mapping, places: list[int], allows: list[str], resizable: bool) -> None:
        self.mapping, self.places, self.allows, self.resizable = mapping, places, allows, resizable
        self.held: Any = None

    @property
    def protection(self) -> str:
        return self.allows[0] if len(set(self.allows)) == 1 else "mixed"

    def shows_beyond(self, count: int) -> bool:
        """Does the held array show more than `count` pages of the range the view has now?

        A view that moved has left its older arrays at the old address.
        """
        if self.held is None:
            return False
        array, places = self.held
        return array.__array_interface__["data"][0] == self.mapping.address and len(places) > count


class Life(RuleBasedStateMachine):
    """The model: one byte at the start of every page, and for each view the list of pages it shows.

    `count` pages can be mapped; shrinking leaves views that show more, down to `bytes`' length.
    """

    page_nbytes = PAGE

    @initialize(count=st.integers(1, 4))
    def make(self, count: int) -> None:
        self.before = held()
        self.pages = mm.Pages(count * self.page_nbytes, page_size=self.page_nbytes)
        self.bytes = [0] * count
        self.count = count
        self.views: list[View] = []

    def pick(self, data: Any) -> View:
        return data.draw(st.sampled_from(self.views))

    def add(self, mapping: mm.Mapping, places: list[int], allows: list[str], resizable: bool = True) -> None:
        self.views.append(View(mapping, places, allows, resizable))

    def few(self) -> bool:
        return len(self.views) < 6

    @precondition(few)
    @rule(
        data=st.data(), protection=st.sampled_from(["rw", "r"]), populate=st.booleans(), reserve=st.booleans()
    )
    def map(self, data: Any, protection: str, populate: bool, reserve: bool) -> None:
        first = data.draw(st.integers(0, self.count - 1))
        count = data.draw(st.integers(1, self.count - first))
        mapping = self.pages.map(
            first * self.page_nbytes, count * self.page_nbytes, protection=protection, populate=populate,
            reserve=LIMIT_PAGES * self.page_nbytes if reserve else None,
        )  # fmt: skip
        self.add(mapping, list(range(first, first + count)), [protection] * count)

    @precondition(few)
    @rule(data=st.data())
    def arrange(self, data: Any) -> None:
        places = data.draw(st.lists(st.integers(0, self.count - 1), min_size=1, max_size=4))
        unit = self.page_nbytes
        made = self.pages.arrange([(place * unit, unit) for place in places])
        self.add(made, places, ["rw"] * len(places), resizable=is_plain(places))

    @precondition(lambda self: self.views and self.few())
    @rule(data=st.data(), way=st.sampled_from(["method", "function", "array"]))
    def mirror(self, data: Any, way: str) -> None:
        view = self.pick(data)
        if way == "array":
            array = mm.mirror(view.mapping.array())
            assert array[:: self.page_nbytes].tolist() == [self.bytes[place] for place in view.places]
            return
        first = data.draw(st.integers(0, len(view.places) - 1))
        count = data.draw(st.integers(1, len(view.places) - first))
        offset, nbytes = first * self.page_nbytes, count * self.page_nbytes
        made = (
            view.mapping.mirror(offset, nbytes)
            if way == "method"
            else mm.mirror(view.mapping, offset, nbytes)
        )
        places, allows = (every[first : first + count] for every in (view.places, view.allows))
        self.add(made, places, allows, resizable=is_plain(places))

    @precondition(lambda self: self.views)
    @rule(data=st.data(), value=st.integers(1, 255))
    def write(self, data: Any, value: int) -> None:
        view = self.pick(data)
        index = data.draw(st.integers(0, len(view.places) - 1))
        array = view.mapping.array(offset=index * self.page_nbytes, shape=1)
        if "w" in view.allows[index]:
            array[0] = value
            self.bytes[view.places[index]] = value
        else:
            assert not array.flags.writeable

    @precondition(lambda self: self.views)
    @rule(data=st.data(), count=st.integers(1, LIMIT_PAGES))
    def resize_view(self, data: Any, count: int) -> None:
        view = self.pick(data)
        before = len(view.places)
        if not view.resizable:
            if count != before:
                with pytest.raises(ValueError, match="arrange a new one"):
                    view.mapping.resize(count * self.page_nbytes)
            return
        if view.shows_beyond(count):
            with pytest.raises(BufferError):
                view.mapping.resize(count * self.page_nbytes)
            return
        view.mapping.resize(count * self.page_nbytes)
        first = view.places[0]
        view.places = list(range(first, first + count))
        view.allows = [*view.allows, *[view.allows[-1]] * count][:count]
        self.count = max(self.count, first + count) if count > before else self.count
        self.bytes += [0] * (first + count - len(self.bytes))

    @rule(count=st.integers(1, LIMIT_PAGES))
    def resize_pages(self, count: int) -> None:
        beyond = any(view.held is not None and max(view.held[1]) >= count for view in self.views)
        if count < self.count and beyond:
            with pytest.raises(BufferError):
                self.pages.resize(count * self.page_nbytes)
            return
        self.pages.resize(count * self.page_nbytes)
        assert self.pages.nbytes == count * self.page_nbytes
        for place in range(count, self.count):  # views that reach further read zeros there
            self.bytes[place] = 0
        self.count = count
        self.bytes += [0] * (count - len(self.bytes))

    @rule(data=st.data())
    def discard(self, data: Any) -> None:
        place = data.draw(st.integers(0, self.count - 1))
        self.pages.discard(place * self.page_nbytes, self.page_nbytes)
        self.bytes[place] = 0

    @precondition(lambda self: self.views)
    @rule(data=st.data(), protection=st.sampled_from(["rw", "r", "rx"]))
    def protect(self, data: Any, protection: str) -> None:
        view = self.pick(data)
        first = data.draw(st.integers(0, len(view.places) - 1))
        count = data.draw(st.integers(1, len(view.places) - first))
        view.mapping.protect(protection, first * self.page_nbytes, count * self.page_nbytes)
        view.allows[first : first + count] = [protection] * count

    @precondition(lambda self: self.views)
    @rule(data=st.data())
    def populate(self, data: Any) -> None:
        view = self.pick(data)
        view.mapping.populate()
        assert view.mapping.resident == view.mapping.nbytes

    @precondition(lambda self: self.views)
    @rule(data=st.data())
    def hold(self, data: Any) -> None:
        view = self.pick(data)
        view.held = (view.mapping.array(), list(view.places)) if view.held is None else None

    @precondition(lambda self: self.views)
    @rule(data=st.data())
    def close(self, data: Any) -> None:
        view = self.pick(data)
        if view.held is not None:
            if view.shows_beyond(0):
                with pytest.raises(BufferError):
                    view.mapping.close()
                return
            view.held = None
        view.mapping.close()
        self.views.remove(view)

    @invariant()
    def every_view_shows_its_pages(self) -> None:
        known = entries()
        for view in getattr(self, "views", []):
            array = view.mapping.array()
            assert array.nbytes == len(view.places) * self.page_nbytes
            assert view.mapping.protection == view.protection
            assert array.flags.writeable == (view.protection == "rw")
            for index, allowed in enumerate(view.allows):
                at = view.mapping.address + index * self.page_nbytes
                assert protections(at, self.page_nbytes, known) == [LETTERS[allowed]]
            assert array[:: self.page_nbytes].tolist() == [self.bytes[place] for place in view.places]
            if view.held is not None:
                held_array, places = view.held
                assert held_array[:: self.page_nbytes].tolist() == [self.bytes[place] for place in places]
            del array

    def teardown(self) -> None:
        if hasattr(self, "views"):
            for view in self.views:  # the framework remembers what it drew, so dropping is not enough
                view.held = None
                view.mapping.close()
            self.views.clear()
            self.pages.close()
            del self.pages
            gc.collect()
            grown = grown_since(self.before)
            assert not grown, grown


def test_a_life_on_ordinary_pages() -> None:
    run_state_machine_as_test(
        Life, settings=settings(max_examples=scaled(60, 10), stateful_step_count=40, deadline=None)
    )


def test_a_life_on_huge_pages() -> None:
    with reserved(default_huge_nbytes(), 40) as huge:
        machine = type("HugeLife", (Life,), {"page_nbytes": huge})
        run_state_machine_as_test(
            machine, settings=settings(max_examples=scaled(25, 5), stateful_step_count=25, deadline=None)
        )
