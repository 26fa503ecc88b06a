"""CMA-ES on whole plans: a score per decision, brought to the budget by one scalar."""

from __future__ import annotations

from typing import Literal

import numpy as np
from cmaes import CMA
from pydantic import Field

from agents.allocation import allocate
from agents.base import BestSoFar, OnEvaluation
from agents.measured_curves import CurveAgent
from amc_env.problem import Evaluation, PruningProblem, Widths


class CMAES(CurveAgent):
    """Covariance matrix adaptation (Hansen, The CMA evolution strategy: a tutorial, arXiv 1604.00772).

    A point has one coordinate for each decision, the logarithm of its width over that of the allocation of the
    error curves (see `agents.reconstruction`), which is where the search starts. `problem.fit_to_budget`
    brings each point to the budget, so that every evaluation is feasible. The points of a generation are evaluated at
    once where the job has processors for it.

    Attributes:
        sigma: standard deviation of the first generation, a logarithm of widths, > 0.
        population: points of a generation; None: 4 + 3 ln(decisions), equation 48 there.
    """

    evaluates_many = True

    kind: Literal["cma_es"] = "cma_es"
    sigma: float = Field(default=0.15, gt=0.0)
    population: int | None = Field(default=None, ge=2)

    def search(
        self, problem: PruningProblem, *, max_evaluations: int, seed: int, on_evaluation: OnEvaluation
    ) -> Evaluation | None:
        if max_evaluations < 1:
            return None
        self.check(problem, max_evaluations)
        best = BestSoFar(on_evaluation)
        start = allocate(problem, self.curves(problem, best))
        best(problem.evaluate_widths(start))
        optimizer = CMA(
            mean=np.zeros(len(start)),
            sigma=self.sigma,
            population_size=self.population,
            seed=int(np.random.SeedSequence(seed).generate_state(1)[0]),
        )
        while best.count < max_evaluations and not optimizer.should_stop():
            points = [optimizer.ask() for _ in range(optimizer.population_size)]
            plans = [_plan(problem, start, point) for point in points[: max_evaluations - best.count]]
            values = []
            for point, evaluation in zip(points, problem.evaluate_many(plans), strict=False):
                best(evaluation)
                values.append((point, -evaluation.reward))
            if len(values) == len(points):
                optimizer.tell(values)
        return best.evaluation


def _plan(problem: PruningProblem, start: Widths, point: np.typing.NDArray[np.float64]) -> Widths:
    """Widths of a point, at the budget."""
    kept = np.clip(np.array(start) * np.exp(point), problem.smallest_widths, problem.dense_widths)
    return problem.widths(problem.fit_to_budget(1.0 - kept / np.array(problem.dense_widths)))
