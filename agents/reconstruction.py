"""The reconstruction heuristic: widths from the least-squares error of every layer, without any search."""

from __future__ import annotations

from typing import Literal

from agents.allocation import allocate
from agents.base import Agent, BestSoFar, OnEvaluation
from amc_env.problem import Evaluation, PruningProblem


class Reconstruction(Agent):
    """Allocate the widths by a Lagrangian on `problem.reconstruction_errors()`, and evaluate that one policy.

    Without a budget nothing is removed.
    """

    kind: Literal["reconstruction"] = "reconstruction"
    deterministic = True
    needs_error_curves = True

    def search(
        self, problem: PruningProblem, *, max_evaluations: int, seed: int, on_evaluation: OnEvaluation
    ) -> Evaluation | None:
        best = BestSoFar(on_evaluation)
        if max_evaluations > 0:
            best(problem.evaluate_widths(allocate(problem, problem.reconstruction_errors())))
        return best.evaluation
