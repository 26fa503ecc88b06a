"""The events of a job as server-sent events: first what has happened, then what happens, until the job has ended."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

from search.service.events import ENDED, last_event, read_events
from search.service.folder import JobFolder

_LOOK_S, _SIGN_OF_LIFE_S = 0.25, 10.0


async def stream(job: JobFolder, after: int) -> AsyncIterator[str]:
    """Every event behind number `after`, each once; at last the event `end`, which has no number.

    A comment line tells at least every ten seconds that the connection lives.
    """
    offset, told = 0, time.monotonic()
    yield ": begin\n\n"
    while job.path.is_dir():
        size = _size(job)
        events, offset = read_events(job.events, offset) if size > offset else ([], offset)
        for event in events:
            if event["seq"] > after:
                yield _format(event["kind"], event, event["seq"])
                told = time.monotonic()
        if not events and await _is_over(job):
            break
        if time.monotonic() - told > _SIGN_OF_LIFE_S:
            yield ": alive\n\n"
            told = time.monotonic()
        await asyncio.sleep(_LOOK_S)
    yield _format("end", {"kind": "end"}, None)


async def _is_over(job: JobFolder) -> bool:
    """Whether nothing more comes: the job has ended by its lock and its events alike."""
    return await asyncio.to_thread(_ended, job)


def _ended(job: JobFolder) -> bool:
    last = last_event(job.events)
    return (last is None or last["job"] in ENDED) and job.state() in ENDED


def _size(job: JobFolder) -> int:
    try:
        return job.events.stat().st_size
    except FileNotFoundError:
        return 0


def _format(kind: str, data: object, seq: int | None) -> str:
    number = "" if seq is None else f"id: {seq}\n"
    return f"{number}event: {kind}\ndata: {json.dumps(data)}\n\n"
