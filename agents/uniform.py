"""The uniform baseline: the same ratio everywhere, as small as the budget allows."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from agents.base import Agent, BestSoFar, OnEvaluation
from amc_env.problem import Evaluation, PruningProblem


class Uniform(Agent):
    """One evaluation: every decision at the same ratio, brought to the budget ("uniform" in [AMC] table 2)."""

    deterministic: ClassVar[bool] = True
    kind: Literal["uniform"] = "uniform"

    def search(
        self, problem: PruningProblem, *, max_evaluations: int, seed: int, on_evaluation: OnEvaluation
    ) -> Evaluation | None:
        best = BestSoFar(on_evaluation)
        if max_evaluations > 0:
            best(problem.evaluate(problem.fit_to_budget(np.full(len(problem.decisions), 0.5))))
        return best.evaluation
