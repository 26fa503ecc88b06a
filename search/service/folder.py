"""The folder of a job as the service sees it. It is the truth: what runs, what is asked for, what came of it.

Beside the files of `search.job` the service keeps in it:

- `request.json`: what was asked for and when; `wanted` is "run" or "cancel"
- `events.jsonl`: see `search.service.events`
- `log.txt`: what the driver and its libraries print
- `reserve`: some bytes that the driver frees when the disk is full, so that it can say so
- `artifacts/`: what was exported
- `cluster.json`: while Ray Jobs drive it, see `search.ray_jobs`

A folder that `amc run` made has none of them.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from hw.files import write_atomically
from search.locking import held
from search.results import steps_left
from search.service.events import ACTIVE, ENDED, State, last_error, last_event

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Request(BaseModel):
    """`request.json`.

    Attributes:
        trials: the names of all trials of the job.
        evaluations: of each trial, at most.
        key: the idempotency key that came with it, if one did.
        digest: SHA-256 of what was submitted with the key.
        wanted: "cancel" from the moment somebody asked for it, until the job is resumed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    name: str
    submitted: str
    trials: tuple[str, ...]
    evaluations: int
    key: str | None = None
    digest: str | None = None
    wanted: str = "run"


@dataclass(frozen=True)
class JobFolder:
    """One job. `watched` if it lies outside the service's own folder: it is then only looked at, or resumed."""

    id: str
    path: Path
    watched: bool = False

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    def request(self) -> Request | None:
        """What was asked for; None if `amc run` made the folder."""
        try:
            return Request.model_validate_json((self.path / "request.json").read_bytes())
        except FileNotFoundError:
            return None

    def want(self, wanted: str) -> None:
        """Change what is wanted of the job."""
        request = self.request()
        if request is not None and request.wanted != wanted:
            save_request(self.path, request.model_copy(update={"wanted": wanted}))

    def spec(self) -> dict[str, Any]:
        """The spec as plain values; empty if it cannot be read."""
        return _spec(self.path / "spec.yaml", (self.path / "spec.yaml").stat().st_mtime_ns)

    def results(self) -> dict[str, Any]:
        """`results.json` as it was last written; empty if it is not there, or damaged."""
        try:
            loaded = json.loads((self.path / "results.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return loaded if isinstance(loaded, dict) else {}

    def planned(self) -> tuple[str, ...]:
        """The names of all trials; of a job made by `amc run` those that have begun or are about to."""
        request = self.request()
        if request is not None and request.trials:
            return request.trials
        trials = self.path / "trials"
        return tuple(sorted(entry.name for entry in trials.iterdir())) if trials.is_dir() else ()

    def state(self) -> State:
        """The state as it is now: what is recorded, as far as the lock and the results bear it out.

        A job is alive if its lock is held: no process id is trusted, and no time-out is needed.
        """
        alive = held(self.lock)  # first: a driver records its end before it lets go of the lock
        last = last_event(self.events)
        recorded: State | None = last["job"] if last else None
        request = self.request()
        cancelling = request is not None and request.wanted == "cancel"
        if alive:
            if recorded not in ACTIVE and held(self.lock):
                return "running"  # by `amc run` or `amc resume`
            return "cancelling" if cancelling and recorded in ACTIVE else recorded or "running"
        if recorded in ("queued", "succeeded"):
            return recorded
        settled = self._settled()
        if recorded in ENDED:
            return "succeeded" if settled == "succeeded" else recorded  # the former by `amc resume`
        return settled or ("cancelled" if cancelling else "interrupted")

    def error(self) -> str | None:
        """Why the job failed, if it did."""
        return last_error(self.events)

    def _settled(self) -> State | None:
        """How the job ended by its results; None if something is left to do."""
        done = [self.path / "trials" / name for name in self.planned()]
        if not all((trial / "result.json").exists() or (trial / "error.txt").exists() for trial in done):
            return None
        results = self.results()
        spec = results.get("spec", {})
        if results.get("status") == "failed":
            return "failed"
        left = steps_left(spec, results, any(trial.get("best") for trial in results.get("trials", ())))
        return "succeeded" if results.get("status") == "finished" and not left else None


def save_request(folder: Path, request: Request) -> None:
    """Write `request.json`."""
    write_atomically(folder / "request.json", request.model_dump_json(indent=1))


@functools.lru_cache(maxsize=64)
def _spec(path: Path, changed: int) -> dict[str, Any]:
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    return loaded if isinstance(loaded, dict) else {}
