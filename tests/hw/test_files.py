"""A file is written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from hw.files import write_atomically


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
