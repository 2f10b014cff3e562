"""What the fuzzers of tests/fuzz have found, each once more."""

from __future__ import annotations

import json
import socket
import struct
import wave
from pathlib import Path

import numpy as np
import pytest

import mirrormap as mm
from mirrormap import cgroups, cursors, layouts, procmaps
from mirrormap.cli import recording


@pytest.mark.parametrize("name", [",f9", "(2,", "(1+1)f4", "0|S3", "(2,)i4"])
def test_a_name_that_numpy_reads_as_python_is_no_dtype(name: str) -> None:
    """It was a SyntaxError, or a dtype no array can have, out of a handle or a file of somebody else's."""
    with pytest.raises(mm.CorruptError):
        layouts.read_layout(json.dumps({"descr": name, "shape": [2, 3]}), "shape")
    with pytest.raises(mm.CorruptError):
        cursors.understood(json.dumps([name, [2]]).encode(), "this")


def test_such_a_handle_is_damaged() -> None:
    text = json.dumps(
        {"descr": ",f9", "shape": [], "strides": [], "place": [0, 0, 0], "runs": [], "sizes": []}
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        ours.sendall(struct.pack("<8sII", b"mm.array", len(text), 0) + text.encode())
        with pytest.raises(mm.CorruptError):
            mm.Handle.receive(theirs)


def test_a_chunk_of_a_wav_file_that_is_longer_than_the_file(tmp_path: Path) -> None:
    """It was a RuntimeError of the wave module's."""
    path = tmp_path / "sound.wav"
    head = b"RIFF\x2c\0\0\0WAVEfmt \x10\0\x80\0" + struct.pack("<HHIIHH", 1, 2, 44100, 176400, 4, 16)
    path.write_bytes(head + b"data\x08\0\0\0abcdefgh")
    with pytest.raises(mm.MirrorError):
        recording.opened(path)


def test_a_wav_file_that_ends_within_a_frame(tmp_path: Path) -> None:
    """It was a ValueError of NumPy's, and an IndexError of wave's on big-endian processors."""
    path = tmp_path / "sound.wav"
    head = b"RIFF\x2c\0\0\0WAVEfmt \x10\0\0\0" + struct.pack("<HHIIHH", 1, 2, 44100, 176400, 4, 16)
    path.write_bytes(head + b"data\x08\0\0\0abcdefg")
    sound = recording.opened(path)
    for count in (1, 100):
        (block,) = recording.blocks(sound, count)
        assert block.tolist() == [list(struct.unpack("<hh", b"abcd"))]


def test_a_chunk_after_the_samples_of_a_wav_file_is_none_of_them(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    samples = np.arange(-300, 300, dtype="<i2").reshape(-1, 2)
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, 44100, 0, "NONE", ""))
        file.writeframes(samples.astype("=i2").tobytes())
    with path.open("ab") as more:
        more.write(b"LIST\x04\0\0\0INFO")
    read = [*recording.blocks(recording.opened(path), 64)]
    assert [len(block) for block in read] == [64, 64, 64, 64, 44]
    assert np.array_equal(np.concatenate(read), samples)


@pytest.mark.parametrize("line", ["4!kB", "4", "", "9" * 5000 + " kB"])
def test_a_page_size_in_smaps_that_is_none(line: str) -> None:
    (vma,) = procmaps.parse_smaps(f"1000-2000 r--p 0 0:0 0\nKernelPageSize:  {line}\n")
    assert vma.page_nbytes == procmaps.PAGE_NBYTES


def test_a_device_number_in_maps_that_is_none() -> None:
    """It was an OverflowError of os.makedev()."""
    assert not list(procmaps.parse_smaps("1000-2000 r--p 0 8:ffffffff 0\n"))
    (vma,) = procmaps.parse_smaps("1000-2000 r--p 0 fff:fffff 0\n")
    assert vma.dev


def test_a_line_in_proc_self_cgroup_without_colons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "cgroup"
    own.write_text("\nnonsense\n0::/\n")
    monkeypatch.setattr(cgroups, "_OWN", str(own))
    assert cgroups._folder(2, tmp_path, "/") == tmp_path


def test_a_mount_whose_name_is_no_utf_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may mount could keep everybody from making a Heap: it was a UnicodeDecodeError."""
    mounts = tmp_path / "mountinfo"
    mounts.write_bytes(b"36 35 0:31 / /mnt/\xfe rw - cgroup2 cgroup2 rw\n")
    monkeypatch.setattr(cgroups, "_MOUNTS", str(mounts))
    cgroups._mounts.cache_clear()
    try:
        assert cgroups._mounts() == ((2, Path("/mnt/\udcfe"), "/"),)
    finally:
        cgroups._mounts.cache_clear()
