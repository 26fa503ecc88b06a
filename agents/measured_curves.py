"""Error curves as high as measured: the shape of the reconstruction errors, the height of one evaluation each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agents.base import Agent, OnEvaluation
from agents.sensitivity import errors_alone, probe_plans
from amc_env.problem import FloatArray, PruningProblem, Widths

_KEPT = 0.25  # of the units, in the evaluation of one decision alone
_LEAST = 0.01  # of the median height: a cut that does not show in the evaluation is not taken to be free


class CurveAgent(Agent):
    """Begins with the allocation of error curves.

    Attributes:
        measured: take the curves of `measured_curves`, for one evaluation of the dense network and one for each
            decision, in place of the reconstruction errors alone.
    """

    needs_error_curves = True

    measured: bool = False

    @property
    def evaluates_many(self) -> bool:  # type: ignore[override]  # here the settings decide
        """Whether it asks for several evaluations at once."""
        return self.measured

    def check(self, problem: PruningProblem, max_evaluations: int) -> None:
        """Refuse too few evaluations to measure the curves and evaluate one policy."""
        if self.measured and max_evaluations <= self.probes(problem):
            raise ValueError(
                f"evaluations: expected at least {self.probes(problem) + 1}, one for the dense network, one for each "
                f"of {len(problem.decisions)} decisions and one for the first policy, got {max_evaluations}; allow "
                "more, or leave measured out"
            )

    def probes(self, problem: PruningProblem) -> int:
        """Evaluations that the curves cost."""
        return len(problem.decisions) + 1 if self.measured else 0

    def curves(self, problem: PruningProblem, on_evaluation: OnEvaluation) -> tuple[FloatArray, ...]:
        """For each decision the error of each of its choices, as the settings want it."""
        errors = problem.reconstruction_errors()
        return measured_curves(problem, errors, on_evaluation) if self.measured else errors


def measured_curves(
    problem: PruningProblem, errors: Sequence[FloatArray], on_evaluation: OnEvaluation
) -> tuple[FloatArray, ...]:
    """Scale each decision's error curve to what pruning that decision alone does to the network.

    Reconstruction errors are those of the layers that read a decision's channels. How much of such an error arrives at
    the network's outputs differs from layer to layer. So the dense network is evaluated, then each decision alone, at
    the choice nearest to a quarter of its units.

    Args:
        problem: the evaluations may violate its budgets.
        errors: as of `problem.reconstruction_errors`.
        on_evaluation: called with each evaluation, of which there is one more than decisions.

    Returns:
        Curves in units of the problem's error; `errors` if no cut shows in the evaluations.
    """
    places = [
        int(np.abs(np.array(decision.choices) - _KEPT * decision.size).argmin()) for decision in problem.decisions
    ]
    cuts = [[decision.choices[place]] for decision, place in zip(problem.decisions, places, strict=True)]
    plans = [problem.dense_widths, *probe_plans(problem.dense_widths, cuts)]
    scored = []
    for evaluation in problem.evaluate_many(plans, probe=True):
        on_evaluation(evaluation)
        scored.append((evaluation.widths, evaluation.error))
    alone = errors_alone(problem.dense_widths, scored)
    heights = np.array([found[min(found)] - found[max(found)] for found in alone])
    if not (heights > 0.0).any():
        return tuple(errors)
    heights = np.maximum(heights, _LEAST * np.median(heights[heights > 0.0]))
    return tuple(
        curve * (height / curve[place] if curve[place] > 0.0 else 1.0)
        for curve, height, place in zip(errors, heights, places, strict=True)
    )


def curve_sums(problem: PruningProblem, curves: Sequence[FloatArray], plans: Sequence[Widths]) -> FloatArray:
    """What the curves say of plans, each decision's error added up: float64 (plans,)."""
    sums: FloatArray = np.zeros(len(plans))
    for decision, curve, widths in zip(problem.decisions, curves, zip(*plans, strict=True), strict=True):
        sums += curve[np.searchsorted(decision.choices, widths)]
    return sums
