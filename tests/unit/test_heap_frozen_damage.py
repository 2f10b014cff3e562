"""Images that were forged, cut or scribbled over: CorruptError or a wrong answer, never a crash."""

from __future__ import annotations

import contextlib
import json
import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import mirrormap as mm
from mirrormap import Ref, kernel
from support import scaled

HEAD = struct.Struct("<16sIIQQQQ")
SEALS = kernel.F_SEAL_SHRINK | kernel.F_SEAL_WRITE | kernel.F_SEAL_GROW


def sound() -> bytes:
    """An image with something of everything, as bytes."""
    with mm.Heap("4MiB") as heap:
        node: Any = heap.record("Node", key="i8", small="u1", left=Ref, right=Ref)
        heap.record("Other", value="f8")
        general = heap.new(20, 3)
        top = node(1, 2, node(3, 4, general), heap.put(np.arange(12.0).reshape(3, 4)))
        general[0], general[1] = top, heap.put(b"plain bytes")
        heap.roots["top"], heap.roots["array"] = (
            top,
            heap.put(np.zeros((2, 0, 3), [("a", "i2"), ("b", "S3")])),
        )
        with heap.freeze() as frozen:
            return os.pread(frozen.fileno(), frozen.nbytes, 0)


@pytest.fixture(scope="module")
def image() -> bytes:
    return sound()


def sealed(data: bytes, seals: int = SEALS, length: int | None = None) -> int:
    fd = kernel.memfd_create("forged", kernel.MFD_ALLOW_SEALING)
    os.write(fd, data)
    if length is not None:
        os.ftruncate(fd, length)
    if seals:
        kernel.add_seals(fd, seals)
    return fd


@contextlib.contextmanager
def opened(data: bytes, **options: Any) -> Iterator[mm.Frozen]:
    fd = sealed(data, **options)
    try:
        with mm.Frozen.from_fd(fd) as frozen:
            yield frozen
    finally:
        os.close(fd)


def corrected(data: bytes, **changes: int) -> bytes:
    """With other numbers in the header, or another description, and a checksum that fits."""
    names = ("end", "starts_at", "text_at", "text_nbytes")
    magic, version, _, *numbers = HEAD.unpack_from(data)
    known = {**dict(zip(names, numbers, strict=True)), **changes}
    text = data[known["text_at"] : known["text_at"] + known["text_nbytes"]]
    head = (magic, version, 0, *(known[name] for name in names))
    checksum = zlib.crc32(text, zlib.crc32(HEAD.pack(*head)))
    return HEAD.pack(magic, version, checksum, *head[3:]) + data[HEAD.size :]


def described(data: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    *_, at, nbytes = HEAD.unpack_from(data)
    about = json.loads(data[at : at + nbytes])
    changed = change(about)
    text = (changed if isinstance(changed, str) else json.dumps(about)).encode()
    return corrected(data[:at] + text, text_nbytes=len(text))


def look(frozen: mm.Frozen) -> int:
    """At everything that can be reached, and what is wrong once."""
    seen: set[Any] = set()
    wrong = 0

    def ask(call: Callable[[], Any]) -> Any:
        nonlocal wrong
        try:
            return call()
        except mm.CorruptError:
            wrong += 1
            return None

    queue = [ask(lambda name=name: frozen.roots[name]) for name in frozen.roots]
    while queue and len(seen) < 1000:
        here = queue.pop()
        if here is None or here in seen or isinstance(here, int | float):
            continue
        seen.add(here)
        repr(here) if isinstance(here, mm.FrozenRef) else ask(lambda here=here: repr(here))
        if isinstance(here, mm.FrozenRecord):
            queue += [
                ask(lambda here=here, name=name: getattr(here, name)) for name in type(here).__match_args__
            ]
            continue
        assert len(bytes(here)) == here.nbytes
        ask(lambda here=here: here.array.tobytes())
        queue += [ask(lambda here=here, at=at: here[at]) for at in range(min(here.nrefs, 100))]
    return wrong


def test_the_original_is_right(image: bytes) -> None:
    with opened(image) as frozen:
        assert look(frozen) == 0
        assert frozen.roots["array"].array.shape == (2, 0, 3)


def test_it_must_be_sealed(image: bytes) -> None:
    for seals in (0, kernel.F_SEAL_SHRINK, kernel.F_SEAL_WRITE):
        with pytest.raises(mm.CorruptError, match="not sealed"), opened(image, seals=seals):
            pass
    reader, writer = os.pipe()
    with pytest.raises(mm.CorruptError, match="no image"):
        mm.Frozen.from_fd(reader)
    os.close(reader)
    os.close(writer)
    with open(__file__) as file, pytest.raises(mm.CorruptError, match="not sealed"):
        mm.Frozen.from_fd(file.fileno())


def test_cut_anywhere(image: bytes) -> None:
    for length in [*range(65), *range(65, len(image), 7), len(image) - 1]:
        with pytest.raises(mm.CorruptError), opened(image[:length]):
            pass
        with pytest.raises(mm.CorruptError), opened(corrected(image)[:length]):
            pass


def test_any_byte_of_the_header_and_the_description(image: bytes) -> None:
    *_, text_at, _ = HEAD.unpack_from(image)
    for at in [*range(HEAD.size), *range(text_at, len(image))]:
        damaged = bytearray(image)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(mm.CorruptError), opened(bytes(damaged)):
            pass


@pytest.mark.parametrize("name", ["end", "starts_at", "text_at", "text_nbytes"])
@pytest.mark.parametrize(
    "value", [0, 1, 8, 63, 64, 80, 1 << 20, (1 << 63) - 1, 1 << 63, (1 << 64) - 8, (1 << 64) - 1]
)
def test_numbers_of_the_header_that_cannot_be(image: bytes, name: str, value: int) -> None:
    with contextlib.suppress(mm.CorruptError), opened(corrected(image, **{name: value})) as frozen:
        look(frozen)


DESCRIPTIONS: list[Callable[[dict[str, Any]], Any]] = [
    lambda about: "", lambda about: "[]", lambda about: "{", lambda about: "[" * 100_000, lambda about: "\ud800".encode(errors="replace").decode(),
    lambda about: about.pop("roots"), lambda about: about.pop("dtypes"), lambda about: about.pop("records"),
    lambda about: about["roots"].update(top=-1), lambda about: about["roots"].update(top=0),
    lambda about: about["roots"].update(top=1 << 70), lambda about: about["roots"].update(top="x"),
    lambda about: about["roots"].update(top=float("inf")), lambda about: about.update(roots=[1]),
    lambda about: about["dtypes"].__setitem__(0, "O"), lambda about: about["dtypes"].__setitem__(0, "|V0"),
    lambda about: about["dtypes"].__setitem__(0, "no"), lambda about: about["dtypes"].__setitem__(0, 5),
    lambda about: about["dtypes"].extend(["<f8"] * 70_000),
    lambda about: about["records"].append(["Node"]), lambda about: about["records"].append(["__class__", []]),
    lambda about: about["records"].append(["A", [["__class__", "q"]]]), lambda about: about["records"].append(["A", [["a", "x"]]]),
    lambda about: about["records"].append(["A", [["a", "qq"]]]), lambda about: about["records"].append(["A", [["a", "q"], ["a", "q"]]]),
    lambda about: about["records"].append(["A", [[f"f{n}", "q"] for n in range(2000)]]), lambda about: about["records"].append([5, []]),
    lambda about: about["records"].extend([[f"A{n}", []] for n in range(2048)]),
]  # fmt: skip


@pytest.mark.parametrize("change", DESCRIPTIONS)
def test_descriptions_that_cannot_be(image: bytes, change: Callable[[dict[str, Any]], Any]) -> None:
    with pytest.raises(mm.CorruptError), opened(described(image, change)):
        pass


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about["roots"].update(top=8), lambda about: about["roots"].update(top=65),
        lambda about: about["roots"].update(top=1 << 61), lambda about: about["roots"].update(top=80),
        lambda about: about["records"].clear(), lambda about: about["records"].reverse(),
        lambda about: about["dtypes"].clear(), lambda about: about["dtypes"].__setitem__(0, "<c16"),
    ],
)  # fmt: skip
def test_descriptions_that_do_not_fit_the_objects(
    image: bytes, change: Callable[[dict[str, Any]], Any]
) -> None:
    with opened(described(image, change)) as frozen:
        assert look(frozen) > 0


def test_scribbled_objects(image: bytes, soak: bool) -> None:
    """Bits, bytes and words of the objects and of the bits that say where they begin."""
    rng = random.Random(5)
    _, _, _, _, _, text_at, _ = HEAD.unpack_from(image)
    words = [0, 1, 16, 64, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x80100000]
    found = 0
    for _ in range(100_000 if soak else scaled(3000, 300)):
        damaged = bytearray(image)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(HEAD.size, text_at)
            if rng.random() < 0.5:
                damaged[at] = rng.randrange(256)
            else:
                struct.pack_into("<I", damaged, min(at & ~3, text_at - 4), rng.choice(words))
        with opened(bytes(damaged)) as frozen:
            found += look(frozen) > 0
    assert found > 100
