"""Local search at the budget: widen and narrow a few decisions, let the others pay by their error curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from agents.allocation import allocate
from agents.base import BestSoFar, OnEvaluation
from agents.measured_curves import CurveAgent
from agents.moves import Mover, draw_factors
from amc_env.problem import Evaluation, PruningProblem, Widths

_TRIES = 100  # to find widths that were not evaluated yet


class LocalSearch(CurveAgent):
    """Climb from the allocation of the error curves (see `agents.reconstruction`).

    A proposal multiplies the widths of one or more decisions by log-normal factors; the others are brought to the
    budget one step at a time where the error curves say it costs least. A better proposal becomes the next start, and
    its factors are tried once more. The step size follows the one-fifth success rule (Rechenberg, 1973).

    Attributes:
        step: standard deviation of the logarithm of the factors at the start, > 0.
        decisions: how many decisions a proposal moves on average, at least 1.
    """

    kind: Literal["local_search"] = "local_search"
    step: float = Field(default=0.2, gt=0.0)
    decisions: float = Field(default=2.0, ge=1.0)

    def search(
        self, problem: PruningProblem, *, max_evaluations: int, seed: int, on_evaluation: OnEvaluation
    ) -> Evaluation | None:
        if max_evaluations < 1:
            return None
        self.check(problem, max_evaluations)
        best = BestSoFar(on_evaluation)
        climb = Climb(problem, self.curves(problem, best), np.random.default_rng(seed), self.step, self.decisions)
        while best.count < max_evaluations and (widths := climb.ask()) is not None:
            evaluation = problem.evaluate_widths(widths)
            best(evaluation)
            climb.tell(evaluation)
        return best.evaluation


class Climb:
    """Local search that is asked for widths and told how they did; `LocalSearch` says how it moves.

    Args:
        problem: what is climbed, under its budgets.
        errors: the error of each choice of each decision, as of `problem.reconstruction_errors`.
        rng: of the proposals.
        step, decisions: as of `LocalSearch`.
    """

    def __init__(
        self,
        problem: PruningProblem,
        errors: Sequence[NDArray[np.float64]],
        rng: np.random.Generator,
        step: float = 0.2,
        decisions: float = 2.0,
    ) -> None:
        self._mover, self._rng = Mover(problem, errors), rng
        self._step, self._decisions = step, decisions
        #: the first widths that it gives
        self.start = allocate(problem, errors)
        self._current: Evaluation | None = None
        self._factors: dict[int, float] | None = None
        self._seen = {self.start}

    def ask(self) -> Widths | None:
        """Feasible widths that were not given yet; None if none was found."""
        return self.start if self._current is None else self._propose(self._current.widths)

    def tell(self, evaluation: Evaluation) -> None:
        """How the widths did that were asked for last, or what a constraint made of them."""
        self._seen.add(evaluation.widths)
        if self._current is None:
            self._current = evaluation
        elif evaluation.reward > self._current.reward:
            self._current, self._step = evaluation, min(self._step * 1.5, 1.0)
        else:
            self._factors, self._step = None, max(self._step * 1.5**-0.25, 0.02)

    def _propose(self, start: Widths) -> Widths | None:
        step = self._step
        for _ in range(_TRIES):
            self._factors = self._factors or draw_factors(len(start), self._decisions, step, self._rng)
            widths = self._mover.move(start, self._factors)
            if widths is not None and widths not in self._seen:
                self._seen.add(widths)
                return widths
            self._factors, step = None, min(step * 1.2, 1.0)
        return None
