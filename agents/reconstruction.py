"""The reconstruction heuristic: widths from the least-squares error of every layer, without any search."""

from __future__ import annotations

from typing import Literal

from agents.allocation import allocate
from agents.base import BestSoFar, OnEvaluation
from agents.measured_curves import CurveAgent
from amc_env.problem import Evaluation, PruningProblem


class Reconstruction(CurveAgent):
    """Allocate the widths by a Lagrangian on the error curves, and evaluate that policy.

    The curves are `problem.reconstruction_errors()`, or with `measured` those of `agents.measured_curves`, which the
    evaluations before pay for. Without a budget nothing is removed.
    """

    kind: Literal["reconstruction"] = "reconstruction"
    deterministic = True

    def search(
        self, problem: PruningProblem, *, max_evaluations: int, seed: int, on_evaluation: OnEvaluation
    ) -> Evaluation | None:
        best = BestSoFar(on_evaluation)
        if max_evaluations > 0:
            self.check(problem, max_evaluations)
            best(problem.evaluate_widths(allocate(problem, self.curves(problem, best))))
        return best.evaluation
