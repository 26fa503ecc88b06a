"""Several budgets on the one cost that a problem limits: its view under each, and the best network that holds each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from amc_env.problem import Evaluation, PruningProblem


def budget_fraction(problem: PruningProblem) -> float:
    """The limit of the problem's one budget as a fraction of the dense cost, at most 1.

    Raises:
        ValueError: the problem has no budget, or several.
    """
    if len(problem.budgets) != 1:
        names = ", ".join(budget.cost for budget in problem.budgets) or "none"
        raise ValueError(
            f"budgets: expected a problem with one budget, of whose cost these are fractions, got {names}; state one "
            f"budget, or leave out `budgets`"
        )
    (budget,) = problem.budgets
    return min(budget.limit / problem.dense_costs[budget.cost], 1.0)


def budget_views(problem: PruningProblem, fractions: Sequence[float]) -> dict[float, PruningProblem]:
    """The problem under each of these budgets and under its own, as a view that shares its costs and scores.

    Args:
        problem: with one budget.
        fractions: of the dense cost which that budget limits, each in (0, 1].

    Returns:
        Fraction -> view, by falling fraction; the problem itself at its own.

    Raises:
        InfeasibleBudgetError: no policy meets one of them.
        ValueError: a fraction lies outside (0, 1], or the problem has not exactly one budget.
    """
    own = budget_fraction(problem)
    cost = problem.budgets[0].cost
    for fraction in fractions:
        if not 0.0 < fraction <= 1.0:
            raise ValueError(f"budgets: expected fractions of the dense cost in (0, 1], got {fraction}")
    dense = problem.dense_costs[cost]
    views = {f: problem.with_budget({cost: f * dense}) for f in fractions if not math.isclose(f, own)}
    return dict(sorted((views | {own: problem}).items(), reverse=True))


def front(
    problem: PruningProblem, fractions: Sequence[float], evaluations: Sequence[Evaluation]
) -> tuple[Evaluation, ...]:
    """For each budget the best evaluation that holds it, by falling cost; the best of several budgets stands once.

    Args:
        problem, fractions: as of `budget_views`, whose errors it raises.
        evaluations: of the problem; those not scored, or stopped early, are passed over.
    """
    scored = [each for each in evaluations if each.error is not None and not each.stopped_early]
    best: list[Evaluation] = []
    for view in budget_views(problem, fractions).values():
        held = [each for each in scored if view.violation(each.costs) == 0.0]
        if held and (winner := max(held, key=lambda each: view.judge(each).reward)) not in best:
            best.append(winner)
    return tuple(best)
