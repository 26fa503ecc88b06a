"""Random search at the budget: the control that every learner must beat."""

from __future__ import annotations

from typing import Literal

import numpy as np

from agents.base import Agent, BestSoFar, OnEvaluation
from amc_env.problem import Evaluation, PruningProblem


class RandomSearch(Agent):
    """Ratios drawn uniformly up to the largest each decision allows, each plan brought to the budget."""

    kind: Literal["random"] = "random"

    def search(
        self, problem: PruningProblem, *, max_evaluations: int, seed: int, on_evaluation: OnEvaluation
    ) -> Evaluation | None:
        rng = np.random.default_rng(seed)
        most = problem.ratios(problem.smallest_widths)
        best = BestSoFar(on_evaluation)
        for _ in range(max_evaluations):
            best(problem.evaluate(problem.fit_to_budget(rng.uniform(0.0, most))))
        return best.evaluation
