"""A power cut, imitated: the server, its drivers and its helper killed with -9 at random moments, again and again.

    python scripts/break_service.py --kills 50

After each kill every file of every job must be whole and no finished trial may have changed; after the last one every
job must come to the results of an undisturbed run. Trials are toys that run without Ray (`_toy_service.py`): what is
tried is the service. Exits with 1 if anything was lost, damaged or done twice.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import yaml
from _toy_service import Server, wait_until

SPEC: dict[str, Any] = {
    "version": 1,
    "name": "toy",
    "network": {"kind": "toy", "decisions": 4, "seconds_per_evaluation": 0.05},
    "budget": {"macs": "50%"},
    "agents": [{"kind": "random"}, {"kind": "uniform"}],
    "seeds": [0, 1, 2],
    "evaluations": 20,
}


def main() -> None:
    """Kill, look, start again; at last compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    began, faults, finished, jobs = time.monotonic(), list[str](), dict[Path, bytes](), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "spec.yaml"
        spec.write_text(yaml.safe_dump(SPEC))
        server = Server(Path(folder) / "data", max_running=2)
        try:
            for kill in range(options.kills):
                if sum(job["state"] != "succeeded" for job in server.jobs.list_jobs((), 1000)) < 2:
                    jobs.append(server.submit(spec))
                time.sleep(moments.uniform(0.0, 15.0))
                server.kill_all()
                faults += damage(server.data, finished)
                click.echo(f"kill {kill + 1}: {len(jobs)} jobs, {len(finished)} finished trials, {len(faults)} faults")
                server.start()
            over = wait_until(lambda: all(server.state(job) == "succeeded" for job in jobs), patience_s=600.0)
            faults += [] if over else [f"not all jobs came to their end: {[server.state(job) for job in jobs]}"]
            faults += damage(server.data, finished)
            faults += differences(server.data, jobs)
        finally:
            server.kill_all()
    for fault in faults:
        click.echo(fault)
    click.echo(
        f"{options.kills} kills of everything in {time.monotonic() - began:.0f} s: {len(jobs)} jobs, all came back and "
        f"{len(finished)} trials finished once each" if not faults else f"{len(faults)} faults"
    )  # fmt: skip
    sys.exit(1 if faults else 0)


def damage(data: Path, finished: dict[Path, bytes]) -> Iterator[str]:
    """What is damaged or was done twice; `finished` keeps the results of finished trials from look to look."""
    for path in data.glob("jobs/*/**/*.json"):
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            yield f"{path}: damaged: {error}"
    for path in data.glob("jobs/*/events.jsonl"):
        lines = path.read_bytes().split(b"\n")[:-1]
        if [json.loads(line)["seq"] for line in lines] != list(range(1, len(lines) + 1)):
            yield f"{path}: an event is missing or double"
    for path in data.glob("jobs/*/trials/*/result.json"):
        content = path.read_bytes() + str(path.stat().st_mtime_ns).encode()
        if finished.setdefault(path, content) != content:
            yield f"{path}: a finished trial was run again"


def differences(data: Path, jobs: list[str]) -> Iterator[str]:
    """Where a job differs from the same job run at once."""
    from search.build import build_problem
    from search.spec_models import Spec
    from search.trial import plan_trials, run_trial

    spec = Spec.model_validate({**SPEC, "network": {"kind": "toy", "decisions": 4}})
    for trial in plan_trials(spec):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "trials" / trial.name
            place.mkdir(parents=True)
            record = run_trial(spec, build_problem(spec), trial.agent, trial.seed, place, lambda progress: None)
        expected = [(point.widths, point.reward) for point in record.history], record.best
        for job in jobs:
            loaded = type(record).model_validate_json(
                (data / "jobs" / job / "trials" / trial.name / "result.json").read_bytes()
            )
            if ([(point.widths, point.reward) for point in loaded.history], loaded.best) != expected:
                yield f"{job}: {trial.name} differs from an undisturbed run"


if __name__ == "__main__":
    main()
