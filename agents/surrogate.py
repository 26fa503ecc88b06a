"""Local search whose moves a Gaussian process chooses: many are thought of, the most promising one is evaluated."""

from __future__ import annotations

from statistics import NormalDist
from typing import Literal

import numpy as np
from pydantic import Field

from agents.allocation import allocate
from agents.base import BestSoFar, OnEvaluation
from agents.gaussian_process import GaussianProcess
from agents.measured_curves import CurveAgent, curve_sums
from agents.moves import Mover, draw_factors
from amc_env.problem import Evaluation, FloatArray, PruningProblem, Widths

_NORMAL = NormalDist()
_STEPS = (0.05, 0.1, 0.2, 0.4)


class SurrogateSearch(CurveAgent):
    """Bayesian optimisation at the budget, near the best policies so far.

    Starts from the allocation of the error curves (see `agents.reconstruction`) and some random moves from
    it (see `agents.moves`). From then on a Gaussian process is fitted to all rewards, moves of several sizes from the
    best policies are proposed, and the one of the largest expected improvement is evaluated (Jones et al., Efficient
    global optimization of expensive black-box functions, 1998). That proposals stay near the best is what makes it
    work in tens of dimensions (Eriksson et al., TuRBO, arXiv 1910.01739).

    With `measured`, the process is fitted to what a line over the sum of the measured curves leaves of the rewards. On
    ResNet-56 at half the MACs that line alone, after 20 policies, orders those of other searches with a rank
    correlation of 0.8, the process without it of 0.3.

    Attributes:
        candidates: moves of which one is evaluated.
        first: random moves before the first fit.
        parents: the proposals start from so many of the best policies.
        decisions: how many decisions a move changes on average, the rebalanced ones not counted.
    """

    kind: Literal["surrogate"] = "surrogate"
    candidates: int = Field(default=100, ge=1)
    first: int = Field(default=8, ge=1)
    parents: int = Field(default=3, ge=1)
    decisions: float = Field(default=3.0, ge=1.0)

    def search(
        self, problem: PruningProblem, *, max_evaluations: int, seed: int, on_evaluation: OnEvaluation
    ) -> Evaluation | None:
        if max_evaluations < 1:
            return None
        rng = np.random.default_rng(seed)
        self.check(problem, max_evaluations)
        best = BestSoFar(on_evaluation)
        errors = self.curves(problem, best)
        mover = Mover(problem, errors)
        known: dict[Widths, float] = {}
        widths: Widths | None = allocate(problem, errors)
        while widths is not None and best.count < max_evaluations:
            evaluation = problem.evaluate_widths(widths)
            best(evaluation)
            known[widths] = evaluation.reward
            proposals = self._propose(mover, known, rng)
            widths = self._most_promising(problem, errors, known, proposals)
        return best.evaluation

    def _propose(self, mover: Mover, known: dict[Widths, float], rng: np.random.Generator) -> list[Widths]:
        """New feasible widths near the best; one while there is nothing to choose by."""
        parents = sorted(known, key=lambda widths: -known[widths])[: self.parents]
        wanted = self.candidates if len(known) > self.first else 1
        proposals: dict[Widths, None] = {}
        for _ in range(10 * self.candidates):
            start = parents[int(rng.integers(len(parents)))]
            factors = draw_factors(len(start), self.decisions, float(rng.choice(_STEPS)), rng)
            widths = mover.move(start, factors)
            if widths is not None and widths not in known:
                proposals[widths] = None
            if len(proposals) == wanted:
                break
        return list(proposals)

    def _most_promising(
        self,
        problem: PruningProblem,
        errors: tuple[FloatArray, ...],
        known: dict[Widths, float],
        proposals: list[Widths],
    ) -> Widths | None:
        if len(proposals) < 2:
            return proposals[0] if proposals else None
        sizes = np.array(problem.dense_widths, dtype=np.float64)
        rewards = np.array(list(known.values()))
        # what is far below the best matters only as "bad"
        rewards = np.maximum(rewards, np.median(rewards) - 2 * (rewards.max() - np.median(rewards)))
        if self.measured:
            sums, ahead = (curve_sums(problem, errors, plans) for plans in (list(known), proposals))
            slope = min(np.cov(sums, rewards)[0, 1] / max(np.var(sums, ddof=1), 1e-300), 0.0)
        else:
            sums, ahead, slope = np.zeros(len(known)), np.zeros(len(proposals)), 0.0
        process = GaussianProcess.fit(np.log(np.array(list(known)) / sizes), rewards - slope * sums)
        mean, deviation = process.predict(np.log(np.array(proposals) / sizes))
        return proposals[int(np.argmax(_expected_improvement(mean + slope * ahead, deviation, rewards.max())))]


def _expected_improvement(mean: FloatArray, deviation: FloatArray, best: float) -> FloatArray:
    """E[max(0, y - best)] of normal y, with each mean and deviation."""
    deviation = np.maximum(deviation, 1e-12)
    above = (mean - best) / deviation
    chance, density = (np.array(list(map(function, above))) for function in (_NORMAL.cdf, _NORMAL.pdf))
    expected: FloatArray = (mean - best) * chance + deviation * density
    return expected
