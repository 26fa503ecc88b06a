"""The pruning problem: decisions, costs, budgets and the score of a policy; agents see nothing else."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amc_env.budget import Budget, InfeasibleBudgetError, parse_limit
from amc_env.cost_map import CostMap, LayeredCost, QuadraticCost
from amc_env.policy import PruningPolicy
from hw.cost import COST_MODELS, CostModel, IntArray
from hw.layers import LayerShape

FloatArray = NDArray[np.float64]
Widths = tuple[int, ...]

#: fractions removed in [0, 1): a vector in the order of the decisions, or by name as in a `PruningPolicy`
Plan = ArrayLike | Mapping[str, float]
RewardForm = Literal["error", "error_macs", "error_weights"]


@dataclass(frozen=True)
class Decision:
    """One ratio to choose: units of which some are removed, interchangeable channels or a layer's single weights.

    Attributes:
        name: the layer that has the weights, or first produces the channels.
        size: units in the dense network.
        choices: the counts of units that may be kept, ascending; the last is `size`.
        layer: shape of that layer (the embedding describes it).
    """

    name: str
    size: int
    choices: tuple[int, ...]
    layer: LayerShape

    def __post_init__(self) -> None:
        ascending = list(self.choices) == sorted(set(self.choices))
        if not self.choices or not ascending or self.choices[0] < 1 or self.choices[-1] != self.size:
            raise ValueError(
                f"decision {self.name!r}: choices must ascend from at least 1 to its size {self.size}, "
                f"got {self.choices}"
            )

    @cached_property
    def midpoints(self) -> FloatArray:
        """Halfway from each choice to the next, float64 (choices - 1,)."""
        steps = np.array(self.choices, dtype=np.float64)
        return (steps[1:] + steps[:-1]) / 2

    def kept(self, ratio: float) -> int:
        """Units kept at a ratio removed in [0, 1): the choice nearest to size * (1 - ratio), the larger on a tie."""
        return self.choices[int(np.searchsorted(self.midpoints, self.size * (1.0 - ratio), side="right"))]

    def ratio(self, kept: int) -> float:
        """The ratio removed when `kept` units stay."""
        return 1.0 - kept / self.size


@dataclass(frozen=True)
class Score:
    """How well a network does on a split.

    Attributes:
        error: mean of the objective's error over the images, finite; lower is better. The reward is made of it.
        accuracy: top-1 in [0, 1]; None where the network does not classify.
        fraction: share of the images that were looked at, in (0, 1]; below 1 the plan could no longer become the
            best, and error and accuracy are those of the images seen.
        correct: of each image in the split's order whether it is classified rightly, as of `numpy.packbits`; None where
            the network does not classify or did not run on all images.
    """

    error: float
    accuracy: float | None
    fraction: float = 1.0
    correct: bytes | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not math.isfinite(self.error):
            raise ValueError(f"error: expected a finite number, got {self.error}")
        if not 0.0 < self.fraction <= 1.0:
            raise ValueError(f"fraction: expected a share in (0, 1], got {self.fraction}")


@dataclass(frozen=True)
class Evaluation:
    """One scored policy: the currency in which agents are compared.

    Attributes:
        widths: units kept by each decision, after rounding.
        ratios: the ratios that these widths mean, in [0, 1).
        costs: cost name -> cost of the rounded network.
        violation: 0 if all budgets hold, else the largest excess as a fraction of its limit.
        error: the objective's mean on the search split, lower is better; None if a budget is violated and the policy
            was not probed (see `PruningProblem.evaluate_widths`).
        accuracy: top-1 on the search split, in [0, 1]; None if not scored, or if the network does not classify.
        reward: the problem's reward; -inf if a budget is violated.
        fraction: share of the search split that was looked at; below 1: stopped early, for it cannot become the best.
    """

    widths: Widths
    ratios: tuple[float, ...]
    costs: Mapping[str, float]
    violation: float
    error: float | None
    accuracy: float | None
    reward: float
    fraction: float = 1.0

    @property
    def feasible(self) -> bool:
        return self.violation == 0.0

    @property
    def stopped_early(self) -> bool:
        return self.fraction < 1.0


class PruningProblem(ABC):
    """Decisions in forward order, cost models, budgets and a reward. Immutable; a deep copy is the problem itself.

    Rewards, with the error on the search split, 1 - accuracy in [AMC] section 3.2:
        "error": -error, the resource-constrained form.
        "error_macs": -error * ln(MACs), "error_weights": -error * ln(number of weights): the forms that also
        reward a smaller network, for problems without a budget.

    Attributes:
        worst_error: the largest error that a network can have; inf if the objective has no bound.

    Args:
        decisions: what is decided, in forward order.
        layers: shapes of all layers of the dense network, in forward order.
        cost_map: how the costs follow from the widths.
        budget: cost name -> limit, a number in the cost's unit or "50%" of the dense cost. Several may hold at once.
        reward: the form of the reward.
        cost_models: further costs that a budget may name, such as a latency table. "macs" and "size" are always
            counted, others that `hw` knows if a budget names them.
        feature_cost: the cost of which the embedding tells the decision's share, what was reduced and what rests;
            "macs" in [AMC], which calls them FLOPs.

    Raises:
        InfeasibleBudgetError: no policy meets a budget.
        ValueError: a budget names an unknown cost or has an unusable limit.
    """

    worst_error: float = 1.0

    def __init__(
        self,
        decisions: Sequence[Decision],
        layers: Sequence[LayerShape],
        cost_map: CostMap,
        *,
        budget: Mapping[str, float | str],
        reward: RewardForm = "error",
        cost_models: Sequence[CostModel] = (),
        feature_cost: str = "macs",
    ) -> None:
        if not decisions:
            raise ValueError("a pruning problem needs at least one decision: no channels of the network can be removed")
        if reward not in ("error", "error_macs", "error_weights"):
            raise ValueError(f"reward: expected 'error', 'error_macs' or 'error_weights', got {reward!r}")
        self.decisions = tuple(decisions)
        self.layers = tuple(layers)
        self.cost_map = cost_map
        self.reward_form: RewardForm = reward
        counted = [make() for name, make in COST_MODELS.items() if name in ("macs", "size", *budget)]
        self.cost_models: dict[str, CostModel] = {model.name: model for model in (*counted, *cost_models)}
        if feature_cost not in self.cost_models:
            raise ValueError(f"feature_cost: expected one of {', '.join(self.cost_models)}, got {feature_cost!r}")
        self.feature_cost = feature_cost
        self._cost_functions = {
            name: cost_map.cost_function(model, self.layers) for name, model in self.cost_models.items()
        }
        self.dense_widths: Widths = tuple(decision.size for decision in self.decisions)
        self.smallest_widths: Widths = tuple(decision.choices[0] for decision in self.decisions)
        self.dense_costs = self.costs(self.dense_widths)
        self.budgets = self._parse_budgets(budget)
        #: what was scored already. A trial that resumes fills it from its journal.
        self.memo: MutableMapping[Widths, Score] = {}
        #: scores several policies at once, in their order, wherever there are processors for it; None: one by one here
        self.scorer: Callable[[Sequence[Widths]], Iterable[Score]] | None = None
        #: budgets -> the best reward so far of those that hold them; the views of `with_budget` share it
        self.best_rewards: dict[tuple[Budget, ...], float] = {self.budgets: -math.inf}

    def __deepcopy__(self, memo: dict[int, Any]) -> PruningProblem:
        return self

    @abstractmethod
    def score(self, widths: Widths) -> Score:
        """How well the network of these widths does on the search split; deterministic."""

    def reconstruction_errors(self) -> tuple[FloatArray, ...]:
        """What each choice of each decision costs by itself, all else dense: float64 (choices,), falling, per decision.

        An estimate that takes no evaluation, comparable between decisions; agents may start from it.

        Raises:
            NotImplementedError: the problem has none.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no reconstruction errors; take an agent that does not start from them"
        )

    def removal_scores(self) -> tuple[FloatArray, ...]:
        """How much each unit of each decision matters by the problem's criterion, float64 (units,) per decision.

        They stand in the order of removal, from the last to the first removed, and are comparable between decisions as
        far as the criterion is.

        Raises:
            NotImplementedError: the problem has none.
            ValueError: its criterion has none.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no scores of units; take an agent that does not rank them"
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(decision.name for decision in self.decisions)

    def widths(self, plan: Plan) -> Widths:
        """Units kept by each decision at these ratios removed, rounded to the allowed counts.

        Raises:
            ValueError: not one ratio in [0, 1) for each decision.
        """
        return self._rounded(self._vector(plan))

    def _rounded(self, ratios: FloatArray) -> Widths:
        """As `Decision.kept` for all decisions at once."""
        choices, midpoints = self._choices
        wanted = np.array(self.dense_widths) * (1.0 - ratios)
        places = (midpoints <= wanted[:, None]).sum(axis=1)
        return tuple(choices[np.arange(len(places)), places].tolist())

    @cached_property
    def _choices(self) -> tuple[IntArray, FloatArray]:
        """Choices and what lies between them, (decisions, most choices); rows are filled up with what is never met."""
        most = max(len(decision.choices) for decision in self.decisions)
        choices = np.zeros((len(self.decisions), most), dtype=np.int64)
        midpoints = np.full((len(self.decisions), most - 1), np.inf)
        for row, decision in enumerate(self.decisions):
            choices[row, : len(decision.choices)] = decision.choices
            midpoints[row, : len(decision.choices) - 1] = decision.midpoints
        return choices, midpoints

    def _vector(self, plan: Plan) -> FloatArray:
        """The plan as float64 (decisions,), checked."""
        if isinstance(plan, Mapping):
            if set(plan) != set(self.names):
                other = sorted(set(plan) ^ set(self.names))
                raise ValueError(f"policy: expected a ratio for each of {', '.join(self.names)}; differs in {other}")
            plan = [plan[name] for name in self.names]
        values = np.asarray(plan, dtype=np.float64)
        if values.shape != (len(self.decisions),):
            raise ValueError(
                f"ratios: expected one for each of {len(self.decisions)} decisions, got shape {values.shape}"
            )
        if not ((values >= 0.0) & (values < 1.0)).all():
            raise ValueError(f"ratios: expected fractions removed in [0, 1), got {values.tolist()}")
        return values

    def ratios(self, widths: Sequence[int]) -> FloatArray:
        """The ratios that these widths mean, float64 (decisions,)."""
        return 1.0 - np.asarray(widths, dtype=np.float64) / np.asarray(self.dense_widths, dtype=np.float64)

    def policy(self, plan: Plan) -> PruningPolicy:
        """The policy that names each decision's ratio."""
        return PruningPolicy(dict(zip(self.names, self._vector(plan).tolist(), strict=True)))

    def cost(self, name: str, widths: Sequence[int] | IntArray) -> float:
        """One cost of the network of these widths, in the unit of its model."""
        return self._cost_functions[name](widths)

    def costs_of_plans(self, name: str, plans: IntArray) -> FloatArray:
        """One cost of several networks: widths int64 (plans, decisions) -> float64 (plans,)."""
        cost = self._cost_functions[name]
        if isinstance(cost, QuadraticCost | LayeredCost):
            return cost.many(plans)
        return np.array([cost(widths) for widths in plans], dtype=np.float64)

    def costs(self, widths: Sequence[int] | IntArray) -> dict[str, float]:
        """All costs of the network of these widths."""
        return {name: function(widths) for name, function in self._cost_functions.items()}

    def violation(self, costs: Mapping[str, float]) -> float:
        """0 if all budgets hold, else the largest excess as a fraction of its limit."""
        return max((budget.violation(costs[budget.cost]) for budget in self.budgets), default=0.0)

    def feasible(self, widths: Sequence[int] | IntArray) -> bool:
        """Whether all budgets hold at these widths."""
        return all(self._cost_functions[budget.cost](widths) <= budget.limit for budget in self.budgets)

    def evaluate(self, plan: Plan) -> Evaluation:
        """Round, count the costs and, if all budgets hold, score on the search split. The same widths score once."""
        return self.evaluate_widths(self.widths(plan))

    def evaluate_widths(self, widths: Widths, *, probe: bool = False) -> Evaluation:
        """As `evaluate`, for units kept.

        Args:
            widths: units kept by each decision.
            probe: score the network although it violates a budget; its reward stays -inf. Heuristics that come to
                the budget from the dense network look at such networks on their way, and pay an evaluation for each.
        """
        costs = self.costs(widths)
        violation = self.violation(costs)
        ratios = tuple(self.ratios(widths).tolist())
        if violation > 0.0 and not probe:
            return Evaluation(widths, ratios, costs, violation, error=None, accuracy=None, reward=-math.inf)
        if widths not in self.memo:
            self.memo[widths] = self.score(widths)
        score = self.memo[widths]
        reward = -score.error * self._error_factor(costs)
        if score.fraction == 1.0:
            for budgets in self._held(costs):
                self.best_rewards[budgets] = max(self.best_rewards[budgets], reward)
        if violation > 0.0:
            reward = -math.inf
        return Evaluation(widths, ratios, costs, violation, score.error, score.accuracy, reward, score.fraction)

    def evaluate_many(self, plans: Sequence[Widths], *, probe: bool = False) -> Iterator[Evaluation]:
        """As `evaluate_widths` for each, in their order; what `scorer` takes over is scored at the same time.

        Where evaluations may stop early, all of these are compared with the best from before them, so that they are
        the same whether they are scored at the same time or not.
        """
        missing = dict.fromkeys(w for w in plans if w not in self.memo and (probe or self.feasible(w)))
        best = dict(self.best_rewards)
        if self.scorer is not None and missing:
            scores = iter(self.scorer(list(missing)))
        else:
            scores = (self.score_against(widths, best) for widths in missing)
        for widths in plans:
            if widths in missing and widths not in self.memo:
                self.memo[widths] = next(scores)
            yield self.evaluate_widths(widths, probe=probe)

    def score_against(self, widths: Widths, best_rewards: dict[tuple[Budget, ...], float]) -> Score:
        """As `score`, given up as if these were the best rewards so far."""
        latest, self.best_rewards = self.best_rewards, best_rewards
        try:
            return self.score(widths)
        finally:
            self.best_rewards = latest

    def hopeless_error(self, widths: Sequence[int] | IntArray) -> float:
        """From this error on a network of these widths is no better than the best evaluation so far.

        inf if there is none, or if a budget is violated: such a network is scored for what it tells, not to win.
        With views under other budgets (`with_budget`): no better under any of the budgets that it holds.
        """
        costs = self.costs(widths)
        best = min((self.best_rewards[budgets] for budgets in self._held(costs)), default=-math.inf)
        factor = self._error_factor(costs)
        margin = 1.0 + 1e-12  # a division and a product may round the wrong way
        return -best / factor * margin if factor > 0.0 else math.inf

    def fit_to_budget(self, plan: Plan) -> FloatArray:
        """Bring any plan to the budget: scale it by one scalar, bisected on the rounded costs.

        The plan moves on the line from "nothing removed" (0) over itself (1) to "all that may be removed" (2).
        The result is feasible, and of the decisions that the next smaller scalar would widen, none can be
        widened by itself within the budget: the slack is less than one rounding step of these.

        Args:
            plan: fractions removed in [0, 1), as a vector (decisions,) or as a policy that names the decisions.

        Returns:
            The ratios of the rounded widths, float64 (decisions,). Without a budget, those of the plan itself.
        """
        ratios = self._vector(plan)
        if not self.budgets:
            return self.ratios(self.widths(ratios))
        most = self.ratios(self.smallest_widths)

        def scaled(scalar: float) -> FloatArray:
            if scalar <= 1.0:
                return ratios * scalar
            return ratios + (scalar - 1.0) * np.maximum(most - ratios, 0.0)

        if self.feasible(self.dense_widths):
            return self.ratios(self.dense_widths)
        over, within = 0.0, 2.0
        while within - over > 1e-9:
            middle = (over + within) / 2
            if self.feasible(self._rounded(scaled(middle))):
                within = middle
            else:
                over = middle
        return self.ratios(self._widen(self._rounded(scaled(within)), self._rounded(scaled(over))))

    def _widen(self, within: Widths, over: Widths) -> Widths:
        """Feasible widths, and infeasible ones that keep some decisions wider: widen each of these that fits."""
        widths = list(within)
        for index, (low, high) in enumerate(zip(within, over, strict=True)):
            if high > low:
                widths[index] = high
                if not self.feasible(widths):
                    widths[index] = low
        return tuple(widths)

    def with_budget(self, budget: Mapping[str, float | str]) -> PruningProblem:
        """The same problem under another budget: a view, to bring plans to that budget and to tell which hold it.

        It shares all else with this problem: the network, the costs, what was scored. Have networks scored by this
        problem (`evaluate_widths(widths, probe=True)`) and judged by the view (`judge`).

        Raises:
            InfeasibleBudgetError: no policy meets the budget.
            ValueError: the budget names an unknown cost or has an unusable limit.
        """
        view = copy.copy(self)
        view.budgets = self._parse_budgets(budget)
        self.best_rewards.setdefault(view.budgets, -math.inf)
        return view

    def judge(self, evaluation: Evaluation) -> Evaluation:
        """An evaluation of this problem under another budget, with violation and reward under this budget."""
        violation = self.violation(evaluation.costs)
        reward = -math.inf
        if violation == 0.0 and evaluation.error is not None:
            reward = -evaluation.error * self._error_factor(evaluation.costs)
        return replace(evaluation, violation=violation, reward=reward)

    def _held(self, costs: Mapping[str, float]) -> list[tuple[Budget, ...]]:
        """The budgets, own and of views, that a network of these costs holds."""
        return [
            budgets for budgets in self.best_rewards if all(costs[budget.cost] <= budget.limit for budget in budgets)
        ]

    def _error_factor(self, costs: Mapping[str, float]) -> float:
        """The reward is the negative error times this."""
        if self.reward_form == "error_macs":
            return math.log(costs["macs"])
        if self.reward_form == "error_weights":
            return math.log(costs["size"] / 4)
        return 1.0

    def _parse_budgets(self, budget: Mapping[str, float | str]) -> tuple[Budget, ...]:
        budgets = []
        smallest = self.costs(self.smallest_widths)
        for name, value in budget.items():
            if name not in self.cost_models:
                known = dict.fromkeys([*COST_MODELS, *self.cost_models])
                raise ValueError(f"budget: unknown cost {name!r}; known: {', '.join(known)}")
            limit = parse_limit(name, value, self.dense_costs[name])
            if smallest[name] > limit:
                unit = self.cost_models[name].unit
                raise InfeasibleBudgetError(name, limit, smallest[name], self.dense_costs[name], unit)
            budgets.append(Budget(name, limit))
        return tuple(budgets)
