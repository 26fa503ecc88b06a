"""`amc run --known`: what other jobs evaluated of the same problem is taken over, and of no other problem."""

from __future__ import annotations

from pathlib import Path

import pytest

from amc_env.problem import Score, Widths
from amc_env.toy import ToyProblem
from search.job import load_results
from search.known import Known, KnownRecord, known_of_job, load_known
from tests.search.conftest import comparable
from tests.search.test_cli import DIGITS, SPEC, amc

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[Widths]:
    """The plans that problems score from now on, the dense one aside."""
    seen: list[Widths] = []
    original = ToyProblem.score

    def score(self: ToyProblem, widths: Widths) -> Score:
        if tuple(widths) != self.dense_widths:
            seen.append(tuple(widths))
        return original(self, widths)

    monkeypatch.setattr(ToyProblem, "score", score)
    return seen


def run(spec: Path, out: Path, *options: object) -> None:
    outcome = amc("run", spec, "--out", out, *options)
    assert outcome.exit_code == 0, outcome.stderr


def test_a_longer_search_makes_only_what_the_shorter_did_not(spec: Path, tmp_path: Path, scored: list[Widths]) -> None:
    short, long, undisturbed = tmp_path / "short", tmp_path / "long", tmp_path / "undisturbed"
    run(spec, short)
    before = {point.widths for trial in load_results(short).trials for point in trial.history}
    assert before <= set(scored)
    scored.clear()
    run(spec, long, "--set", "evaluations=9", "--known", short)
    results = load_results(long)
    winners = {trial.best.widths for trial in results.trials if trial.best}  # scored on the test split too
    assert scored
    assert before.isdisjoint(set(scored) - winners)
    run(spec, undisturbed, "--set", "evaluations=9")
    assert results.known == len(before)
    assert comparable(results.model_copy(update={"known": 0})) == comparable(load_results(undisturbed))
    assert f"{len(before):,} evaluations of earlier jobs were known" in (long / "report.html").read_text()


def test_the_time_of_a_known_evaluation_is_that_of_then(spec: Path, tmp_path: Path) -> None:
    run(spec, tmp_path / "first")
    known = known_of_job(load_results(tmp_path / "first"))
    slow = {widths: record.model_copy(update={"seconds": 100.0}) for widths, record in known.records.items()}
    Known(known.problem, slow).save(tmp_path / "known.jsonl")
    run(spec, tmp_path / "second", "--known", tmp_path / "known.jsonl")
    for trial in load_results(tmp_path / "second").trials:
        assert trial.distinct * 100.0 <= trial.seconds < trial.distinct * 100.0 + 50.0  # repeated ones took no time


def test_the_first_source_that_knows_a_plan_tells_it(spec: Path, tmp_path: Path) -> None:
    run(spec, tmp_path / "first", "--set", "agents=[{kind: uniform}]")
    known = known_of_job(load_results(tmp_path / "first"))
    ((widths, record),) = known.records.items()
    Known(known.problem, {widths: record.model_copy(update={"error": 0.75})}).save(tmp_path / "other.jsonl")
    run(spec, tmp_path / "second", "--known", tmp_path / "other.jsonl", "--known", tmp_path / "first")
    assert load_known(tmp_path / "second" / "known.jsonl").records[widths].error == 0.75
    uniform = load_results(tmp_path / "second").trials[0]
    assert uniform.history[0].error == 0.75


def test_a_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    records: dict[Widths, KnownRecord] = {
        (3, 4): KnownRecord(widths=(3, 4), error=0.1 + 0.2, accuracy=None, seconds=1.5)
    }
    known = Known({"data": "00"}, records)
    known.save(tmp_path / "known.jsonl")
    assert load_known(tmp_path / "known.jsonl") == known


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("network.decisions=5", "network"),
        ("network.seed=1", "network"),
    ],
)
def test_another_toy_problem_is_refused(spec: Path, tmp_path: Path, change: str, named: str) -> None:
    run(spec, tmp_path / "first")
    outcome = amc("run", spec, "--set", change, "--known", tmp_path / "first", "--out", tmp_path / "second")
    assert outcome.exit_code == 2
    assert (
        f"{tmp_path / 'first'}: its evaluations are of another problem, which differs in: {named}; expected a job "
        f"whose scores are those of this one" in " ".join(outcome.stderr.split())
    )
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("data.seed=1", "data"),
        ("pruning.criterion=l1", "pruning"),
        ("evaluation.rows=600", "evaluation"),
        ("evaluation.hard_images=30", "evaluation, budget"),
    ],
)
def test_a_problem_with_other_scores_is_refused(tmp_path: Path, change: str, named: str) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(DIGITS)
    run(spec, tmp_path / "first")
    outcome = amc("run", spec, "--set", change, "--known", tmp_path / "first", "--out", tmp_path / "second")
    assert outcome.exit_code == 2
    assert f"which differs in: {named};" in " ".join(outcome.stderr.split())


def test_blocks_that_are_reconstructed_in_the_end_change_no_score(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(DIGITS)
    run(spec, tmp_path / "plain")
    run(spec, tmp_path / "trained", "--set", "evaluation.block_epochs=1", "--known", tmp_path / "plain")
    plain, trained = load_results(tmp_path / "plain"), load_results(tmp_path / "trained")
    assert trained.known == len({point.widths for trial in plain.trials for point in trial.history})
    for before, after in zip(plain.trials, trained.trials, strict=True):
        assert before.best is not None
        assert after.best is not None
        assert before.best.widths == after.best.widths
        assert before.best.reward == after.best.reward
        assert before.best.test_error != after.best.test_error


def test_at_another_budget_the_scores_are_the_same_unless_hard_images_follow_from_it(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(DIGITS)
    run(spec, tmp_path / "all")
    run(spec, tmp_path / "other", "--set", "budget.macs=60%", "--known", tmp_path / "all")
    run(spec, tmp_path / "hard", "--set", "evaluation.hard_images=30")
    outcome = amc(
        "run", spec, "--set", "evaluation.hard_images=30", "--set", "budget.macs=60%",
        "--known", tmp_path / "hard", "--out", tmp_path / "refused",
    )  # fmt: skip
    assert outcome.exit_code == 2
    assert "which differs in: budget;" in " ".join(outcome.stderr.split())


def test_hard_images_that_follow_from_measured_latencies_are_refused(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(DIGITS.replace("macs: 50%", "latency_ms: 50%"))
    (tmp_path / "known.jsonl").write_text('{"version":1,"problem":{}}\n')
    outcome = amc(
        "run",
        spec,
        "--set",
        "evaluation.hard_images=30",
        "--known",
        tmp_path / "known.jsonl",
        "--out",
        tmp_path / "job",
    )
    assert outcome.exit_code == 2
    assert "leave out --known, or hard_images" in " ".join(outcome.stderr.split())


def test_activations_are_counted_and_not_measured(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(DIGITS.replace("macs: 50%", "activations: 90%"))
    run(spec, tmp_path / "first", "--set", "evaluation.hard_images=30")
    run(spec, tmp_path / "second", "--set", "evaluation.hard_images=30", "--known", tmp_path / "first")
    assert load_results(tmp_path / "second").known > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "evaluation.stop_early=true",
            "evaluation.stop_early: how far a plan is scored depends on those before it, so no earlier evaluations can "
            "be taken over; leave out --known, or stop_early",
        ),
        (
            "evaluation.objective=losses:mine",
            "evaluation.objective 'losses:mine': nobody knows whether a function of one's own still is what it was, so "
            "no earlier evaluations can be taken over; leave out --known",
        ),
    ],
)
def test_scores_that_follow_from_more_than_the_problem_are_refused(tmp_path: Path, change: str, message: str) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(DIGITS)
    (tmp_path / "losses.py").write_text(
        "def mine(outputs, labels, dense):\n    return (outputs - dense).square().mean(1)\n"
    )
    (tmp_path / "known.jsonl").write_text('{"version":1,"problem":{}}\n')
    outcome = amc("run", spec, "--set", change, "--known", tmp_path / "known.jsonl", "--out", tmp_path / "job")
    assert outcome.exit_code == 2
    assert message in " ".join(outcome.stderr.split())
    assert not (tmp_path / "job").exists()


def test_a_codebook_makes_another_problem(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(DIGITS.replace("macs: 50%", "size: 20%"))
    weights = ("--set", "pruning={granularity: fine_grained}", "--set", "evaluation={fidelity: prefix}")
    run(spec, tmp_path / "first", *weights, "--set", "storage={format: eie}")
    shared = (*weights, "--set", "storage={format: eie, codebook: 16}")
    outcome = amc("run", spec, *shared, "--known", tmp_path / "first", "--out", tmp_path / "second")
    assert outcome.exit_code == 2
    assert "which differs in: storage;" in " ".join(outcome.stderr.split())
    run(spec, tmp_path / "second", *shared)
    compared = amc("compare", tmp_path / "first", tmp_path / "second").stdout
    assert "not compared, for these differ in: storage." in compared


@pytest.mark.parametrize("content", ["", "{", '{"version":1,"problem":{}}\n{"widths":[1]}\n', "\x00\xff"])
def test_a_damaged_file_is_named(spec: Path, tmp_path: Path, content: str) -> None:
    damaged = tmp_path / "known.jsonl"
    damaged.write_bytes(content.encode("latin-1"))
    outcome = amc("run", spec, "--known", damaged, "--out", tmp_path / "job")
    assert outcome.exit_code == 2
    assert f"{damaged}: damaged, or not a file known.jsonl" in " ".join(outcome.stderr.split())
    assert not (tmp_path / "job").exists()


def test_what_is_not_there_is_named(spec: Path, tmp_path: Path) -> None:
    outcome = amc("run", spec, "--known", tmp_path / "nothing", "--out", tmp_path / "job")
    assert outcome.exit_code == 2
    assert "expected a job's folder, or a file known.jsonl of one: No such file or directory" in outcome.stderr
    (tmp_path / "empty").mkdir()
    outcome = amc("run", spec, "--known", tmp_path / "empty", "--out", tmp_path / "job")
    assert outcome.exit_code == 2
    assert "no job folder" in outcome.stderr
