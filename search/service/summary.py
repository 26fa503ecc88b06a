"""What the service tells of a job: one line of the list, the job itself, its trials. Read from the folder alone.

Nothing here needs torch: the server stays small, and the list answers at once.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from hw.cost import UNITS
from search.service.events import ACTIVE, State, last_event
from search.service.folder import JobFolder
from search.service.schemas import Action, Best, Budget, Job, Progress, Summary, Trial

TrialState = Literal["waiting", "running", "finished", "failed", "interrupted"]

_READING = threading.Lock()


def summarise(job: JobFolder, state: State) -> Summary:
    """One line of the list, of a job that is in this state."""
    return _summary(job, state, job.results(), trials_of(job, state))


def describe(job: JobFolder) -> Job:
    """The job with its spec, and what can be done with it."""
    state, results = job.state(), job.results()
    trials = trials_of(job, state)
    summary = _summary(job, state, results, trials)
    failed = any(trial.state == "failed" for trial in trials)
    error = job.error() if state == "failed" else None
    last = last_event(job.events)
    if state == "failed" and error is None:
        error = next((trial.error for trial in trials if trial.error), None)
    return Job(
        **summary.model_dump(),
        spec=job.spec(),
        dense=results.get("dense"),
        progress=Progress(
            evaluations=summary.evaluations,
            of=summary.planned_evaluations,
            trials_finished=sum(trial.state == "finished" for trial in trials),
            trials=len(trials),
        ),
        error=error,
        folder_name=job.path.name,
        watched=job.watched,
        last_event=last["seq"] if last else 0,
        actions=_actions(job, state, failed, summary.best is not None),
    )


def trials_of(job: JobFolder, state: State) -> list[Trial]:
    """The trials as they are now, of a job that is in this state."""
    spec = job.spec()
    planned = int(spec.get("evaluations", 0))
    alive = state in ACTIVE
    return [_trial(job.path / "trials" / name, planned, alive, job.path) for name in job.planned()]


def _summary(job: JobFolder, state: State, results: Mapping[str, Any], trials: Iterable[Trial]) -> Summary:
    trials, spec, request = list(trials), job.spec(), job.request()
    best = _best(trials, job.path)
    created = request.submitted if request else results.get("created") or _time_of(job.path / "spec.yaml")
    ended = state in ("succeeded", "failed", "cancelled", "interrupted")
    return Summary(
        id=job.id,
        name=str(spec.get("name", job.path.name)),
        state=state,
        outcome="feasible" if best else "infeasible" if state == "succeeded" else None,
        network=network_name(spec.get("network", {})),
        agents=list(dict.fromkeys(_label(agent) for agent in spec.get("agents", []))),
        budgets=[Budget(**budget) for budget in results.get("budgets") or ()] or _budgets(spec),
        best=best,
        evaluations=sum(trial.evaluations for trial in trials),
        planned_evaluations=sum(trial.planned for trial in trials),
        created=created,
        updated=_updated(job.path),
        seconds=results.get("seconds") if ended else sum(trial.seconds for trial in trials),
    )


def network_name(network: Mapping[str, Any]) -> str:
    """The network in a few words: "cifar_resnet 56", "torchvision resnet18", "digits"."""
    parts = (network.get(key) for key in ("kind", "name", "target", "depth", "width"))
    return " ".join(str(part) for part in parts if part is not None)


def _label(agent: Any) -> str:
    return str(agent.get("name") or agent.get("kind")) if isinstance(agent, dict) else str(agent)


def _budgets(spec: Mapping[str, Any]) -> list[Budget]:
    """The limits as the spec states them: what they come to is known when the network is."""
    budgets = []
    for cost, limit in (spec.get("budget") or {}).items():
        if cost == "table":
            continue
        text = str(limit).strip()
        share = float(text[:-1]) / 100 if text.endswith("%") else None
        budgets.append(
            Budget(cost=cost, limit=None if share else float(text), fraction=share, unit=UNITS.get(cost, ""))
        )
    return budgets


def _actions(job: JobFolder, state: State, failed: bool, feasible: bool) -> list[Action]:
    own = job.request() is not None
    actions: list[Action] = ["cancel"] if own and state in ("queued", "starting", "running") else []
    if state in ("cancelled", "interrupted", "failed") or (state == "succeeded" and failed):
        actions.append("resume")
    if not job.watched and state not in ACTIVE:
        actions.append("delete")
    if not job.watched and feasible and job.spec().get("network", {}).get("kind") != "toy":
        actions.append("export")
    return actions


@dataclass(frozen=True)
class _Result:
    """What is kept of a finished trial, whose file may be large."""

    evaluations: int
    distinct: int
    seconds: float
    agent: str
    seed: int
    best: Mapping[str, Any] | None


@functools.lru_cache(maxsize=4096)
def _result(path: Path, changed: int) -> _Result:
    loaded = json.loads(path.read_bytes())
    best = loaded["best"]
    if best is not None:
        best = {key: best[key] for key in ("reward", "search_accuracy", "test_accuracy", "costs")}
    return _Result(loaded["evaluations"], loaded["distinct"], loaded["seconds"], loaded["agent"], loaded["seed"], best)


@dataclass
class _Journal:
    """A journal as far as it was read: it only grows."""

    offset: int = 0
    evaluations: int = 0
    distinct: int = 0
    seconds: float = 0.0
    best: float | None = None

    def read_on(self, path: Path) -> None:
        with path.open("rb") as file:
            file.seek(self.offset)
            content = file.read()
        whole = content.rfind(b"\n") + 1
        for line in content[:whole].splitlines():
            record = json.loads(line)
            reward = record["reward"]
            self.evaluations += 1
            self.distinct += not record["repeated"]
            self.seconds += record["seconds"]
            if reward is not None and (self.best is None or reward > self.best):
                self.best = reward
        self.offset += whole


@functools.lru_cache(maxsize=1024)
def _journal(path: Path, inode: int) -> _Journal:
    return _Journal()


def _read_journal(folder: Path) -> _Journal:
    path = folder / "evaluations.jsonl"
    try:
        with _READING:
            journal = _journal(path, path.stat().st_ino)
            journal.read_on(path)
            return replace(journal)
    except (FileNotFoundError, ValueError, KeyError):
        return _Journal()


def _trial(folder: Path, planned: int, alive: bool, job: Path) -> Trial:
    agent, _, seed = folder.name.rpartition("-seed")
    error = _text(folder / "error.txt")
    finished = _finished(folder)
    if finished is not None:
        return Trial(
            trial=folder.name, agent=agent, seed=int(seed), state="finished",
            evaluations=finished.evaluations, planned=finished.evaluations, distinct=finished.distinct,
            best_reward=finished.best["reward"] if finished.best else None, seconds=finished.seconds, error=None,
        )  # fmt: skip
    begun = (folder / "pid").exists()
    state: TrialState = "waiting"
    if error is not None:
        state = "failed"
    elif begun:
        state = "running" if alive else "interrupted"
    journal = _read_journal(folder)
    return Trial(
        trial=folder.name, agent=agent, seed=int(seed), state=state,
        evaluations=journal.evaluations, planned=planned, distinct=journal.distinct,
        best_reward=journal.best, seconds=journal.seconds, error=error,
    )  # fmt: skip


def _finished(folder: Path) -> _Result | None:
    path = folder / "result.json"
    try:
        return _result(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        return None


def _best(trials: Iterable[Trial], job: Path) -> Best | None:
    """The winner among the finished trials; before there is one, the best reward so far."""
    known = [trial for trial in trials if trial.best_reward is not None]
    finished = [trial for trial in known if trial.state == "finished"]
    leader = max(finished or known, key=lambda trial: trial.best_reward or 0.0, default=None)
    if leader is None:
        return None
    result = _finished(job / "trials" / leader.trial)
    more = dict(result.best) if result and result.best else {"reward": leader.best_reward}
    return Best(agent=leader.agent, seed=leader.seed, **more)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return None


def _updated(folder: Path) -> str:
    known = [folder / name for name in ("events.jsonl", "results.json", "report.html", "spec.yaml")]
    return max(_time_of(path) for path in known if path.exists())


def _time_of(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="milliseconds")
