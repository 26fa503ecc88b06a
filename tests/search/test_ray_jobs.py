"""Following a driver on a cluster, against a small server that answers as Ray Jobs does."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import search.ray_jobs
from search.job import JobError, resume_job, run_job
from search.ray_jobs import ClusterError, Ended, drive_on_cluster, end_lost_driver, is_jobs_address
from search.service import driver
from search.service.events import change_state, last_event
from search.service.folder import JobFolder
from search.spec_models import Spec

SPEC: dict[str, Any] = {
    "version": 1,
    "network": {"kind": "toy", "decisions": 4},
    "budget": {"macs": "50%"},
    "agents": [{"kind": "uniform"}],
    "evaluations": 1,
}


@dataclass
class Cluster:
    """What the server answers, and what it was asked.

    Attributes:
        statuses: of the one submission, in turn; the last one stays.
        known: whether it knows the submission.
        refuses: the status with which it answers a submission, if it does not take it.
    """

    address: str
    statuses: list[str] = field(default_factory=lambda: ["PENDING", "RUNNING", "SUCCEEDED"])
    known: bool = True
    refuses: int | None = None
    submitted: list[dict[str, Any]] = field(default_factory=list)
    stopped: int = 0
    tokens: set[str | None] = field(default_factory=set)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, object]:
        if path == "/api/version":
            return 200, {"ray_version": "2.60.0"}
        if method == "POST" and path == "/api/jobs/":
            if self.refuses:
                return self.refuses, "no"
            self.submitted.append(json.loads(body))
            return 200, {"submission_id": self.submitted[-1]["submission_id"]}
        if path.endswith("/stop"):
            self.stopped += 1
            self.statuses = ["STOPPED"]
            return 200, {"stopped": True}
        if path.endswith("/logs"):
            return 200, {"logs": "first line\nNo module named 'search'\n"}
        if not self.known:
            return 404, "Job does not exist"
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return 200, {"status": status, "message": f"it is {status}"}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(search.ray_jobs, "_LOOK_S", 0.01)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            known.tokens.add(self.headers.get("Authorization"))
            code, content = known.answer(self.command, self.path, body)
            data = json.dumps(content).encode() if code == 200 else str(content).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    known = Cluster(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield known
    server.shutdown()
    thread.join()
    server.server_close()


def never() -> bool:
    return False


def test_the_driver_is_submitted_and_followed_to_its_end(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "a job"
    folder.mkdir()
    assert drive_on_cluster(folder, cluster.address, never) == Ended("SUCCEEDED", "it is SUCCEEDED")
    asked = cluster.submitted[0]
    command = f"python -P -m search.service.driver '{folder}' --address auto >> '{folder}'/log.txt 2>&1"
    assert asked["entrypoint"] == command
    assert re.fullmatch(r"amc-[0-9a-f]{16}", asked["submission_id"])
    assert list(folder.iterdir()) == []


def test_which_submission_it_is_stands_in_the_folder_before_it_is_asked_for(cluster: Cluster, tmp_path: Path) -> None:
    cluster.refuses = 500
    with pytest.raises(ClusterError, match=re.escape(f"Ray Jobs at {cluster.address} answered 500: no")):
        drive_on_cluster(tmp_path, cluster.address, never)
    assert json.loads((tmp_path / "cluster.json").read_text())["address"] == cluster.address


def test_what_a_driver_printed_that_failed_is_told(cluster: Cluster, tmp_path: Path) -> None:
    cluster.statuses = ["FAILED"]
    ended = drive_on_cluster(tmp_path, cluster.address, never)
    assert ended == Ended("FAILED", "it is FAILED\nfirst line\nNo module named 'search'")


def test_a_driver_that_waits_for_room_is_stopped_when_asked(cluster: Cluster, tmp_path: Path) -> None:
    cluster.statuses = ["PENDING"]
    assert drive_on_cluster(tmp_path, cluster.address, lambda: True).status == "STOPPED"
    assert cluster.stopped == 1


def test_one_that_runs_is_not_stopped_but_looks_for_itself(cluster: Cluster, tmp_path: Path) -> None:
    cluster.statuses = ["RUNNING", "RUNNING", "SUCCEEDED"]
    assert drive_on_cluster(tmp_path, cluster.address, lambda: True).status == "SUCCEEDED"
    assert cluster.stopped == 0


def test_the_token_of_the_cluster_is_sent(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t0ken")
    drive_on_cluster(tmp_path, cluster.address, never)
    assert cluster.tokens == {"Bearer t0ken"}


def leave(folder: Path, address: str) -> None:
    (folder / "cluster.json").write_text(json.dumps({"address": address, "submission": "amc-1"}))


@pytest.mark.parametrize(("known", "stopped"), [(True, 1), (False, 0)])
def test_what_a_killed_process_left_is_stopped_before_another_begins(
    cluster: Cluster, tmp_path: Path, known: bool, stopped: int
) -> None:
    cluster.statuses, cluster.known = ["RUNNING"], known
    leave(tmp_path, cluster.address)
    end_lost_driver(tmp_path)
    assert cluster.stopped == stopped
    assert not (tmp_path / "cluster.json").exists()


def test_a_cluster_that_is_away_keeps_a_job_from_being_run_twice(tmp_path: Path) -> None:
    run = tmp_path / "job"
    run.mkdir()
    (run / "spec.yaml").write_text(json.dumps(SPEC))
    leave(run, "http://127.0.0.1:9")
    expected = (
        "the job may still be running on the cluster (no Ray Jobs answer at http://127.0.0.1:9: [Errno 111] Connection "
        f"refused); when it is not, delete {run / 'cluster.json'}"
    )
    with pytest.raises(ClusterError, match=f"^{re.escape(expected)}$"):
        resume_job(run)


def test_no_ray_jobs_at_the_address(tmp_path: Path) -> None:
    expected = (
        "no Ray Jobs answer at http://127.0.0.1:9: [Errno 111] Connection refused; start the head with ray[default] "
        "and give the address of its jobs"
    )
    with pytest.raises(ClusterError, match=f"^{re.escape(expected)}$"):
        drive_on_cluster(tmp_path, "http://127.0.0.1:9", never)
    assert not (tmp_path / "cluster.json").exists()


def test_a_search_driven_from_here_takes_the_address_of_the_cluster_itself(tmp_path: Path) -> None:
    spec = Spec.model_validate({**SPEC, "resources": {"address": "http://head:8265"}})
    expected = (
        "http://head:8265 is the address of Ray Jobs, where a server has searches driven: submit the job to `amc "
        "serve`; to drive it from here, give the address of the cluster itself, such as head:6379"
    )
    with pytest.raises(JobError, match=f"^{re.escape(expected)}$"):
        run_job(spec, tmp_path / "job")


def test_addresses_are_told_apart() -> None:
    assert is_jobs_address("http://head:8265")
    assert not is_jobs_address("head:6379")
    assert not is_jobs_address(None)


@pytest.mark.parametrize(
    ("recorded", "ended", "expected"),
    [
        (["starting", "running", "succeeded"], Ended("SUCCEEDED", ""), "succeeded"),
        (["starting", "running"], Ended("FAILED", "killed"), "interrupted"),
        (["starting"], Ended("STOPPED", ""), "interrupted"),
        (["starting"], Ended("FAILED", "no module"), "failed"),
    ],
)
def test_an_end_that_the_driver_there_did_not_record_is_recorded_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: list[Any], ended: Ended, expected: str
) -> None:
    job = JobFolder("job", tmp_path)
    (tmp_path / "spec.yaml").write_text(json.dumps({**SPEC, "resources": {"address": "http://head:8265"}}))
    for state in recorded:
        change_state(job.events, state)
    monkeypatch.setattr(driver, "drive_on_cluster", lambda folder, address, stop: ended)
    monkeypatch.setattr("sys.argv", ["driver", str(tmp_path)])
    driver.main()
    last = last_event(job.events)
    assert last is not None
    assert last["job"] == expected
    if expected == "failed":
        assert last["error"] == "the driver did not begin on the cluster: no module"
