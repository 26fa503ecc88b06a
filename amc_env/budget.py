"""Budgets: upper limits on costs, absolute or as a fraction of the dense network's."""

from __future__ import annotations

from dataclasses import dataclass


class InfeasibleBudgetError(ValueError):
    """No pruning policy of the problem can meet a budget.

    Attributes:
        cost: name of the cost, e.g. "macs".
        limit: the budget, in the cost's unit.
        smallest: the smallest cost that any policy reaches, in the same unit.
    """

    def __init__(self, cost: str, limit: float, smallest: float, dense: float, unit: str) -> None:
        self.cost, self.limit, self.smallest = cost, limit, smallest
        super().__init__(
            f"budget {cost} <= {_amount(limit)} {unit} cannot be met: the smallest reachable {cost} is "
            f"{_amount(smallest)} {unit} ({smallest / dense:.1%} of the dense network's {_amount(dense)}). "
            f"Raise the budget to at least that, raise max_ratio, keep fewer layers, or lower round_to if it is set."
        )


def _amount(value: float) -> str:
    """Whole bytes and MACs, and four digits of milliseconds."""
    return f"{value:,.0f}" if value >= 1000 or value == round(value) else f"{value:.4g}"


@dataclass(frozen=True)
class Budget:
    """An upper limit: a policy is feasible if `cost <= limit`; slack is limit - cost."""

    cost: str
    limit: float

    def violation(self, cost: float) -> float:
        """How far over the limit, as a fraction of it: max(0, cost / limit - 1)."""
        return max(0.0, cost / self.limit - 1.0)


def parse_limit(cost: str, value: float | str, dense: float) -> float:
    """A limit in the cost's unit, from a number in that unit or from "50%" of the dense cost.

    Raises:
        ValueError: neither a positive number nor a percentage in (0, 100].
    """
    expected = f"budget {cost}: expected a positive number in the unit of the cost or a percentage such as '50%'"
    try:
        if isinstance(value, str) and value.strip().endswith("%"):
            fraction = float(value.strip()[:-1]) / 100.0
            if not 0.0 < fraction <= 1.0:
                raise ValueError(f"{expected} in (0%, 100%], got {value!r}")
            return fraction * dense
        number = float(value)
    except ValueError as error:
        raise error if "expected" in str(error) else ValueError(f"{expected}, got {value!r}") from error
    if not 0.0 < number < float("inf"):
        raise ValueError(f"{expected}, got {value!r}")
    return number
