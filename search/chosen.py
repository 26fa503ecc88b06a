"""Which network of a job is meant: the winner of all its trials or of some, or a network of a series."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from amc_env.image_problem import ImageProblem
from amc_env.problem import Widths
from amc_env.weights import load_weights
from hw.torch_threads import torch_threads
from search.finetune_job import fine_tuned
from search.results import PolicyRecord, Results, SeriesRecord, TrialRecord


class ChoiceError(ValueError):
    """The job has no such network."""


@dataclass(frozen=True)
class Chosen:
    """The best policy of a trial, or network number `step` of its series, counted from 1."""

    trial: TrialRecord
    network: PolicyRecord | SeriesRecord
    step: int | None = None

    @property
    def feasible(self) -> bool:
        return isinstance(self.network, PolicyRecord) or self.network.feasible


def choose_winner(results: Results, agent: str | None, seed: int | None) -> Chosen:
    """The finished trial with the highest reward on the search split, of one agent and seed if told.

    Raises:
        ChoiceError: there is none.
    """
    candidates = [(trial, trial.best) for trial in _asked(results, agent, seed) if trial.best is not None]
    if not candidates:
        known = ", ".join(f"{trial.agent} seed {trial.seed} ({trial.status})" for trial in results.trials)
        raise ChoiceError(f"no feasible policy of {_said(agent, seed)}; trials: {known}")
    return Chosen(*max(candidates, key=lambda candidate: candidate[1].reward))


def choose_step(results: Results, agent: str | None, seed: int | None, step: int) -> Chosen:
    """Network number `step`, from 1, of the one trial with a series, of one agent and seed if told.

    Raises:
        ChoiceError: there is none, or more than one trial has a series.
    """
    candidates = [trial for trial in _asked(results, agent, seed) if trial.series]
    if len(candidates) != 1:
        known = [f"{trial.agent} seed {trial.seed} ({len(trial.series)})" for trial in results.trials if trial.series]
        raise ChoiceError(
            f"step {step}: expected one trial with a series, {_said(agent, seed)} has {len(candidates)}; give --agent "
            f"and --seed of one of those with networks on the way: {', '.join(known) or 'none'}"
        )
    (trial,) = candidates
    if not 1 <= step <= len(trial.series):
        raise ChoiceError(
            f"step {step}: the series of {trial.agent} seed {trial.seed} has networks 1 to {len(trial.series)}"
        )
    return Chosen(trial, trial.series[step - 1], step)


def _asked(results: Results, agent: str | None, seed: int | None) -> list[TrialRecord]:
    return [trial for trial in results.trials if agent in (None, trial.agent) and seed in (None, trial.seed)]


def _said(agent: str | None, seed: int | None) -> str:
    return f"agent {agent or 'any'}, seed {'any' if seed is None else seed}"


def load_winner(job: Path, problem: ImageProblem, results: Results, widths: Widths) -> nn.Module:
    """A network of a job, with the fine-tuned weights if the job fine-tuned it.

    It is repaired on as many threads as when its trial tested it: what is trained depends on how sums are rounded.
    """
    tuned = fine_tuned(results, widths)
    with torch_threads(results.spec["resources"]["threads_per_trial"]):
        network = problem.prune(widths)
    if tuned is not None:
        load_weights(network, job / "finetune" / tuned.folder / "weights.pt")
    return network
