"""Trials: journaled, resumable with the same result, and failed if the agent fails."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from agents.base import Agent, OnEvaluation
from agents.random_search import RandomSearch
from agents.uniform import Uniform
from amc_env.problem import Evaluation, PruningProblem, Score, Widths
from amc_env.toy import ToyProblem
from search.journal import read_journal
from search.progress import TrialProgress
from search.results import TrialRecord
from search.spec_models import Spec
from search.trial import plan_trials, read_trial, run_trial

SPEC = Spec.model_validate(
    {
        "version": 1,
        "network": {"kind": "toy", "decisions": 4},
        "budget": {"macs": "50%"},
        "agents": [{"kind": "uniform"}, {"kind": "random"}],
        "seeds": [3, 5],
        "evaluations": 8,
    }
)


class CountingProblem(ToyProblem):
    """Counts what it scores."""

    scored = 0

    def score(self, widths: Widths) -> Score:
        self.scored += 1
        return super().score(widths)


class Impatient(ToyProblem):
    """Looks at half the images of what is no better than the best so far."""

    def score(self, widths: Widths) -> Score:
        score = super().score(widths)
        hopeless = score.error >= self.hopeless_error(widths)
        return dataclasses.replace(score, fraction=0.5) if hopeless else score


class Stopping(RandomSearch):
    """Fails after some evaluations, as long as it is told to."""

    after: int

    def search(
        self, problem: PruningProblem, *, max_evaluations: int, seed: int, on_evaluation: OnEvaluation
    ) -> Evaluation | None:
        done = 0

        def stop(evaluation: Evaluation) -> None:
            nonlocal done
            on_evaluation(evaluation)
            done += 1
            if done == self.after:
                raise ArithmeticError("stopped on purpose")

        return super().search(problem, max_evaluations=max_evaluations, seed=seed, on_evaluation=stop)


class Dense(RandomSearch):
    """Only ever asks for the dense network, which no budget allows."""

    def search(
        self, problem: PruningProblem, *, max_evaluations: int, seed: int, on_evaluation: OnEvaluation
    ) -> Evaluation | None:
        on_evaluation(problem.evaluate_widths(problem.dense_widths))
        return None


def run(folder: Path, agent: Agent | None = None, seed: int = 3, problem: PruningProblem | None = None) -> TrialRecord:
    folder.mkdir(exist_ok=True)
    return run_trial(SPEC, problem or ToyProblem(4), agent or RandomSearch(), seed, folder, lambda progress: None)


def timeless(record: TrialRecord) -> TrialRecord:
    history = tuple(point.model_copy(update={"seconds": 0.0}) for point in record.history)
    return record.model_copy(update={"seconds": 0.0, "history": history})


def test_an_agent_to_which_seeds_mean_nothing_runs_once() -> None:
    assert [trial.name for trial in plan_trials(SPEC)] == ["uniform-seed3", "random-seed3", "random-seed5"]


def test_finished_trial(tmp_path: Path) -> None:
    told: list[TrialProgress] = []
    problem = ToyProblem(4)
    record = run_trial(SPEC, problem, RandomSearch(), 3, tmp_path, told.append)
    assert record.status == "finished"
    assert record.evaluations == len(record.history) == 8
    assert record.best is not None
    assert record.best.reward == max(point.reward for point in record.history if point.reward is not None)
    score = problem.score(record.best.widths)
    assert (record.best.search_accuracy, record.best.search_error) == (score.accuracy, score.error)
    assert (record.best.test_accuracy, record.best.test_error) == (score.accuracy, score.error)
    assert [progress.evaluations for progress in told] == list(range(9))
    assert record == read_trial(RandomSearch(), 3, tmp_path)


def test_networks_for_budgets_of_their_own_are_tested_too(tmp_path: Path) -> None:
    """The third budget, 90 % of the MACs, is not the job's: what answers it is within its own."""
    agents = [{"kind": "ddpg", "budgets": [0.9, 0.3], "warmup": "heuristic"}, {"kind": "netadapt"}]
    spec = Spec.model_validate({**SPEC.model_dump(mode="json"), "agents": agents, "evaluations": 30})
    problem = ToyProblem(4)
    tried = []
    for agent in spec.agents:
        (tmp_path / agent.kind).mkdir()
        tried.append(run_trial(spec, problem, agent, 0, tmp_path / agent.kind, lambda progress: None))
    front, way = (trial.series for trial in tried)
    assert [network.budget for network in front] == [0.9, 0.5, 0.3]
    for network in front:
        assert network.feasible
        assert network.test_error == problem.score(network.widths).error
        assert network.test_accuracy == problem.score(network.widths).accuracy
    assert {network.feasible for network in way} == {True, False}
    assert {(network.budget, network.test_error, network.test_accuracy) for network in way} == {(None, None, None)}


def test_finished_trial_is_not_run_again(tmp_path: Path) -> None:
    record = run(tmp_path)
    problem = CountingProblem(4)
    assert run(tmp_path, problem=problem) == record
    assert problem.scored == 0


@pytest.mark.parametrize("after", [1, 4, 8])
def test_resumed_trial_equals_an_undisturbed_one(tmp_path: Path, after: int) -> None:
    undisturbed = run(tmp_path / "a")
    failed = run(tmp_path / "b", Stopping(after=after))
    assert failed.status == "failed"
    assert failed.evaluations == after
    assert "stopped on purpose" in (tmp_path / "b" / "error.txt").read_text()
    assert not (tmp_path / "b" / "result.json").exists()
    problem = CountingProblem(4)
    resumed = run(tmp_path / "b", problem=problem)
    assert timeless(resumed) == timeless(undisturbed)
    assert problem.scored == undisturbed.distinct - after + 1  # and the winner once more, on the test split
    assert not (tmp_path / "b" / "error.txt").exists()
    assert resumed.seconds >= failed.seconds


def test_evaluations_stopped_early_are_journaled_as_such(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain")
    undisturbed = run(tmp_path / "a", problem=Impatient(4))
    run(tmp_path / "b", Stopping(after=5), problem=Impatient(4))
    resumed = run(tmp_path / "b", problem=Impatient(4))
    assert timeless(resumed) == timeless(undisturbed)
    stopped = [record.stopped_early for record in read_journal(tmp_path / "b" / "evaluations.jsonl")]
    assert stopped == [point.stopped_early for point in resumed.history]
    best = [point.best_reward for point in plain.history]
    assert stopped == [index > 0 and best[index] == best[index - 1] for index in range(8)]
    assert resumed.best == plain.best


def test_of_an_earlier_round_only_whole_evaluations_are_remembered(tmp_path: Path) -> None:
    job, place = tmp_path, Path("trials") / "random-seed0"
    earlier = job / "rounds" / "1" / place
    for folder in (earlier, job / place):
        folder.mkdir(parents=True)
    first = run(earlier, problem=Impatient(4))
    stopped = {point.widths for point in first.history if point.stopped_early}
    problem = CountingProblem(4)
    second = run(job / place, problem=problem)
    assert 0 < len(stopped) < first.distinct
    assert [point.widths for point in second.history] == [point.widths for point in first.history]
    assert problem.scored == len(stopped) + 1  # and the winner once more, on the test split
    assert not any(point.stopped_early for point in second.history)


def test_seconds_accumulate_over_attempts(tmp_path: Path) -> None:
    run(tmp_path, Stopping(after=2))
    journal = tmp_path / "evaluations.jsonl"
    slow = [record.model_copy(update={"seconds": 100.0}) for record in read_journal(journal)]
    journal.write_text("".join(record.model_dump_json() + "\n" for record in slow))
    assert run(tmp_path).seconds > 200


def test_agent_that_is_not_deterministic_is_found_out(tmp_path: Path) -> None:
    run(tmp_path, Stopping(after=4), seed=3)
    record = run(tmp_path, seed=5)
    assert record.status == "failed"
    assert record.error is not None
    assert "evaluations.jsonl line 1: the journal has widths" in record.error
    assert run(tmp_path, seed=3).status == "finished"


def test_agent_that_ends_before_its_journal_is_found_out(tmp_path: Path) -> None:
    run(tmp_path, Stopping(after=4))
    short = SPEC.model_copy(update={"evaluations": 2})
    record = run_trial(short, ToyProblem(4), RandomSearch(), 3, tmp_path, lambda progress: None)
    assert record.error is not None
    assert "holds 4 evaluations, but the agent ended after 2 of them" in record.error


def test_agent_that_takes_more_than_its_evaluations_fails(tmp_path: Path) -> None:
    class Greedy(RandomSearch):
        def search(
            self, problem: PruningProblem, *, max_evaluations: int, seed: int, on_evaluation: OnEvaluation
        ) -> Evaluation | None:
            return super().search(problem, max_evaluations=max_evaluations + 1, seed=seed, on_evaluation=on_evaluation)

    record = run(tmp_path, Greedy())
    assert record.status == "failed"
    assert record.error is not None
    assert "more than the 8 evaluations" in record.error


def test_trial_without_a_feasible_policy_is_finished_and_has_none(tmp_path: Path) -> None:
    record = run(tmp_path, Dense())
    assert record.status == "finished"
    assert record.best is None
    assert record.history[0].reward is None
    assert (record.history[0].error, record.history[0].accuracy) == (None, None)


def test_damaged_journal_fails_the_trial_alone(tmp_path: Path) -> None:
    (tmp_path / "evaluations.jsonl").write_text("nonsense\n")
    record = run(tmp_path)
    assert record.status == "failed"
    assert record.error is not None
    assert "evaluations.jsonl line 1: damaged" in record.error


def test_trial_that_never_began_is_interrupted(tmp_path: Path) -> None:
    record = read_trial(Uniform(), 0, tmp_path / "none")
    assert (record.status, record.evaluations, record.best) == ("interrupted", 0, None)
