"""The state of a job from its folder: what is recorded, as far as lock and results bear it out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from search.locking import acquire
from search.service.events import STATES, State, change_state
from search.service.folder import JobFolder
from search.service.store import Store, Submission, UnknownJobError, WrongStateError
from search.service.summary import _budgets

NEW = Submission("toy", "version: 1\nname: toy\nevaluations: 5\n", ("random-seed0",), 5)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "data")
    made.prepare()
    return made


@pytest.fixture
def job(store: Store) -> JobFolder:
    return store.create(NEW)


@pytest.mark.parametrize(
    ("recorded", "wanted", "alive", "shown"),
    [
        ("queued", "run", False, "queued"),
        ("starting", "run", True, "starting"),
        ("starting", "run", False, "interrupted"),
        ("running", "run", True, "running"),
        ("running", "cancel", True, "cancelling"),
        ("running", "run", False, "interrupted"),
        ("running", "cancel", False, "cancelled"),
        ("cancelling", "cancel", True, "cancelling"),
        ("cancelling", "cancel", False, "cancelled"),
        ("interrupted", "run", True, "running"),  # by `amc resume`
        ("interrupted", "run", False, "interrupted"),
        ("cancelled", "cancel", False, "cancelled"),
        ("failed", "run", False, "failed"),
        ("succeeded", "run", False, "succeeded"),
    ],
)
def test_states(job: JobFolder, recorded: State, wanted: str, alive: bool, shown: str) -> None:
    change_state(job.events, recorded)
    job.want(wanted)
    with job.lock.open("ab") as lock:
        assert not alive or acquire(lock, 0.0)
        assert job.state() == shown


def test_a_job_of_amc_run_needs_no_events(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    shutil.copytree(finished, folder)
    job = JobFolder("job", folder, watched=True)
    assert job.state() == "succeeded"
    (folder / "trials" / "random-seed1" / "result.json").unlink()
    assert job.state() == "interrupted"
    with job.lock.open("ab") as lock:
        assert acquire(lock, 0.0)
        assert job.state() == "running"


@pytest.mark.parametrize(
    ("cost", "found", "shown"),
    [
        ("latency_ms", True, "interrupted"),
        ("latency_ms", False, "interrupted"),
        ("sparse_latency_ms", True, "interrupted"),
        ("sparse_latency_ms", False, "succeeded"),
    ],
)
def test_a_job_is_over_when_what_was_found_was_timed(
    finished: Path, tmp_path: Path, cost: str, found: bool, shown: str
) -> None:
    """As `amc resume` sees it: the table's latency is recorded whatever was found, measuring needs a winner."""
    folder = tmp_path / "job"
    shutil.copytree(finished, folder)
    results = json.loads((folder / "results.json").read_text())
    results["spec"]["budget"] = {cost: "50%"}
    if not found:
        results["trials"] = [{**trial, "best": None} for trial in results["trials"]]
    (folder / "results.json").write_text(json.dumps(results))
    assert JobFolder("job", folder, watched=True).state() == shown


def test_a_limit_has_its_unit_before_there_are_results() -> None:
    (budget,) = _budgets({"budget": {"sparse_latency_ms": "50%"}})
    assert (budget.cost, budget.fraction, budget.unit) == ("sparse_latency_ms", 0.5, "ms")


def test_results_tell_how_a_job_ended_that_was_resumed_in_a_terminal(finished: Path, store: Store) -> None:
    job = store.create(NEW)
    change_state(job.events, "interrupted")
    for name in ("results.json", "report.html", "trials"):
        source = finished / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, job.path / name)
    assert job.state() == "succeeded"


def test_a_folder_appears_whole_and_what_a_crash_left_goes(store: Store, job: JobFolder) -> None:
    assert sorted(path.name for path in job.path.iterdir()) == ["events.jsonl", "request.json", "reserve", "spec.yaml"]
    (store.jobs / ".new-half").mkdir()
    (store.jobs / ".deleted-half").mkdir()
    assert [each.id for each in store] == [job.id]
    store.prepare()
    assert [path.name for path in store.jobs.iterdir()] == [job.id]


@pytest.mark.parametrize("state", STATES)
def test_what_can_be_done_in_which_state(store: Store, job: JobFolder, state: State) -> None:
    change_state(job.events, state)
    with job.lock.open("ab") as lock:
        if state in ("starting", "running", "cancelling"):
            assert acquire(lock, 0.0)
        if state not in ("queued", "starting", "running", "cancelling"):
            with pytest.raises(WrongStateError, match=f"{job.id} is {state}; only a job that is queued or running"):
                store.cancel(job)
        if state not in ("failed", "cancelled", "interrupted"):
            with pytest.raises(WrongStateError, match="there is nothing to resume"):
                store.resume(job)
        else:
            store.resume(job)
            assert job.state() == "queued"


def test_cancelled_while_it_waits(store: Store, job: JobFolder) -> None:
    store.cancel(job)
    assert job.state() == "cancelled"
    store.resume(job)
    assert (job.state(), job.request().wanted) == ("queued", "run")  # type: ignore[union-attr]


def test_only_job_folders_are_deleted(store: Store, job: JobFolder, finished: Path) -> None:
    with job.lock.open("ab") as lock:
        assert acquire(lock, 0.0)
        with pytest.raises(WrongStateError, match=f"{job.id} is running; cancel it first"):
            store.delete(job)
    store.delete(job)
    assert not job.path.exists()
    with pytest.raises(UnknownJobError, match="no job"):
        store.find(job.id)
    outside = Store(store.data, [finished.parent])
    (watched,) = outside
    with pytest.raises(WrongStateError, match="lies outside the data folder; delete it there"):
        outside.delete(watched)
    assert (finished / "results.json").exists()


@pytest.mark.parametrize("name", ["..", ".", "", "../jobs", "a/b", "/etc", "a\0b", ".new-x", "a" * 300, "\n"])
def test_no_id_leaves_the_folder(store: Store, name: str) -> None:
    with pytest.raises(UnknownJobError, match="no job"):
        store.find(name)


def test_a_link_is_no_job(store: Store, finished: Path) -> None:
    (store.jobs / "link").symlink_to(finished)
    with pytest.raises(UnknownJobError, match=r"^no job 'link'$"):
        store.find("link")
    assert list(store) == []
