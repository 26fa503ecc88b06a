"""Events: numbered without gaps whoever writes, whole whatever happens, and states that change only as allowed."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from search.service.events import append_event, change_state, last_error, last_event, read_events


@pytest.fixture
def path(tmp_path: Path) -> Path:
    change_state(tmp_path / "events.jsonl", "queued")
    return tmp_path / "events.jsonl"


def test_several_writers_number_without_gap_or_double(path: Path) -> None:
    def write() -> None:
        for _ in range(50):
            append_event(path, "note", text="x")

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found, _ = read_events(path)
    assert [event["seq"] for event in found] == list(range(1, 202))
    assert {event["job"] for event in found} == {"queued"}


def test_a_torn_last_line_is_dropped_and_its_number_given_again(path: Path) -> None:
    append_event(path, "note", text="whole")
    with path.open("ab") as file:
        file.write(b'{"seq": 3, "kind": "no')
    assert [event["seq"] for event in read_events(path)[0]] == [1, 2]
    assert append_event(path, "note", text="next")["seq"] == 3
    assert [event.get("text") for event in read_events(path)[0]] == [None, "whole", "next"]


def test_reading_goes_on_where_it_was(path: Path) -> None:
    first, offset = read_events(path)
    append_event(path, "note", text="next")
    later, end = read_events(path, offset)
    assert [len(first), len(later)] == [1, 1]
    assert end == path.stat().st_size
    assert read_events(path, end) == ([], end)


def test_a_state_changes_only_from_those_allowed(path: Path) -> None:
    assert change_state(path, "starting", {"queued"})
    assert not change_state(path, "cancelled", {"queued"})
    assert change_state(path, "failed", error="no disk")
    last = last_event(path)
    assert last is not None
    assert (last["seq"], last["job"]) == (3, "failed")
    append_event(path, "note", text="later")
    assert last_error(path) == "no disk"


def test_long_texts_are_cut_so_that_the_last_event_is_always_found(path: Path) -> None:
    append_event(path, "note", text="€" * 100_000)
    assert (last_event(path) or {})["seq"] == 2


def test_no_half_of_an_event_stays_when_the_disk_is_full(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, line: write(handle, line[:10]))
    with pytest.raises(OSError, match="No space left on device") as caught:
        append_event(path, "note", text="too much")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    monkeypatch.undo()
    assert append_event(path, "note", text="fits")["seq"] == 2


def test_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path / "none") == ([], 0)
    assert last_event(tmp_path / "none") is None


def test_lines_are_plain_json(path: Path) -> None:
    append_event(path, "trial", trial="a-seed0", best_reward=None)
    assert [json.loads(line)["seq"] for line in path.read_text().splitlines()] == [1, 2]
