"""The heap's core by itself, without Python: threads that use it and one that collects, plain and under ThreadSanitizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from hammer import NATIVE, build, run

pytestmark = pytest.mark.apart

HEAP = NATIVE / "heap"
FILES = [path for path in sorted(HEAP.glob("*.c")) if path.name != "image.c"]


def built(folder: Path, *options: str, broken: tuple[str, str, str] | None = None) -> str:
    """The hammer with the extension's own files, or with one of them changed."""
    sources = [*FILES, NATIVE / "sys.c"]
    if broken is not None:
        name, sound, changed = broken
        text = (HEAP / name).read_text()
        assert text.count(sound) == 1, name
        (folder / name).write_text(text.replace(sound, changed))
        sources = [folder / name if source == HEAP / name else source for source in sources]
    return build(folder, "hammer_heap", sources, f"-I{HEAP}", *options)


def test_objects_values_and_views_stay_whole_while_another_thread_collects(
    tmp_path: Path, soak: bool
) -> None:
    done = run(built(tmp_path), "5000000" if soak else "60000")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("how", ["evacuate", "slide"])
def test_thread_sanitizer_sees_no_race(tmp_path: Path, how: str) -> None:
    done = run(built(tmp_path, "-fsanitize=thread"), "15000", how)
    assert done.returncode == 0, done.stderr


def test_thread_sanitizer_sees_a_collector_without_the_lock(tmp_path: Path) -> None:
    done = run(built(tmp_path, "-fsanitize=thread", "-DUNLOCKED"), "1500", TSAN_OPTIONS="halt_on_error=1")
    assert done.returncode != 0
    assert "data race" in done.stderr


@pytest.mark.parametrize("how", ["evacuate", "slide"])
def test_no_byte_outside_is_touched(tmp_path: Path, how: str) -> None:
    options = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    done = run(built(tmp_path, *options), "15000", how)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "sound", "broken"),
    [
        pytest.param("lanes.c", " && block->pins == 0 && block->linked", " && block->linked", id="pins"),
        pytest.param("barrier.c", "mm_shade(heap, before);", "(void)before;", id="overwritten"),
        pytest.param("mark.c", "            *weak = 0;", "            continue;", id="weak"),
        pytest.param(
            "slide.c", "mm_tell(heap, mm_header_at(heap, offset), first + to);", "", id="slid roots"
        ),
        pytest.param("slide.c", "block->forward->moved++;", "block->forward->to[0] = 0;", id="slid"),
        pytest.param("roots.c", "mm_coloured(heap, offset);", "offset | heap->good;", id="slid weak"),
        pytest.param("evacuate.c", "mm_tell(heap, header, to);", "", id="roots"),
        pytest.param(
            "space.c", "    mm_holes_withdraw(heap, index);\n    mm_unlink", "    mm_unlink", id="freed gaps"
        ),
        pytest.param(
            "evacuate.c",
            "        mm_holes_withdraw(heap, index);\n        for",
            "        for",
            id="moved gaps",
        ),
        pytest.param("roots.c", "mm_entries(&heap->index)[entry].offset = to;", "return;", id="entries"),
    ],
)
def test_the_hammer_finds_what_is_broken(tmp_path: Path, name: str, sound: str, broken: str) -> None:
    assert run(built(tmp_path, broken=(name, sound, broken)), "200000", "slide").returncode != 0
