"""NetAdapt ([NetAdapt], Yang et al., ECCV 2018, arXiv 1804.03230): one decision is cut at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from agents.base import Agent, BestSoFar, OnEvaluation
from amc_env.problem import Evaluation, PruningProblem, Widths

_ROUNDING = 1e-9  # of sums of reductions, and of resources


class NetAdapt(Agent):
    """Algorithm 1 of [NetAdapt]: from the dense network, each iteration lowers the resource by at least dR.

    In iteration k = 1, 2, ... dR = initial_reduction * dense resource * decay^(k-1) is taken from the resource that
    was achieved, so that overshoot counts. For each decision the smallest cut that meets this target by the cost model
    is proposed; each proposal is scored, and the one picked is where the next iteration starts. The resource is the
    budgeted cost; with several budgets, the largest of cost / limit. Every proposal is an evaluation, one that was
    scored before too. The dense network is the first evaluation, and without a budget the only one.

    If no decision meets a target by itself, each one's largest cut is proposed (the width of the lowest resource), as
    far as it lowers the resource at all. If none does, or an iteration cannot be afforded any more, one evaluation of
    the network so far, brought to the budget by `problem.fit_to_budget`, ends the search.

    Differences from the paper:
        - Weights do not carry over from iteration to iteration: every proposal is pruned from the dense network and
          repaired as the fidelity says. So the same widths always score the same, whichever way led there, and a
          search can be resumed. Fine-tuning before the score, short-term in the paper, is a setting of the evaluation,
          off by default; long-term fine-tuning of the result is not part of the search.
        - What is cut is a decision, all layers that share its channels, with the same channels in each; in the paper
          a layer. Which channels go is the problem's criterion; in the paper the L2 norm.
        - The last target is the budget itself, not below it.
        - Unless `initial_reduction` is given, each dR follows from what is left to remove and the evaluations left, so
          that overshoot and decisions that cannot be cut any more make the later steps finer.
        - Proposals are scored on the search split, the paper's holdout set.

    Attributes:
        initial_reduction: dR of the first iteration as a fraction of the dense resource; None: before each iteration,
            such that the budget is reached in as many as the evaluations left allow, one per decision and iteration.
            The released code has 0.025, which with its decay of 0.96 removes 62.5 % at most.
        decay: factor on dR per iteration.
        select: "accuracy" picks the proposal of the lowest error (the paper); "ratio" that of the least error gained
            per resource saved (the released code, and MobileNetV3, arXiv 1905.02244).
    """

    deterministic = True
    evaluates_many = True

    kind: Literal["netadapt"] = "netadapt"
    initial_reduction: float | None = Field(default=None, gt=0, le=1)
    decay: float = Field(default=0.98, gt=0, le=1)
    select: Literal["accuracy", "ratio"] = "accuracy"

    def check(self, problem: PruningProblem, max_evaluations: int) -> None:
        """Refuse a schedule that cannot reach the budget, or not with so many evaluations."""
        if problem.feasible(problem.dense_widths):
            return
        decisions = len(problem.decisions)
        if self.initial_reduction is None:
            if max_evaluations <= decisions:
                raise ValueError(
                    f"evaluations: expected at least {decisions + 1}, one for the dense network and one for each of "
                    f"{decisions} decisions in one iteration, got {max_evaluations}"
                )
            return
        schedule = f"initial_reduction {self.initial_reduction:g} and decay {self.decay:g}"
        reduction = _to_remove(problem)
        iterations = iterations_to_remove(reduction, self.initial_reduction, self.decay)
        if iterations is None:
            raise ValueError(
                f"{schedule} remove at most {self.initial_reduction / (1 - self.decay):.1%} of the dense resource, but "
                f"the budget needs {reduction:.1%}: take an initial_reduction of more than "
                f"{reduction * (1 - self.decay):.4g} or a decay of more than "
                f"{1 - self.initial_reduction / reduction:.4g}, or leave initial_reduction out"
            )
        needed = iterations * decisions + 1
        if needed > max_evaluations:
            raise ValueError(
                f"{schedule} take up to {iterations} iterations to the budget, with {decisions} decisions {needed} "
                f"evaluations, got {max_evaluations}: allow {needed}, or leave initial_reduction out"
            )

    def search(
        self, problem: PruningProblem, *, max_evaluations: int, seed: int, on_evaluation: OnEvaluation
    ) -> Evaluation | None:
        if max_evaluations < 1:
            return None
        self.check(problem, max_evaluations)
        best = BestSoFar(on_evaluation)
        current = problem.evaluate_widths(problem.dense_widths, probe=True)
        best(current)
        iteration = 0
        while not current.feasible:
            resource = _resource(problem, current.costs)
            left = max_evaluations - best.count
            plans = propose(problem, current.widths, resource - self._reduction(problem, iteration, resource, left))
            last = all(map(problem.feasible, plans))
            if not plans or len(plans) + (not last) > left:
                best(problem.evaluate(problem.fit_to_budget(current.ratios)))
                break
            proposals = []
            for proposal in problem.evaluate_many(plans, probe=True):
                best(proposal)
                proposals.append(proposal)
            current = self._pick(problem, current, proposals)
            iteration += 1
        return best.evaluation

    def series(self, problem: PruningProblem, evaluations: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
        """The network that each iteration picked, from the dense network to the budget, and the best within it."""
        current, picked, proposals = evaluations[0], list[Evaluation](), list[Evaluation]()
        for evaluation in evaluations[1:]:
            if proposals and not _same_iteration(current, proposals[-1], evaluation):
                current = self._pick(problem, current, proposals)
                picked.append(current)
                proposals = []
            proposals.append(evaluation)
        if proposals:
            picked.append(self._pick(problem, current, proposals))
        within = [evaluation for evaluation in evaluations[1:] if evaluation.feasible]
        if within and (best := max(within, key=lambda evaluation: evaluation.reward)) not in picked:
            picked.append(best)
        return tuple(sorted(picked, key=lambda evaluation: -_resource(problem, evaluation.costs)))

    def _reduction(self, problem: PruningProblem, iteration: int, resource: float, left: int) -> float:
        """dR, in the unit of `_resource`, for a network of this resource with so many evaluations left."""
        if self.initial_reduction is not None:
            return self.initial_reduction * _resource(problem, problem.dense_costs) * self.decay**iteration
        iterations = max(left // len(problem.decisions), 1)
        return (resource - 1.0) / sum(self.decay**place for place in range(iterations))

    def _pick(self, problem: PruningProblem, start: Evaluation, proposals: Sequence[Evaluation]) -> Evaluation:
        """The best proposal of an iteration, the first of equals."""
        if self.select == "accuracy":
            return min(proposals, key=_error)
        resource = _resource(problem, start.costs)

        def price(proposal: Evaluation) -> float:
            return (_error(proposal) - _error(start)) / (resource - _resource(problem, proposal.costs))

        return min(proposals, key=price)


def iterations_to_remove(reduction: float, initial: float, decay: float) -> int | None:
    """How many iterations remove this much: the least K with initial * (1 + decay + ... + decay^(K-1)) >= reduction.

    Args:
        reduction: what is to be removed, as a fraction of the dense resource, in (0, 1).
        initial: what the first iteration removes, likewise.
        decay: factor per iteration, in (0, 1].

    Returns:
        The number of iterations; None if no number is enough.
    """
    if decay == 1.0:
        return math.ceil(reduction / initial - _ROUNDING)
    gone = reduction * (1.0 - decay) / initial  # = 1 - decay^K where the sum is exact
    return math.ceil(math.log1p(-gone) / math.log1p(decay - 1.0) - _ROUNDING) if gone < 1.0 else None


def propose(problem: PruningProblem, widths: Widths, target: float) -> list[Widths]:
    """For each decision the smallest cut whose resource is at most the target; of those that there are.

    Args:
        problem: with a budget.
        widths: where the iteration starts.
        target: for the largest of cost / limit; below 1, the budget itself is the target.

    Returns:
        Widths that differ from the start in one decision each. If no decision meets the target by itself, the largest
        cut of each that lowers the resource; none if there are none.
    """
    narrower = [
        [(*widths[:index], choice, *widths[index + 1 :]) for choice in reversed(decision.choices) if choice < width]
        for index, (decision, width) in enumerate(zip(problem.decisions, widths, strict=True))
    ]

    def resource(plan: Widths) -> float:
        return max(problem.cost(budget.cost, plan) / budget.limit for budget in problem.budgets)

    def meets(plan: Widths) -> bool:
        return problem.feasible(plan) if target <= 1.0 + _ROUNDING else resource(plan) <= target + _ROUNDING

    found = [plan for plans in narrower for plan in [next(filter(meets, plans), None)] if plan is not None]
    if found:
        return found
    start = resource(widths)
    return [plan for plans in narrower if plans for plan in [min(plans, key=resource)] if resource(plan) < start]


def _resource(problem: PruningProblem, costs: Mapping[str, float]) -> float:
    """The largest of cost / limit: at most 1 where the budgets hold."""
    return max(costs[budget.cost] / budget.limit for budget in problem.budgets)


def _to_remove(problem: PruningProblem) -> float:
    """What the budget demands, as a fraction of the dense resource."""
    return 1.0 - 1.0 / _resource(problem, problem.dense_costs)


def _same_iteration(start: Evaluation, before: Evaluation, proposal: Evaluation) -> bool:
    """Whether it is a proposal from that start too, for a later decision than the one before."""
    changed = _changed(start, proposal)
    return len(changed) == 1 and changed[0] > _changed(start, before)[0]


def _changed(start: Evaluation, proposal: Evaluation) -> list[int]:
    """The decisions in which two networks differ."""
    pairs = enumerate(zip(start.widths, proposal.widths, strict=True))
    return [index for index, (before, after) in pairs if before != after]


def _error(evaluation: Evaluation) -> float:
    return math.inf if evaluation.error is None else evaluation.error
