"""The events of a job: numbered JSON lines that its driver and the server append, each under the file's lock.

Every line has `seq` (1, 2, 3, ...: none is missing, none twice), `time`, `kind` and `job`, the state of the job as
recorded so far, so that the last line alone says where the job stands. Kinds:

- `state`: the job's state changed to `state`; of a failed job `error` says why
- `trial`: `trial`, `state`, `evaluations`, `best_reward`, `seconds` as of `search.progress.TrialProgress`
- `note`: `text` for people
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

State = Literal["queued", "starting", "running", "cancelling", "succeeded", "failed", "cancelled", "interrupted"]
STATES: tuple[State, ...] = get_args(State)
#: a driver is at work, or should be
ACTIVE: frozenset[State] = frozenset({"starting", "running", "cancelling"})
#: nothing happens until somebody asks for it
ENDED: frozenset[State] = frozenset({"succeeded", "failed", "cancelled", "interrupted"})

#: the last event lies within so many bytes, for a character of a text takes at most twelve
_TAIL_BYTES = 65_536
_LONGEST_TEXT = 4_000


def now() -> str:
    """The time as everything in a job's folder states it: ISO 8601, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def append_event(path: Path, kind: str, **fields: Any) -> dict[str, Any]:
    """Append one event and wait until it is on disk; it is written whole or not at all.

    Raises:
        OSError: it could not be written, for example because the disk is full.
    """
    with path.open("a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return _append(file.fileno(), kind, fields, _last(file.fileno()))


def change_state(
    path: Path, to: State, allowed: Collection[State | None] | None = None, error: str | None = None
) -> bool:
    """Record a new state of the job, if the recorded one is among those `allowed` (None: any); says whether it did."""
    with path.open("a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        last = _last(file.fileno())
        if allowed is not None and (last["job"] if last else None) not in allowed:
            return False
        fields = {"state": to} if error is None else {"state": to, "error": error}
        _append(file.fileno(), "state", fields, last)
        return True


def last_event(path: Path) -> dict[str, Any] | None:
    """The last whole event; None if there is none."""
    try:
        with path.open("rb", buffering=0) as file:
            return _last(file.fileno())
    except FileNotFoundError:
        return None


def read_events(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole events from a place in the file on, and the place behind them."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read()
    except FileNotFoundError:
        return [], offset
    whole = content.rfind(b"\n") + 1
    return [json.loads(line) for line in content[:whole].splitlines()], offset + whole


def last_error(path: Path) -> str | None:
    """Why the job failed when it last did."""
    events, _ = read_events(path)
    return next((event.get("error") for event in reversed(events) if event["kind"] == "state"), None)


def _append(handle: int, kind: str, fields: dict[str, Any], last: dict[str, Any] | None) -> dict[str, Any]:
    job = fields["state"] if kind == "state" else last["job"] if last else None
    seq = 1 if last is None else last["seq"] + 1
    shortened = {key: value[:_LONGEST_TEXT] if isinstance(value, str) else value for key, value in fields.items()}
    event = {"seq": seq, "time": now(), "kind": kind, "job": job, **shortened}
    line = json.dumps(event, allow_nan=False).encode() + b"\n"
    before = _cut_torn_line(handle)
    try:
        written = os.write(handle, line)
        if written < len(line):
            raise OSError(28, os.strerror(28))
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, before)
        raise
    return event


def _cut_torn_line(handle: int) -> int:
    """Drop a last line that was not written to its end; returns the size of what is left."""
    size = os.fstat(handle).st_size
    tail = _tail(handle, size)
    whole = size - len(tail) + tail.rfind(b"\n") + 1
    if whole < size:
        os.ftruncate(handle, whole)
    return whole


def _last(handle: int) -> dict[str, Any] | None:
    lines = _tail(handle, os.fstat(handle).st_size).split(b"\n")[:-1]
    if not lines:
        return None
    event: dict[str, Any] = json.loads(lines[-1])
    return event


def _tail(handle: int, size: int) -> bytes:
    return os.pread(handle, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
