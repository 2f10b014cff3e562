"""What a notebook shows of the package's objects: sound markup that says what the objects say."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest

import mirrormap as mm
from mirrormap.drawing import Mark, Strip, drawing, ribbon
from support import PAGE


def drawn(thing: object) -> ET.Element:
    return ET.fromstring(thing._repr_html_())  # type: ignore[attr-defined]


def texts(picture: ET.Element) -> list[str]:
    return ["".join(text.itertext()) for text in picture.iter("text")]


def ribbons(picture: ET.Element) -> list[str]:
    return [path.get("d", "") for path in picture.iter("path") if path.get("fill-opacity") == ".22"]


def residents(picture: ET.Element) -> list[tuple[float, float]]:
    """(top, height) of each resident stretch."""
    bars = (bar for bar in picture.iter("rect") if bar.get("fill-opacity") == ".75")
    return [(float(bar.get("y", 0)), float(bar.get("height", 0))) for bar in bars]


def test_a_ring_of_pages_is_drawn_with_its_seam_and_what_is_resident() -> None:
    with mm.Pages(32 * PAGE, name="<drawn> & 'quoted'") as pages:
        with pages.arrange([(0, 32 * PAGE)] * 2) as ring:
            empty = drawn(ring)
            assert "seam" in texts(empty)
            assert len(ribbons(empty)) == 2
            assert not residents(empty)
            ring.populate()
            full = drawn(ring)
            assert len(residents(full)) == 1
            assert f"{ring.address:#x}" in texts(full)
            assert "<drawn> & 'quoted'" in "".join(full.itertext())
            bars = [float(bar.get("height", 0)) for bar in full.iter("rect")]
            assert max(bars) == pytest.approx(residents(full)[0][1], abs=0.2)
        assert not list(drawn(ring).iter("svg"))
        assert "closed" in "".join(drawn(ring).itertext())


def test_half_resident_is_half_the_bar() -> None:
    with mm.Pages(64 * PAGE) as pages, pages.map() as view:
        view.array()[32 * PAGE :: PAGE] = 1
        picture = drawn(view)
        ((top, height),) = residents(picture)
        whole = max(float(bar.get("height", 0)) for bar in picture.iter("rect"))
        assert height == pytest.approx(whole / 2, abs=0.2)
        assert top > 22 + whole / 2 - 1


def test_pages_are_drawn_with_every_live_view() -> None:
    with mm.Pages("1MiB", name="drawn") as pages:
        assert not list(drawn(pages).iter("svg"))
        views = [pages.map(), pages.map(0, "64KiB", protection="r")]
        picture = drawn(pages)
        assert {f"{view.address:#x}" for view in views} <= set(texts(picture))
        assert "r, 64 KiB" in texts(picture)
        many = [pages.map() for _ in range(20)]
        assert "and 16 more views" in "".join(drawn(pages).itertext())
        for view in (*views, *many):
            view.close()
        assert "views 0" in "".join(drawn(pages).itertext())
    assert "closed" in "".join(drawn(pages).itertext())


def test_huge_pages_are_drawn(huge: int) -> None:
    with mm.Pages(2 * huge, page_size=huge) as pages, pages.map(populate=True) as view:
        assert len(residents(drawn(view))) == 1
        assert list(drawn(pages).iter("svg"))


def test_memory_of_others_is_drawn() -> None:
    import mmap

    with mmap.mmap(-1, 16 * PAGE) as memory, mm.mirror(memory) as view:
        assert len(ribbons(drawn(view))) == 1


def test_a_ring_shows_its_cursors_and_a_reader_its_place() -> None:
    with mm.Ring(1000, "f4") as ring:
        ring.extend(np.zeros(1500, "f4"))
        reader = ring.reader("oldest")
        picture = drawn(ring)
        assert {f"written {ring.written:,}", f"oldest {ring.oldest:,}"} <= set(texts(picture))
        assert "seam" in texts(picture)
        assert f"reader {reader.position:,}" in texts(drawn(reader))
        reader.close()
        assert "closed" in "".join(drawn(reader).itertext())
    assert "closed" in "".join(drawn(ring).itertext())


def test_ten_thousand_runs_are_a_small_drawing() -> None:
    strip = Strip(
        "a",
        [(PAGE * (7 * index % 10_000), PAGE) for index in range(10_000)],
        "",
        [(PAGE * index, PAGE // 2) for index in range(10_000)],
    )
    text = drawing("many", {}, [strip], 10_000 * PAGE, marks=[Mark(str(index), index) for index in range(3)])
    ET.fromstring(text)
    assert len(text) < 20_000


def test_names_beside_the_pages_do_not_lie_on_one_another() -> None:
    marks = [Mark(name, 5) for name in "abc"]
    picture = ET.fromstring(drawing("x", {}, [Strip("s", [(0, 10)])], 10, marks=marks))
    places = sorted(float(text.get("y", 0)) for text in picture.iter("text") if text.text in ("a", "b", "c"))
    assert min(np.diff(places)) >= 12


def test_a_ribbon_is_closed_and_stays_between_its_ends() -> None:
    path = ribbon(0, 1, 2, 10, 3, 5)
    assert path.startswith("M0 1.0C")
    assert path.endswith("Z")
    numbers = [float(number) for number in re.findall(r"[\d.]+", path)]
    assert min(numbers) == 0
    assert max(numbers) == 10


def test_a_channel_draws_every_view_of_its_pages_and_a_growable_its_last_row() -> None:
    with mm.Channel("64KiB") as channel, channel.sender() as sender, channel.receiver(start="oldest"):
        sender.send(b"x" * 1000)
        picture = drawn(channel)
        assert len(ribbons(picture)) >= 3, "the control pages, and the data twice"
        assert "2 peers" in "".join(picture.itertext())
    assert "closed" in "".join(drawn(channel).itertext())
    with mm.Growable("f8", reserve="1MiB") as rows:
        rows.extend(np.zeros(3 * PAGE // 8))
        assert not rows.array.any()  # many are written before they are mapped
        picture = drawn(rows)
        assert f"row {3 * PAGE // 8:,}" in texts(picture)
        assert len(residents(picture)) == 1
    assert "closed" in "".join(drawn(rows).itertext())


def test_a_heap_is_drawn_as_far_as_it_has_pages() -> None:
    with mm.Heap("64MiB") as heap:
        kept = [heap.put(bytes(5000)) for _ in range(200)]
        picture = drawn(heap)
        text = "".join(picture.itertext())
        assert "live" in text
        assert "committed" in text
        assert residents(picture)
        whole = max(float(bar.get("height", 0)) for bar in picture.iter("rect"))
        assert 0 < sum(height for _, height in residents(picture)) <= whole + 0.1
        del kept
    assert not list(drawn(heap).iter("svg"))
