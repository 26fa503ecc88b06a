"""The journal survives what kills its process, and does not hide damage."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.journal import Journal, JournalError, read_journal
from search.results import EvaluationRecord


def record(index: int, accuracy: float = 0.5) -> EvaluationRecord:
    return EvaluationRecord(
        index=index, widths=(index + 1, 2), costs={"macs": 3}, violation=0.0, error=1 - accuracy,
        accuracy=accuracy, reward=accuracy - 1, repeated=False, seconds=0.25,
    )  # fmt: skip


def write(path: Path, count: int) -> None:
    with Journal(path) as journal:
        for index in range(len(journal.records), count):
            journal.append(record(index))


def test_what_is_appended_is_read_again(tmp_path: Path) -> None:
    write(tmp_path / "j", 2)
    write(tmp_path / "j", 3)
    assert read_journal(tmp_path / "j") == (record(0), record(1), record(2))


def test_no_file_is_an_empty_journal(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "j") == ()


@given(accuracy=st.floats(0, 1))
def test_accuracies_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, accuracy: float) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    with Journal(path) as journal:
        journal.append(record(0, accuracy))
    assert read_journal(path)[0] == record(0, accuracy)


@pytest.mark.parametrize("left", [1, 20, -1])
def test_last_line_that_was_cut_off_is_dropped(tmp_path: Path, left: int, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "j"
    write(path, 1)
    line = record(1).model_dump_json().encode() + b"\n"
    path.write_bytes(path.read_bytes() + line[:left])
    assert read_journal(path) == (record(0),)
    with caplog.at_level(logging.WARNING):
        write(path, 2)
    assert "dropped a last line that was not written to its end" in caplog.text
    assert read_journal(path) == (record(0), record(1))


def test_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "j"
    write(path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"index": 1, "wi\n' + lines[2])
    with pytest.raises(JournalError, match="j line 2: damaged, not an evaluation"):
        read_journal(path)
    with pytest.raises(JournalError, match="j line 2: damaged, not an evaluation"):
        Journal(path)


def test_missing_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "j"
    write(path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    with pytest.raises(JournalError, match="j line 2: expected evaluation 1, got 2"):
        read_journal(path)


def test_only_one_process_writes(tmp_path: Path) -> None:
    with Journal(tmp_path / "j"), pytest.raises(JournalError, match="another process is running this trial"):
        Journal(tmp_path / "j", patience_s=0.0)
    write(tmp_path / "j", 1)
