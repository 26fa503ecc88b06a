"""What every search algorithm is: settings that can be read from a file, and `search`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from amc_env.problem import Evaluation, PruningProblem

OnEvaluation = Callable[[Evaluation], None]


class Agent(BaseModel, ABC):
    """A search algorithm with its settings; the currency in which agents are compared is evaluations.

    Attributes:
        kind: the name under which a spec asks for it.
        name: how the agent is called in tables; its kind unless told. Unique within a job.
        deterministic: the seed changes nothing, so that one trial is enough.
        needs_error_curves: it asks for `problem.reconstruction_errors()`.
        needs_scores: it asks for `problem.removal_scores()`.
        evaluates_many: it asks for several evaluations at once, by `problem.evaluate_many`; they may run in parallel.
        needs_budget: it is for a problem with exactly one budget.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    deterministic: ClassVar[bool] = False
    needs_error_curves: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = False
    evaluates_many: ClassVar[bool] = False

    kind: str
    name: str = Field(default="", pattern=r"^[A-Za-z0-9_-]*$")

    @property
    def label(self) -> str:
        return self.name or self.kind

    @property
    def needs_budget(self) -> bool:
        return False

    def check(self, problem: PruningProblem, max_evaluations: int) -> None:
        """Refuse what cannot work, before anything is spent on it; a job asks before its first trial.

        Raises:
            ValueError: the settings, the budget and the evaluations do not go together.
        """

    def series(self, problem: PruningProblem, evaluations: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
        """The networks on the way of a search that are worth having beside the best, by falling cost; often none.

        Args:
            problem: what was searched.
            evaluations: all of the search, in order.
        """
        return ()

    def series_budget(self, problem: PruningProblem, evaluation: Evaluation) -> float | None:
        """Where each network of the series answers a budget of its own, which this one holds: a fraction of dense."""
        return None

    @abstractmethod
    def search(
        self, problem: PruningProblem, *, max_evaluations: int, seed: int, on_evaluation: OnEvaluation
    ) -> Evaluation | None:
        """Look for the feasible policy of the highest reward.

        The result depends on the problem, the settings, `max_evaluations` and `seed` alone: a trial that was
        interrupted is resumed by running it again, its evaluations answered from the journal.

        Args:
            problem: what is searched.
            max_evaluations: `problem.evaluate` is called at most this often (repeated widths count).
            seed: of all random choices.
            on_evaluation: called with each evaluation, in order, feasible or not.

        Returns:
            The best feasible evaluation, or None if there was none.

        Raises:
            ValueError: as of `check`.
        """


class BestSoFar:
    """Passes each evaluation on and keeps the feasible one of the highest reward (the first of equals)."""

    def __init__(self, on_evaluation: OnEvaluation) -> None:
        self._on_evaluation = on_evaluation
        self.evaluation: Evaluation | None = None
        self.count = 0

    def __call__(self, evaluation: Evaluation) -> None:
        self.count += 1
        if evaluation.feasible and (self.evaluation is None or evaluation.reward > self.evaluation.reward):
            self.evaluation = evaluation
        self._on_evaluation(evaluation)
