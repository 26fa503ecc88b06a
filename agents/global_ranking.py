"""Global ranking: one threshold over the scores of all units of all layers, brought to the budget."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from agents.base import Agent, BestSoFar, OnEvaluation
from agents.sensitivity import threshold_widths
from amc_env.problem import Decision, Evaluation, FloatArray, PruningProblem


class GlobalRanking(Agent):
    """One evaluation: of every decision those units stay whose score is above one threshold.

    The scores are `problem.removal_scores()`, by the criterion of the problem. A unit that its order hides behind one
    of a higher score goes right after that one. What the threshold leaves of a decision is rounded to its choices. The
    threshold is the smallest at which the budgets hold, and the decisions that the next smaller one would keep wider
    are then widened as far as the budgets allow (`threshold_widths`). Without a budget nothing is removed.

    "Global" scope of the pruning tools; `uniform`, the same ratio everywhere, is their "local" scope.

    Attributes:
        normalised: divide the scores of each decision by their L2 norm first, as Molchanov et al., arXiv 1611.06440, do
            with those of a layer.
    """

    deterministic: ClassVar[bool] = True
    needs_scores: ClassVar[bool] = True

    kind: Literal["global"] = "global"
    normalised: bool = False

    def search(
        self, problem: PruningProblem, *, max_evaluations: int, seed: int, on_evaluation: OnEvaluation
    ) -> Evaluation | None:
        best = BestSoFar(on_evaluation)
        if max_evaluations > 0:
            widths = problem.dense_widths
            if not problem.feasible(widths):
                scores = [self._scaled(own) for own in problem.removal_scores()]
                curves = [threshold_curve(each, own) for each, own in zip(problem.decisions, scores, strict=True)]
                widths = threshold_widths(problem, curves)
            best(problem.evaluate_widths(widths))
        return best.evaluation

    def _scaled(self, scores: FloatArray) -> FloatArray:
        norm = float(np.linalg.norm(scores))
        return scores / norm if self.normalised and norm > 0.0 else scores


def threshold_curve(decision: Decision, scores: FloatArray) -> FloatArray:
    """The threshold from which on each choice is as wide as the decision stays, float64 (choices,), never rising.

    Args:
        decision: whose choices they are.
        scores: of its units, from the last to the first removed.
    """
    due = np.maximum.accumulate(scores[::-1])[::-1]
    choices = np.array(decision.choices)
    nearest = -(-(choices[1:] + choices[:-1]) // 2)  # with so many units left or more it is the wider of two choices
    return np.append(due[nearest - 1], -np.inf)
