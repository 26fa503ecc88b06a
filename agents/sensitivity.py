"""Sensitivity analysis: the error of each decision pruned alone, and the widths that one threshold gives all.

The functions below are the analysis by itself; `amc sensitivity` and the report draw what they return.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from agents.base import Agent, BestSoFar, OnEvaluation
from amc_env.problem import Decision, Evaluation, FloatArray, PruningProblem, Widths

_MOST_RATIOS = 9


class Sensitivity(Agent):
    """Prune each decision alone at several ratios, then all to the widths where their curves cross one threshold.

    The dense network is the first evaluation; then comes each decision at each ratio, rounded to its choices, each
    width once; last the answer. A curve is the running maximum of the error over falling width, linear between
    what was measured; below the narrowest measured width its last segment goes on. The threshold on the error is the
    smallest of all values of the curves at which the budgets hold, found by bisection; a cost that is not monotone may
    hide a smaller one. What is left of the budgets is then spent, first on decisions that the next smaller threshold
    would keep wider, then step by step on that of the largest error, until no step of any decision fits. Without a
    budget nothing is removed.

    Differences from the paper (Li et al., Pruning filters for efficient ConvNets, ICLR 2017, section 3.2, which reads
    the ratios off the curves by eye):
        - What is pruned is a decision, all layers that share its channels; in the paper a layer.
        - The threshold follows from the budget. Bisection on a threshold over a monotone envelope is how FastNAS
          (NVIDIA Model Optimizer) does it; PaddleSlim bisects without the envelope and without the dense network as a
          point of the curve.
        - Pruned networks are repaired as the fidelity says before they are scored.

    Attributes:
        ratios: at which each decision is pruned alone; None: as many as the evaluations allow, at most nine, evenly
            spaced up to 0.9.
    """

    deterministic = True
    evaluates_many = True

    kind: Literal["sensitivity"] = "sensitivity"
    ratios: tuple[Annotated[float, Field(ge=0, lt=1)], ...] | None = Field(default=None, min_length=1)

    def check(self, problem: PruningProblem, max_evaluations: int) -> None:
        """Refuse too few evaluations, and ratios at which a decision stays as it is."""
        if problem.feasible(problem.dense_widths):
            return
        probes = self._probes(problem, max_evaluations)
        for decision, widths in zip(problem.decisions, probes, strict=True):
            if not widths and len(decision.choices) > 1:
                least = 1.0 - (decision.size + decision.choices[-2]) / (2 * decision.size)
                raise ValueError(
                    f"ratios: none of {list(self.ratios or ())} narrows {decision.name!r}, whose widths are "
                    f"{', '.join(map(str, decision.choices))}; add one of more than {least:.4g}"
                )
        count = sum(map(len, probes))
        if count + 2 > max_evaluations:
            raise ValueError(
                f"evaluations: expected at least {count + 2}, {count} for {len(problem.decisions)} decisions alone, "
                f"one for the dense network and one for the answer, got {max_evaluations}"
                + ("; allow more, or take fewer ratios" if self.ratios is not None else "")
            )

    def search(
        self, problem: PruningProblem, *, max_evaluations: int, seed: int, on_evaluation: OnEvaluation
    ) -> Evaluation | None:
        if max_evaluations < 1:
            return None
        self.check(problem, max_evaluations)
        best = BestSoFar(on_evaluation)
        scored = [problem.evaluate_widths(problem.dense_widths, probe=True)]
        best(scored[0])
        if scored[0].feasible:
            return best.evaluation
        plans = probe_plans(problem.dense_widths, self._probes(problem, max_evaluations))
        for evaluation in problem.evaluate_many(plans, probe=True):
            best(evaluation)
            scored.append(evaluation)
        knots = errors_alone(problem.dense_widths, ((evaluation.widths, evaluation.error) for evaluation in scored))
        curves = [error_curve(decision, found) for decision, found in zip(problem.decisions, knots, strict=True)]
        best(problem.evaluate_widths(slack_spent(problem, threshold_widths(problem, curves), curves)))
        return best.evaluation

    def _probes(self, problem: PruningProblem, max_evaluations: int) -> list[tuple[int, ...]]:
        """The widths at which each decision is measured alone."""
        if self.ratios is not None:
            return [probe_widths(decision, self.ratios) for decision in problem.decisions]
        for count in range(_MOST_RATIOS, 0, -1):
            ratios = [round(0.9 * place / count, 12) for place in range(1, count + 1)]
            probes = [probe_widths(decision, ratios) for decision in problem.decisions]
            if sum(map(len, probes)) + 2 <= max_evaluations:
                break
        return probes


def probe_widths(decision: Decision, ratios: Iterable[float]) -> tuple[int, ...]:
    """The widths below the dense one that these ratios mean, by falling width, each once."""
    return tuple(sorted({decision.kept(ratio) for ratio in ratios} - {decision.size}, reverse=True))


def changed(widths: Widths, index: int, width: int) -> Widths:
    """The same with one decision at another width."""
    return (*widths[:index], width, *widths[index + 1 :])


def probe_plans(dense: Widths, probes: Sequence[Sequence[int]]) -> list[Widths]:
    """The dense network with one decision at one of its probed widths, decision by decision."""
    return [changed(dense, index, width) for index, widths in enumerate(probes) for width in widths]


def errors_alone(dense: Widths, scored: Iterable[tuple[Widths, float | None]]) -> list[dict[int, float]]:
    """Of all that was scored, what differs from the dense network in one decision at most.

    Returns:
        For each decision width -> error, by falling width, with the dense network's own.
    """
    found: list[dict[int, float]] = [{} for _ in dense]
    for widths, error in scored:
        pruned = [index for index, width in enumerate(widths) if width != dense[index]]
        if error is None or len(pruned) > 1:
            continue
        for index in pruned or range(len(dense)):
            found[index][widths[index]] = error
    return [dict(sorted(errors.items(), reverse=True)) for errors in found]


def envelope(errors: Mapping[int, float]) -> dict[int, float]:
    """The running maximum over falling width: a narrower network is never taken to be better."""
    widths = sorted(errors, reverse=True)
    return dict(zip(widths, np.maximum.accumulate([errors[width] for width in widths]).tolist(), strict=True))


def error_curve(decision: Decision, errors: Mapping[int, float]) -> FloatArray:
    """The envelope at all choices, float64 (choices,), ascending in width and so never rising.

    Args:
        decision: whose choices are asked for.
        errors: width -> error as measured, among them the dense width.
    """
    widths, heights = (np.array(column)[::-1] for column in zip(*envelope(errors).items(), strict=True))
    choices = np.array(decision.choices)
    curve: FloatArray = np.interp(choices, widths, heights)
    if len(widths) > 1:
        slope = (heights[0] - heights[1]) / (widths[1] - widths[0])
        curve += slope * np.maximum(widths[0] - choices, 0)
    return curve


def threshold_widths(problem: PruningProblem, curves: Sequence[FloatArray]) -> Widths:
    """Feasible widths of one threshold, the slack spent on the decisions that the next smaller one keeps wider.

    Args:
        problem: with a budget that the dense network violates.
        curves: for each decision the error of each of its choices, never rising with the width.
    """
    found, most = threshold_bracket(problem, curves)
    while (wider := _widened(problem, found, most)) != found:
        found = wider
    return found


def slack_spent(problem: PruningProblem, widths: Widths, curves: Sequence[FloatArray]) -> Widths:
    """Feasible widths made wider, each time the decision of the largest error by its next choice, until none fits.

    Args:
        problem: with the budgets.
        widths: feasible.
        curves: as of `threshold_widths`.
    """

    def error(index: int) -> float:
        return float(curves[index][problem.decisions[index].choices.index(widths[index])])

    before = None
    while widths != before:  # where a cost is not monotone, what did not fit may fit later
        before = widths
        growing = set(range(len(widths)))
        while growing:
            index = max(growing, key=lambda index: (error(index), -index))
            choices = problem.decisions[index].choices
            plans = (changed(widths, index, choice) for choice in choices if choice > widths[index])
            wider = next(filter(problem.feasible, plans), None)
            if wider is None:
                growing.remove(index)
            else:
                widths = wider
    return widths


def threshold_bracket(problem: PruningProblem, curves: Sequence[FloatArray]) -> tuple[Widths, Widths]:
    """The widths of two neighbouring thresholds: the budgets hold at the first, not at the second.

    The widths of a threshold are, of each decision, the smallest whose error is at most that. Below all thresholds
    lies the dense network. Arguments as of `threshold_widths`.
    """
    thresholds = np.unique(np.concatenate(curves))

    def widths(place: int) -> Widths:
        if place < 0:
            return problem.dense_widths
        return tuple(
            decision.choices[int(np.argmax(np.append(curve[:-1] <= thresholds[place], True)))]
            for decision, curve in zip(problem.decisions, curves, strict=True)
        )

    over, within = -1, len(thresholds) - 1  # at the largest all are as narrow as they may be
    while within - over > 1:
        middle = (over + within) // 2
        if problem.feasible(widths(middle)):
            within = middle
        else:
            over = middle
    return widths(within), widths(over)


def _widened(problem: PruningProblem, widths: Widths, most: Widths) -> Widths:
    """Each decision in turn as wide as the budgets allow, at most as in `most`."""
    for index, decision in enumerate(problem.decisions):
        options = [choice for choice in reversed(decision.choices) if widths[index] < choice <= most[index]]
        plans = [changed(widths, index, choice) for choice in options]
        widths = next(filter(problem.feasible, plans), widths)
    return widths
