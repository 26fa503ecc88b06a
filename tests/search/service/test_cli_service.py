"""The client verbs, on a data folder and on a server: what they print, and their exit codes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click.testing
import pytest

from scripts._toy_service import Server, wait_until
from search.cli import main
from search.job import load_results
from search.known import known_of_job, load_known
from search.service.events import append_event, change_state
from search.service.store import Store

SPEC = """\
version: 1
name: toy
network: {kind: toy, decisions: 4}
budget: {macs: 50%}
agents: [{kind: uniform}, {kind: random}]
seeds: [0, 1]
evaluations: 5
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "spec.yaml").write_text(SPEC)
    return tmp_path / "spec.yaml"


def amc(*arguments: object, **environment: Any) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, [str(argument) for argument in arguments], env=environment)


def test_jobs_of_a_data_folder_without_a_server(spec: Path, tmp_path: Path, finished: Path) -> None:
    data = {"AMC_DATA": str(tmp_path / "data")}
    made = amc("submit", spec, "--set", "evaluations=7", **data)
    assert made.exit_code == 0
    assert f"it waits until a server runs: amc serve --data {tmp_path / 'data'}" in made.stderr
    job = made.stdout.strip()
    assert amc("ls", **data).stdout.splitlines()[2].split() == [job, "queued", "toy", "macs", "50%", "-", "0/21"]
    assert "toy: queued, 0/21 evaluations" in amc("show", job, **data).stdout
    refused = amc("submit", spec, "--wait", **data)
    assert refused.exit_code == 2
    assert "no server runs on" in refused.stderr
    assert amc("cancel", job, **data).stdout == f"{job}: cancelled\n"
    assert amc("wait", job, **data).exit_code == 130
    assert amc("resume", job, **data).stdout == f"{job}: queued\n"
    events = tmp_path / "data" / "jobs" / job / "events.jsonl"
    (events.parent / "log.txt").write_text("one\ntwo\n")
    assert amc("logs", job, **data).stdout == "one\ntwo\n"
    change_state(events, "failed", error="no weights")
    ended = amc("wait", job, **data)
    assert (ended.exit_code, "failed: no weights" in ended.stderr) == (1, True)
    for name in ("trials", "results.json", "report.html"):
        source = finished / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, events.parent / name)
    append_event(events, "note", text="calibrating: 1/2 layers")
    change_state(events, "succeeded")
    ended = amc("wait", job, **data)
    assert ended.exit_code == 0
    assert "calibrating: 1/2 layers" in ended.stderr
    assert "succeeded: 11/11 evaluations, best -" in ended.stdout
    assert "is the best agent at this budget" in amc("show", job, **data).stdout
    assert "uniform" in amc("compare", job, finished, **data).stdout
    longer = amc("submit", spec, "--set", "evaluations=9", "--known", job, **data).stdout.strip()
    assert load_known(tmp_path / "data" / "jobs" / longer / "known.jsonl") == known_of_job(load_results(finished))
    assert amc("rm", job, **data).stdout == f"deleted {job}\n"
    gone = amc("show", job, **data)
    assert amc("submit", spec, "--known", job, **data).stderr == gone.stderr
    assert (gone.exit_code, gone.stderr) == (2, f"error: no job '{job}'\n")


def test_no_feasible_policy_has_its_own_exit_code(tmp_path: Path, spec: Path) -> None:
    data = {"AMC_DATA": str(tmp_path / "data")}
    job = amc("submit", spec, **data).stdout.strip()
    change_state(Store(tmp_path / "data").find(job).events, "succeeded")
    ended = amc("wait", job, **data)
    assert ended.exit_code == 3
    assert "no agent found a policy that meets the budget" in ended.stdout


def test_jobs_of_a_server(server: Server, spec: Path, tmp_path: Path, finished: Path) -> None:
    url = {"AMC_SERVER": server.jobs._url}
    ended = amc("submit", spec, "--wait", **url)
    assert ended.exit_code == 0, ended.stderr
    job = ended.stdout.split()[0]
    assert ended.stderr.splitlines()[0] == "queued"
    assert "uniform-seed0: " not in ended.stderr or "finished" in ended.stderr
    assert ended.stdout.splitlines()[1].startswith("succeeded: 11/11 evaluations, best -")
    assert job in amc("ls", "--state", "succeeded", **url).stdout
    assert "uniform seed 0: finished, 1 evaluations" in amc("show", job, **url).stdout
    assert "succeeded" in amc("logs", job, "-f", **url).stdout
    again = amc("submit", spec, "--known", job, **url).stdout.strip()
    assert wait_until(lambda: server.state(again) == "succeeded")
    assert load_results(server.data / "jobs" / again).known == 11
    other = amc("submit", spec, "--set", "network.decisions=3", "--known", job, "--wait", **url)
    assert (other.exit_code, "which differs in: network; expected a job" in other.stderr) == (1, True)
    assert "is the best agent at this budget" in amc("compare", job, again, **url).stdout
    assert "random" in amc("compare", job, **url).stdout
    refused = amc("compare", job, again, "--format", "json", **url)
    assert (refused.exit_code, "--format: a server gives the table only" in refused.stderr) == (2, True)
    refused = amc("resume", job, "--address", "head:6379", **url)
    assert (refused.exit_code, "--address: of a job in a folder only" in refused.stderr) == (2, True)
    assert "is the best agent at this budget" in amc("show", finished, **url).stdout  # a folder of this machine
    assert amc("compare", finished, "--format", "json", **url).stdout.startswith("[")
    assert "has no network to export" in amc("export", finished, "--out", tmp_path / "out", **url).stderr
    assert amc("resume", finished, **url).exit_code == 2
    refused = amc("resume", job, **url)
    assert (refused.exit_code, "all its trials are finished" in refused.stderr) == (2, True)
    refused = amc("export", job, "--out", tmp_path / "out", **url)
    assert (refused.exit_code, "has no network to export" in refused.stderr) == (2, True)
    assert amc("rm", again, **url).exit_code == 0
    assert amc("cancel", again, **url).exit_code == 2
    wrong = amc("submit", spec, "--set", "seedz=[1]", **url)
    assert (wrong.exit_code, "seedz: unknown key; did you mean 'seeds'?" in wrong.stderr) == (2, True)


def test_no_server(spec: Path) -> None:
    for url, message in (("http://127.0.0.1:9", "no server answers at http://127.0.0.1:9"), ("here", "expected a URL")):
        outcome = amc("ls", "--server", url)
        assert outcome.exit_code == 2
        assert message in outcome.stderr


def test_serve_says_what_it_needs(tmp_path: Path) -> None:
    outcome = amc("serve", "--data", tmp_path, "--host", "0.0.0.0", AMC_TOKEN="")
    assert outcome.exit_code == 2
    assert "expected a token when others can reach the server" in outcome.stderr
