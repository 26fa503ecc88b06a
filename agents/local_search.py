"""Local search at the budget: widen and narrow a few decisions, let the others pay by their error curves."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from agents.allocation import allocate
from agents.base import Agent, BestSoFar, OnEvaluation
from agents.moves import draw_factors, move
from amc_env.problem import Evaluation, PruningProblem, Widths

_TRIES = 100  # to find widths that were not evaluated yet


class LocalSearch(Agent):
    """Climb from the allocation of the reconstruction errors (see `agents.reconstruction`).

    A proposal multiplies the widths of one or more decisions by log-normal factors; the others are brought to the
    budget one step at a time where the error curves say it costs least. A better proposal becomes the next start, and
    its factors are tried once more. The step size follows the one-fifth success rule (Rechenberg, 1973).

    Attributes:
        step: standard deviation of the logarithm of the factors at the start, > 0.
        decisions: how many decisions a proposal moves on average, at least 1.
    """

    needs_error_curves = True

    kind: Literal["local_search"] = "local_search"
    step: float = Field(default=0.2, gt=0.0)
    decisions: float = Field(default=2.0, ge=1.0)

    def search(
        self, problem: PruningProblem, *, max_evaluations: int, seed: int, on_evaluation: OnEvaluation
    ) -> Evaluation | None:
        if max_evaluations < 1:
            return None
        rng = np.random.default_rng(seed)
        errors = problem.reconstruction_errors()
        best = BestSoFar(on_evaluation)
        current = problem.evaluate_widths(allocate(problem, errors))
        best(current)
        step, factors, seen = self.step, None, {current.widths}
        while best.count < max_evaluations:
            widths, factors = self._propose(problem, errors, current.widths, step, factors, seen, rng)
            if widths is None:
                break
            seen.add(widths)
            proposal = problem.evaluate_widths(widths)
            best(proposal)
            if proposal.reward > current.reward:
                current, step = proposal, min(step * 1.5, 1.0)
            else:
                factors, step = None, max(step * 1.5**-0.25, 0.02)
        return best.evaluation

    def _propose(
        self,
        problem: PruningProblem,
        errors: tuple[NDArray[np.float64], ...],
        start: Widths,
        step: float,
        factors: dict[int, float] | None,
        seen: set[Widths],
        rng: np.random.Generator,
    ) -> tuple[Widths | None, dict[int, float]]:
        """Feasible widths that were not seen yet, and the factors that made them; None if none was found."""
        for _ in range(_TRIES):
            factors = factors or draw_factors(len(start), self.decisions, step, rng)
            widths = move(problem, errors, start, factors)
            if widths is not None and widths not in seen:
                return widths, factors
            factors, step = None, min(step * 1.2, 1.0)
        return None, {}
