"""A file is written whole or not at all; arrays come back as they were, or an error says what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hw.files import read_npz, write_atomically, write_npz


def test_text_and_bytes_are_written_and_readable_by_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in ("µs ≤ 1", b"\x00\xff"):
        write_atomically(path, content)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
        assert path.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(TypeError):
        write_atomically(path, 3)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_come_back_as_they_were(tmp_path: Path, compressed: bool) -> None:
    arrays = {"a.b": np.arange(6, dtype=np.int16).reshape(2, 3), "text": np.array("µs")}
    write_npz(tmp_path / "file", arrays, compressed=compressed)
    read = read_npz(tmp_path / "file")
    assert sorted(read) == sorted(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array, strict=True)


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_arrays_are_never_returned_and_raise_nothing_else(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "file.npz"
    arrays = {"values": np.arange(40, dtype=np.float32)}
    write_npz(path, arrays, compressed=compressed)
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError):  # noqa: PT011 - each in its own words
            read_npz(path)
    refused = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            read = read_npz(path)
        except ValueError:
            refused += 1
        else:  # a byte that nobody reads, or of a name
            assert all(np.array_equal(array, arrays["values"]) for array in read.values())
    assert refused > len(whole) / 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a zip archive"),
        (b"\x93NUMPY", "not a zip archive"),
    ],
)
def test_what_is_no_npz_file_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_npz(tmp_path / "file")


def test_objects_are_neither_written_nor_read(tmp_path: Path) -> None:
    objects = np.array([{}], dtype=object)
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        write_npz(tmp_path / "file", {"objects": objects})
    np.savez(tmp_path / "objects.npz", objects=objects)
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        read_npz(tmp_path / "objects.npz")
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "nothing.npz")
