"""The agents in the order of their seeds' rewards, and how their best policies do on the test split."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from agents.registry import AGENTS
from search.results import TrialRecord
from search.statistics import Sample, interquartile_mean


@dataclass(frozen=True)
class Entrant:
    """An agent as its finished trials show it; the order of agents is that of `reward` alone.

    Attributes:
        name, kind: the agent's label and algorithm.
        trials: those finished.
        reward: interquartile mean over all of them of the best reward on the search split, -inf of a trial without a
            feasible policy.
        errors: the objective's on the test split, of the best policies.
        accuracies: their top-1 there, fractions; None if the network does not classify.
    """

    name: str
    kind: str
    trials: tuple[TrialRecord, ...]
    reward: float
    errors: Sample
    accuracies: Sample | None

    @property
    def scores(self) -> Sample:
        """What the comparison is about: the accuracies, or the errors where the network does not classify."""
        return self.errors if self.accuracies is None else self.accuracies

    @property
    def gains(self) -> Sample:
        """The scores such that more is better."""
        return -self.errors if self.accuracies is None else self.accuracies

    @property
    def single(self) -> bool:
        """Whether the seed matters and there is only one."""
        return not self.errors.constant and len(self.errors.values) == 1


def ranked(trials: Iterable[TrialRecord]) -> list[Entrant]:
    """The agents that found a feasible policy, by falling reward on the search split; equals in the given order."""
    groups: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        if trial.status == "finished":
            groups.setdefault(trial.agent, []).append(trial)
    entrants = [_entrant(group) for group in groups.values() if any(trial.best for trial in group)]
    return sorted(entrants, key=lambda entrant: -entrant.reward)


def _entrant(trials: list[TrialRecord]) -> Entrant:
    kind = trials[0].kind
    constant = kind in AGENTS and AGENTS[kind].deterministic
    policies = [trial.best for trial in trials if trial.best is not None]
    accuracies = tuple(policy.test_accuracy for policy in policies if policy.test_accuracy is not None)
    return Entrant(
        name=trials[0].agent,
        kind=kind,
        trials=tuple(trials),
        reward=interquartile_mean([-math.inf if trial.best is None else trial.best.reward for trial in trials]),
        errors=Sample(tuple(policy.test_error for policy in policies), constant),
        accuracies=Sample(accuracies, constant) if accuracies else None,
    )
