"""The API: jobs are made once, listed, followed, cancelled, resumed, deleted, compared; wrong requests are 4xx."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from starlette.testclient import TestClient

from search.job import load_results
from search.known import known_of_job, load_known
from search.service.events import append_event, change_state
from search.service.service import _tell_death
from search.service.supervisor import Supervisor
from tests.search.service.helpers import SPEC, make_client, run_here


@pytest.fixture
def shown(finished: Path, tmp_path: Path) -> Path:
    """A folder with the finished job in it."""
    shutil.copytree(finished, tmp_path / "runs" / "toy-run")
    return tmp_path / "runs"


def submit(client: TestClient, **changes: object) -> str:
    made = client.post("/api/jobs", json={**SPEC, **changes})
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


def test_a_job_is_made_listed_and_described(client: TestClient) -> None:
    made = client.post("/api/jobs", json=SPEC).json()
    assert made["state"] == "queued"
    assert made["progress"] == {"evaluations": 0, "of": 15, "trials_finished": 0, "trials": 3}
    assert made["budgets"] == [{"cost": "macs", "limit": None, "fraction": 0.5, "unit": "MACs"}]
    assert made["actions"] == ["cancel", "delete"]
    assert client.get(f"/api/jobs/{made['id']}").json() == made
    listed = client.get("/api/jobs").json()
    assert listed["total"] == 1
    assert listed["jobs"] == [{key: made[key] for key in listed["jobs"][0]}]
    assert (listed["networks"], listed["states"]) == (["toy"], {"queued": 1})
    assert client.get("/api/health").json()["queued"] == 1


def test_the_list_is_not_behind_what_was_said_of_a_job(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Supervisor, "tick", lambda _: None)
    monkeypatch.setattr(Supervisor, "scan", lambda _: None)
    job = submit(client)
    change_state(client.app.state.service.store.find(job).events, "failed", error="no weights")  # type: ignore[attr-defined]
    assert client.get("/api/jobs").json()["states"] == {"queued": 1}
    assert client.get(f"/api/jobs/{job}").json()["state"] == "failed"
    assert client.get("/api/jobs").json()["states"] == {"failed": 1}


def test_what_another_job_evaluated_is_taken_over(tmp_path: Path, shown: Path) -> None:
    run_here(shown / "other", network={"kind": "toy", "decisions": 3})
    key, longer = {"Idempotency-Key": "a-key"}, {**SPEC, "evaluations": 9}
    with make_client(tmp_path / "data", watch=(shown,), max_running=0) as client:
        other, run = sorted(job["id"] for job in client.get("/api/jobs").json()["jobs"])
        made = client.post("/api/jobs", params={"known": run}, json=longer, headers=key)
        assert made.status_code == 201, made.text
        job = tmp_path / "data" / "jobs" / made.json()["id"]
        assert load_known(job / "known.jsonl") == known_of_job(load_results(shown / "toy-run"))
        again = client.post("/api/jobs", params={"known": run}, json=longer, headers=key)
        assert (again.status_code, again.json()["id"]) == (200, job.name)
        assert client.post("/api/jobs", json=longer, headers=key).status_code == 409
        for known, status, why in (
            (["nothing"], 404, "no job 'nothing'"),
            ([job.name], 422, "the search has not begun"),
            ([run, other], 422, "its evaluations are of another problem, which differs in: network; expected"),
            ([run] * 21, 422, "at most 20"),
        ):
            refused = client.post("/api/jobs", params={"known": known}, json=longer)
            assert (refused.status_code, why in refused.text) == (status, True), refused.text
        assert client.get("/api/jobs").json()["total"] == 3


def test_yaml_makes_the_same_job_as_json(client: TestClient) -> None:
    body = yaml.safe_dump(SPEC)
    made = client.post("/api/jobs", content=body, headers={"content-type": "application/yaml"}).json()
    assert made["spec"] == client.post("/api/jobs", json=SPEC).json()["spec"]


def test_one_key_makes_one_job(client: TestClient) -> None:
    key = {"Idempotency-Key": "a-key"}
    first = client.post("/api/jobs", json=SPEC, headers=key)
    again = client.post("/api/jobs", json=SPEC, headers=key)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    other = client.post("/api/jobs", json={**SPEC, "evaluations": 6}, headers=key)
    assert other.status_code == 409
    assert "came with another request before" in other.json()["detail"]


def test_a_copied_folder_is_a_job_of_its_own(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with make_client(data, max_running=0) as client:
        key = {"Idempotency-Key": "a-key"}
        job = client.post("/api/jobs", json=SPEC, headers=key).json()["id"]
    shutil.copytree(data / "jobs" / job, data / "jobs" / f"{job}-copy")
    with make_client(data, max_running=0) as client:
        assert client.get("/api/jobs").json()["total"] == 2
        assert client.post("/api/jobs", json=SPEC, headers=key).json()["id"] == job


def test_faults_of_a_spec_are_named_with_their_places(client: TestClient) -> None:
    wrong = {**SPEC, "evaluations": 0, "agents": [{"kind": "ddpg", "sigmaa": 1}]}
    refused = client.post("/api/jobs", json=wrong)
    assert refused.status_code == 422
    paths = [fault["path"] for fault in refused.json()["errors"]]
    assert paths == ["agents.0.sigmaa", "evaluations"]
    checked = client.post("/api/specs/check", json=wrong)
    assert checked.status_code == 200
    assert checked.json()["errors"] == refused.json()["errors"]
    good = client.post("/api/specs/check", json=SPEC).json()
    assert good["valid"]
    assert good["trials"] == ["uniform-seed0", "random-seed0", "random-seed1"]
    assert yaml.safe_load(good["yaml"])["evaluations"] == 5
    assert client.get("/api/jobs").json()["total"] == 0


def test_the_list_is_filtered_sorted_and_cut(client: TestClient) -> None:
    names = ["b", "a", "c"]
    ids = {name: submit(client, name=name, budget={"macs": f"{40 + place}%"}) for place, name in enumerate(names)}
    client.post(f"/api/jobs/{ids['b']}/cancel", json={})

    def listed(query: str) -> list[str]:
        return [job["name"] for job in client.get(f"/api/jobs?{query}").json()["jobs"]]

    assert listed("sort=name&order=asc") == ["a", "b", "c"]
    assert listed("sort=name&order=asc&limit=1&offset=1") == ["b"]
    assert listed("sort=budget&order=desc") == ["c", "a", "b"]
    assert listed("state=cancelled") == ["b"]
    assert sorted(listed("state=cancelled&state=queued")) == ["a", "b", "c"]
    assert listed(f"q={ids['c'][:20].upper()}") == ["c"]
    assert listed("network=digits") == []
    assert client.get("/api/jobs?sort=colour").status_code == 422
    assert client.get("/api/jobs?state=lost").status_code == 422


def test_cancel_resume_delete(client: TestClient) -> None:
    job = submit(client)
    assert client.post(f"/api/jobs/{job}/cancel", json={}).json()["state"] == "cancelled"
    again = client.post(f"/api/jobs/{job}/cancel", json={})
    assert (again.status_code, again.json()["detail"]) == (
        409, f"{job} is cancelled; only a job that is queued or running can be cancelled",
    )  # fmt: skip
    assert client.post(f"/api/jobs/{job}/resume", json={}).json()["state"] == "queued"
    assert client.delete(f"/api/jobs/{job}").status_code == 204
    assert client.get(f"/api/jobs/{job}").status_code == 404
    assert client.get("/api/jobs").json()["total"] == 0


def events_of(client: TestClient, job: str, query: str = "", **headers: str) -> list[tuple[str, str]]:
    """Numbers and kinds of the events of a job that is over."""
    text = client.get(f"/api/jobs/{job}/events{query}", headers=headers).text
    blocks = [block.split("\n") for block in text.split("\n\n") if "event: " in block]
    return [(block[0].removeprefix("id: ") if len(block) == 3 else "", block[-2][7:]) for block in blocks]


def test_events_begin_where_they_are_asked_for(client: TestClient, tmp_path: Path) -> None:
    job = submit(client)
    append_event(tmp_path / "data" / "jobs" / job / "events.jsonl", "note", text="calibrating")
    client.post(f"/api/jobs/{job}/cancel", json={})
    every = [("1", "state"), ("2", "note"), ("3", "state"), ("", "end")]
    assert events_of(client, job) == every
    assert events_of(client, job, "?after=2") == every[2:]
    assert events_of(client, job, **{"Last-Event-ID": "1"}) == every[1:]
    assert events_of(client, job, "?after=99") == every[3:]


def test_log_is_told_from_its_end_or_from_a_byte(client: TestClient, tmp_path: Path) -> None:
    job = submit(client)
    assert client.get(f"/api/jobs/{job}/log").text == ""
    (tmp_path / "data" / "jobs" / job / "log.txt").write_bytes(b"one\ntwo\nthree \xff\n")
    assert client.get(f"/api/jobs/{job}/log?tail=2").text == "two\nthree \ufffd\n"
    rest = client.get(f"/api/jobs/{job}/log?offset=4")
    assert (rest.text, rest.headers["log-end"]) == ("two\nthree \ufffd\n", "16")


def test_a_job_of_amc_run_is_shown_and_left_alone(tmp_path: Path, shown: Path) -> None:
    with make_client(tmp_path / "data", watch=(shown,), max_running=0) as client:
        (job,) = client.get("/api/jobs").json()["jobs"]
        assert (job["state"], job["outcome"], job["best"]["agent"]) == ("succeeded", "feasible", "random")
        assert job["best"]["test_accuracy"] is not None
        described = client.get(f"/api/jobs/{job['id']}").json()
        assert (described["watched"], described["actions"], described["last_event"]) == (True, [], 0)
        trials = client.get(f"/api/jobs/{job['id']}/trials").json()
        assert [(trial["trial"], trial["state"], trial["evaluations"]) for trial in trials] == [
            ("random-seed0", "finished", 5), ("random-seed1", "finished", 5), ("uniform-seed0", "finished", 1),
        ]  # fmt: skip
        view = client.get(f"/api/jobs/{job['id']}/view").json()
        assert "<svg" in view["sections"]["progress"]
        names = [file["name"] for file in client.get(f"/api/jobs/{job['id']}/artifacts").json()]
        assert names == ["report.html", "results.json", "spec.yaml"]
        assert client.delete(f"/api/jobs/{job['id']}").status_code == 409
        assert client.post(f"/api/jobs/{job['id']}/resume", json={}).status_code == 409
        assert client.post(f"/api/jobs/{job['id']}/export", json={}).status_code == 409


def test_an_interrupted_job_of_amc_run_can_be_resumed(tmp_path: Path, shown: Path) -> None:
    (shown / "toy-run" / "trials" / "random-seed1" / "result.json").unlink()
    with make_client(tmp_path / "data", watch=(shown,), max_running=0) as client:
        (job,) = client.get("/api/jobs").json()["jobs"]
        assert job["state"] == "interrupted"
        assert client.post(f"/api/jobs/{job['id']}/resume", json={}).json()["state"] == "queued"


def test_a_folder_that_cannot_be_read_hides_no_other(tmp_path: Path, shown: Path) -> None:
    for name, text in (("odd", "- a list"), ("torn", "version: ["), ("older", "agents: [ddpg]\nevaluations: 3\n")):
        (shown / name).mkdir()
        (shown / name / "spec.yaml").write_text(text)
        (shown / name / "lock").touch()
    with make_client(tmp_path / "data", watch=(shown,), max_running=0) as client:
        found = {job["name"]: job["state"] for job in client.get("/api/jobs").json()["jobs"]}
    assert found == {"toy": "succeeded", "odd": "interrupted", "torn": "interrupted", "older": "interrupted"}


def test_compare(tmp_path: Path, shown: Path) -> None:
    run_here(shown / "other", name="other", seeds=[5, 6])
    run_here(shown / "elsewhere", name="elsewhere", budget={"macs": "60%"})
    with make_client(tmp_path / "data", watch=(shown,), max_running=0) as client:
        ids = {job["name"]: job["id"] for job in client.get("/api/jobs").json()["jobs"]}
        same = client.get(f"/api/compare?ids={ids['toy']}&ids={ids['other']}").json()
        assert (same["comparable"], same["reason"]) == (True, None)
        assert same["table"]["headings"][:2] == ["job", "agent"]
        assert any("is the best agent at this budget" in line for line in same["said"])
        apart = client.get(f"/api/compare?ids={ids['toy']}&ids={ids['elsewhere']}").json()
        assert (apart["comparable"], apart["reason"]) == (False, "these jobs differ in: budget")
        assert client.get(f"/api/compare?ids={ids['toy']}").json()["comparable"]
        assert client.get("/api/compare").status_code == 422
        assert client.get(f"/api/compare?ids={ids['toy']}&ids={ids['toy']}").status_code == 422
        assert client.get(f"/api/compare?ids={ids['toy']}&ids=none").status_code == 404


def test_the_index_is_made_anew_from_the_folders(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with make_client(data, max_running=0) as client:
        key = {"Idempotency-Key": "a-key"}
        job = client.post("/api/jobs", json=SPEC, headers=key).json()["id"]
        before = client.get("/api/jobs").json()
    for damage in (b"no database", None):
        for path in data.glob("index.sqlite3*"):
            path.unlink()
        if damage is not None:
            (data / "index.sqlite3").write_bytes(damage)
        with make_client(data, max_running=0) as client:
            assert client.get("/api/jobs").json() == before
            assert client.post("/api/jobs", json=SPEC, headers=key).json()["id"] == job
    with sqlite3.connect(data / "index.sqlite3") as other:
        other.execute("pragma user_version = 77")
    other.close()
    with make_client(data, max_running=0) as client:
        assert client.get("/api/jobs").json() == before


def test_what_interrupted_the_server_is_queued_again_if_asked_for(tmp_path: Path) -> None:
    with make_client(tmp_path / "data", max_running=0) as client:
        job = submit(client)
        change_state(tmp_path / "data" / "jobs" / job / "events.jsonl", "running")
    with make_client(tmp_path / "data", max_running=0) as client:
        assert client.get(f"/api/jobs/{job}").json()["state"] == "interrupted"
    with make_client(tmp_path / "data", max_running=0, resume_interrupted=True) as client:
        assert client.get(f"/api/jobs/{job}").json()["state"] == "queued"


def test_what_can_be_named(client: TestClient, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "models" / "mine.pt").write_bytes(b"")
    (data / "models" / "mine.yaml").write_text("{kind: cifar_resnet, depth: 20}")
    (data / "tables" / "bad.json").write_text("{}")
    for name, described in (("torn", "{kind: "), ("vague", "{depth: 20}"), ("bare", "")):  # are left out
        (data / "models" / f"{name}.pt").write_bytes(b"")
        (data / "models" / f"{name}.yaml").write_text(described)
    models = client.get("/api/models").json()
    assert [model["spec"] for model in models["models"]] == [
        {"kind": "digits"}, {"kind": "cifar_resnet", "depth": 20, "weights": "mine.pt"},
    ]  # fmt: skip
    assert models["tables"] == []
    assert {agent["kind"] for agent in models["agents"] if agent["learns"]} == {"ddpg", "td3", "sac"}
    assert client.get("/api/schema").json()["title"] == "Spec"


def test_the_openapi_names_every_route_and_its_errors(client: TestClient) -> None:
    described = client.get("/api/openapi.json").json()
    assert set(described["paths"]) == {
        "/api/health", "/api/schema", "/api/models", "/api/tables", "/api/specs/check", "/api/uploads", "/api/compare",
        "/api/jobs", "/api/jobs/{job}", "/api/jobs/{job}/trials", "/api/jobs/{job}/events", "/api/jobs/{job}/log",
        "/api/jobs/{job}/view", "/api/jobs/{job}/cancel", "/api/jobs/{job}/resume", "/api/jobs/{job}/export",
        "/api/jobs/{job}/artifacts", "/api/jobs/{job}/artifacts/{name}",
    }  # fmt: skip
    assert json.dumps(described).count('"#/components/schemas/Problem"') > 50


def test_an_exporter_that_was_killed_has_failed(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    for code in ("", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"):
        _tell_death(subprocess.Popen([sys.executable, "-c", code]), events)
    assert [event["text"] for event in map(json.loads, events.read_text().splitlines())] == [
        "export: failed: its process ended with -9; the job's log may say why"
    ]
