"""Jobs as the command line works with them: on a server over HTTP, or on the data folder of this machine."""

from __future__ import annotations

import http.client
import json
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from search.errors import UserError
from search.service.events import ENDED, read_events
from search.service.store import Store, Submission
from search.service.summary import describe, summarise, trials_of

_PATIENCE_S = 60.0
_LOOK_S = 0.3


class ServerError(UserError):
    """The server refused, or cannot be reached; the message says why."""


class Jobs(Protocol):
    """What both kinds of client do; jobs are as the API describes them."""

    def submit(self, spec: Path, overrides: Sequence[str], known: Sequence[str] = ()) -> dict[str, Any]: ...
    def list_jobs(self, states: Sequence[str], limit: int) -> list[dict[str, Any]]: ...
    def job(self, job: str) -> dict[str, Any]: ...
    def trials(self, job: str) -> list[dict[str, Any]]: ...
    def events(self, job: str) -> Iterator[dict[str, Any]]: ...
    def log(self, job: str, offset: int) -> tuple[bytes, int]: ...
    def cancel(self, job: str) -> dict[str, Any]: ...
    def resume(self, job: str) -> dict[str, Any]: ...
    def remove(self, job: str) -> None: ...


class LocalJobs:
    """The jobs of a data folder; a server that runs on it picks up what is submitted."""

    def __init__(self, data: Path) -> None:
        self.store = Store(data)

    @property
    def served(self) -> bool:
        """Whether a server is at work on the folder."""
        return self.store.served

    def submit(self, spec: Path, overrides: Sequence[str], known: Sequence[str] = ()) -> dict[str, Any]:
        from search.spec import load_spec, save_spec
        from search.trial import plan_trials

        loaded = load_spec(spec, overrides)
        evaluated = self._evaluated(known) if known else None
        self.store.prepare_folders()
        names = tuple(trial.name for trial in plan_trials(loaded))
        job = self.store.create(Submission(loaded.name, save_spec(loaded), names, loaded.evaluations, known=evaluated))
        return describe(job).model_dump()

    def _evaluated(self, jobs: Sequence[str]) -> str:
        from search.job import known_of_jobs

        return known_of_jobs([self.store.find(job).path for job in jobs]).text()

    def list_jobs(self, states: Sequence[str], limit: int) -> list[dict[str, Any]]:
        jobs = [summarise(job, job.state()).model_dump() for job in self.store]
        chosen = [job for job in jobs if not states or job["state"] in states]
        return sorted(chosen, key=lambda job: str(job["created"]), reverse=True)[:limit]

    def job(self, job: str) -> dict[str, Any]:
        return describe(self.store.find(job)).model_dump()

    def trials(self, job: str) -> list[dict[str, Any]]:
        found = self.store.find(job)
        return [trial.model_dump() for trial in trials_of(found, found.state())]

    def events(self, job: str) -> Iterator[dict[str, Any]]:
        found, offset = self.store.find(job), 0
        while True:
            over = found.state() in ENDED  # before the events are read, so that none is missed
            events, offset = read_events(found.events, offset)
            yield from events
            if over:
                return
            time.sleep(_LOOK_S)

    def log(self, job: str, offset: int) -> tuple[bytes, int]:
        path = self.store.find(job).log
        if not path.is_file():
            return b"", 0
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(), file.tell()

    def cancel(self, job: str) -> dict[str, Any]:
        self.store.cancel(self.store.find(job))
        return self.job(job)

    def resume(self, job: str) -> dict[str, Any]:
        self.store.resume(self.store.find(job))
        return self.job(job)

    def remove(self, job: str) -> None:
        self.store.delete(self.store.find(job))


class ServerJobs:
    """The jobs of a server."""

    def __init__(self, url: str, token: str | None) -> None:
        if not url.startswith(("http://", "https://")):
            raise ServerError(f"--server {url}: expected a URL such as http://127.0.0.1:8710")
        self._url, self._token = url.rstrip("/"), token

    def submit(self, spec: Path, overrides: Sequence[str], known: Sequence[str] = ()) -> dict[str, Any]:
        from search.spec import load_raw

        path = f"/api/jobs?{urlencode([('known', job) for job in known])}" if known else "/api/jobs"
        body = json.dumps(load_raw(spec, overrides)).encode()
        key = secrets.token_hex(16)  # a second try after a lost answer finds the first one's job
        for _ in range(3):
            try:
                return dict(self._json("POST", path, body, {"Idempotency-Key": key}))
            except ConnectionError:
                time.sleep(1.0)
        return dict(self._json("POST", path, body, {"Idempotency-Key": key}))

    def list_jobs(self, states: Sequence[str], limit: int) -> list[dict[str, Any]]:
        query = urlencode([*(("state", state) for state in states), ("limit", limit)])
        return list(self._json("GET", f"/api/jobs?{query}")["jobs"])

    def job(self, job: str) -> dict[str, Any]:
        return dict(self._json("GET", f"/api/jobs/{quote(job, safe='')}"))

    def trials(self, job: str) -> list[dict[str, Any]]:
        return list(self._json("GET", f"/api/jobs/{quote(job, safe='')}/trials"))

    def events(self, job: str) -> Iterator[dict[str, Any]]:
        """Reconnects where it was when the connection breaks, unless the server is away for more than a minute."""
        last, lost = 0, None
        while True:
            try:
                for event in self._stream(f"/api/jobs/{quote(job, safe='')}/events?after={last}"):
                    lost = None
                    if event["kind"] == "end":
                        return
                    last = event["seq"]
                    yield event
            except (ConnectionError, http.client.HTTPException) as error:
                lost = time.monotonic() if lost is None else lost
                if time.monotonic() - lost > _PATIENCE_S:
                    raise ServerError(f"{self._url} has been away for a minute: {error}") from error
            time.sleep(_LOOK_S)

    def log(self, job: str, offset: int) -> tuple[bytes, int]:
        with self._open("GET", f"/api/jobs/{quote(job, safe='')}/log?offset={offset}") as answer:
            return answer.read(), int(answer.headers["log-end"])

    def cancel(self, job: str) -> dict[str, Any]:
        return dict(self._json("POST", f"/api/jobs/{quote(job, safe='')}/cancel", b"{}"))

    def resume(self, job: str) -> dict[str, Any]:
        return dict(self._json("POST", f"/api/jobs/{quote(job, safe='')}/resume", b"{}"))

    def remove(self, job: str) -> None:
        self._open("DELETE", f"/api/jobs/{quote(job, safe='')}").close()

    def compare(self, jobs: Sequence[str]) -> dict[str, Any]:
        """The comparison of one to six jobs."""
        return dict(self._json("GET", f"/api/compare?{urlencode([('ids', job) for job in jobs])}"))

    def export(self, job: str, query: dict[str, object]) -> bytes:
        """The archive of an export: asked for, waited for, fetched."""
        seen = sum(1 for _ in self._past_events(job))
        asked = urlencode({key: value for key, value in query.items() if value is not None})
        self._json("POST", f"/api/jobs/{quote(job, safe='')}/export?{asked}", b"{}")
        while True:
            for event in list(self._past_events(job))[seen:]:
                text = str(event.get("text", ""))
                if text.startswith("export: failed: "):
                    raise ServerError(text)
                if text.startswith("export: done"):
                    with self._open("GET", f"/api/jobs/{quote(job, safe='')}/artifacts/all.zip") as answer:
                        return bytes(answer.read())
            time.sleep(1.0)

    def _past_events(self, job: str) -> Iterator[dict[str, Any]]:
        with self._open("GET", f"/api/jobs/{quote(job, safe='')}/artifacts/events.jsonl") as answer:
            yield from (json.loads(line) for line in answer.read().splitlines())

    def _stream(self, path: str) -> Iterator[dict[str, Any]]:
        with self._open("GET", path) as answer:
            for line in answer:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])

    def _json(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Any:
        with self._open(method, path, body, headers) as answer:
            return json.loads(answer.read())

    def _open(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Any:
        """The server's answer.

        Raises:
            ServerError: it refused.
            ConnectionError: it cannot be reached.
        """
        request = urllib.request.Request(f"{self._url}{path}", data=body, method=method, headers=headers or {})
        if body is not None:
            request.add_header("Content-Type", "application/json")
        if self._token is not None:
            request.add_header("Authorization", f"Bearer {self._token}")
        try:
            return urllib.request.urlopen(request, timeout=_PATIENCE_S)
        except urllib.error.HTTPError as error:
            raise ServerError(_detail(error)) from error
        except urllib.error.URLError as error:
            raise ConnectionError(
                f"no server answers at {self._url}: {error.reason}; start one with: amc serve"
            ) from error


def _detail(error: urllib.error.HTTPError) -> str:
    body = error.read()
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {error.code}: {body[:200].decode('utf-8', 'replace')}"
