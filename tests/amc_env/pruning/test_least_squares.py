"""Least squares against numpy's lstsq on the rows themselves, and the greedy order against trying every unit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from amc_env.pruning.graph import IntArray
from amc_env.pruning.least_squares import Consumer, NestedLeastSquares, greedy_order, output_energy, solve_rows
from amc_env.pruning.least_squares import solve_subset as solve

RIDGE = 1e-12  # so small that it does not show
Array = NDArray[np.float64]


def correlated(rows: int, columns: int, seed: int = 0) -> Array:
    """Rows of dependent columns with means that are not 0."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.normal(size=(rows, columns)) @ rng.normal(size=(columns, columns)) + rng.normal(size=columns))


def problem(columns: int = 12, outputs: int = 5, seed: int = 0) -> tuple[Array, Array, Consumer]:
    """Centred rows, dense weights, and the consumer that they make."""
    inputs = correlated(80, columns, seed)
    inputs -= inputs.mean(axis=0)
    weights = np.random.default_rng(seed + 100).normal(size=(columns, outputs))
    return inputs, weights, Consumer(torch.from_numpy(inputs.T @ inputs), torch.from_numpy(weights))


def lstsq(inputs: Array, targets: Array) -> tuple[Array, float]:
    """Weights, and the squared error that is left."""
    weights: Array = np.asarray(np.linalg.lstsq(inputs, targets, rcond=None)[0], dtype=np.float64)
    return weights, float(((inputs @ weights - targets) ** 2).sum())


def close(actual: torch.Tensor, expected: Any, tolerance: float = 1e-5) -> None:
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual.numpy() - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-3)


def test_every_prefix_equals_lstsq_and_its_error_the_residual() -> None:
    inputs, weights, consumer = problem()
    nested = NestedLeastSquares(consumer, RIDGE)
    errors = nested.errors()
    assert errors.shape == (13,)
    for width in range(1, 13):
        expected, residual = lstsq(inputs[:, :width], inputs @ weights)
        close(nested.weights(width), expected)
        assert float(errors[width]) == pytest.approx(residual, rel=1e-5, abs=1e-6 * consumer.energy)
    assert float(errors[0]) == pytest.approx(((inputs @ weights) ** 2).sum())
    assert consumer.energy == pytest.approx(((inputs @ weights) ** 2).sum())


@pytest.mark.parametrize("ridge", [1e-12, 1e-4, 1e-1])
def test_full_width_gives_the_dense_weights_whatever_the_ridge(ridge: float) -> None:
    _, weights, consumer = problem()
    close(NestedLeastSquares(consumer, ridge).weights(12), weights, 1e-7)
    close(solve(consumer, np.arange(12), ridge), weights, 1e-7)
    assert float(NestedLeastSquares(consumer, ridge).errors()[12]) == 0.0


def test_errors_never_grow_with_the_width() -> None:
    errors = NestedLeastSquares(problem()[2]).errors()
    assert (errors.diff() <= 0).all()


@pytest.mark.parametrize("rows", [30, 80])
@pytest.mark.parametrize("ridge", [1e-4, 1e-2, 1.0])
def test_errors_elsewhere_are_the_generalised_cross_validation(rows: int, ridge: float) -> None:
    inputs = correlated(rows, 40)
    inputs -= inputs.mean(axis=0)
    weights = np.random.default_rng(1).normal(size=(40, 5))
    gram = inputs.T @ inputs
    nested = NestedLeastSquares(Consumer(torch.from_numpy(gram), torch.from_numpy(weights)), ridge)
    errors = nested.errors_elsewhere(rows)
    assert errors.shape == (41,)
    for width in (0, 1, 12, 29, 30, 39, 40):
        own = gram[:width, :width]
        damped = own + ridge * np.diag(gram).mean() * np.eye(width)
        freedom = np.trace(np.linalg.solve(damped, own)) if width else 0.0
        residual = ((inputs @ weights - inputs[:, :width] @ nested.weights(width).numpy()) ** 2).sum()
        expected = residual / (1.0 - freedom / (rows - 1)) ** 2
        assert float(errors[width]) == pytest.approx(expected, rel=1e-4, abs=1e-9 * (inputs @ weights).var())


@pytest.mark.parametrize(("rows", "ridge"), [(30, 1e-2), (100, 1e-4), (100, 1e-2), (1000, 1e-4)])
def test_errors_elsewhere_are_those_on_rows_that_the_fit_has_not_met(rows: int, ridge: float) -> None:
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(64, 64)) * np.logspace(0, -1.5, 64)  # as of features, few directions carry the most
    weights = rng.normal(size=(64, 20))
    other = rng.normal(size=(4000, 64)) @ spread
    widths = (8, 16, 32, 48)
    found = np.zeros((2, len(widths)))
    for _ in range(10):
        inputs = rng.normal(size=(rows, 64)) @ spread
        inputs -= inputs.mean(axis=0)
        consumer = Consumer(torch.from_numpy(inputs.T @ inputs), torch.from_numpy(weights))
        nested = NestedLeastSquares(consumer, ridge)
        found[0] += nested.errors_elsewhere(rows).numpy()[list(widths)] / consumer.energy
        for place, width in enumerate(widths):
            missed = other @ weights - other[:, :width] @ nested.weights(width).numpy()
            found[1, place] += (missed**2).sum() / ((other @ weights) ** 2).sum()
    assert found[0] == pytest.approx(found[1], rel=0.25)


@pytest.mark.parametrize("columns", [[3], [0, 4, 11], [11, 2, 7, 5], list(range(1, 12))], ids=len)
def test_any_subset_equals_lstsq(columns: list[int]) -> None:
    inputs, weights, consumer = problem()
    expected, _ = lstsq(inputs[:, columns], inputs @ weights)
    close(solve(consumer, np.array(columns), RIDGE), expected)


def test_a_subset_that_is_a_prefix_equals_the_nested_solution_with_the_same_ridge() -> None:
    consumer = problem()[2]
    close(solve(consumer, np.arange(7), 0.05), NestedLeastSquares(consumer, 0.05).weights(7), 1e-9)


def test_columns_that_are_always_zero_do_no_harm() -> None:
    """Of channels that a ReLU never lets through the moments say nothing; the weights of the others are lstsq's."""
    inputs, weights, _ = problem()
    inputs[:, [2, 5]] = 0.0
    consumer = Consumer(torch.from_numpy(inputs.T @ inputs), torch.from_numpy(weights))
    expected, residual = lstsq(inputs[:, [0, 1, 3, 4]], inputs @ weights)
    nested = NestedLeastSquares(consumer, 1e-9)
    close(nested.weights(6)[[0, 1, 3, 4]], expected)
    assert float(nested.errors()[6]) == pytest.approx(residual, rel=1e-4)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_rows_equal_lstsq_group_by_group(*, groups: int, intercept: bool) -> None:
    rng = np.random.default_rng(4)
    inputs = np.stack([correlated(60, 4, seed) for seed in range(groups)]) / 4
    targets = rng.normal(size=(groups, 60, 2)) + 1.5
    prior = rng.normal(size=(groups, 4, 2))
    weights, bias = solve_rows(
        torch.from_numpy(inputs).float(), torch.from_numpy(targets).float(), torch.from_numpy(prior).float(), 1e-9,
        intercept=intercept,
    )  # fmt: skip
    assert (weights.dtype, bias.dtype) == (torch.float32, torch.float32)
    for group in range(groups):
        columns = np.hstack([inputs[group], np.ones((60, 1))]) if intercept else inputs[group]
        expected, _ = lstsq(columns, targets[group])
        close(weights[group].double(), expected[:4], 1e-4)  # float32 rows
        close(bias[group].double(), expected[4] if intercept else np.zeros(2), 1e-4)


def test_rows_equal_ridge_regression_towards_the_prior() -> None:
    """|(W - P)'|^2 * ridge * mean diagonal, as additional rows of lstsq."""
    rng = np.random.default_rng(5)
    inputs, targets, prior = correlated(30, 4), rng.normal(size=(30, 2)), rng.normal(size=(4, 2))
    damping = np.sqrt(0.3 * np.diag(inputs.T @ inputs).mean())
    expected, _ = lstsq(np.vstack([inputs, damping * np.eye(4)]), np.vstack([targets, damping * prior]))
    rows, wanted, start = (torch.from_numpy(value).float().unsqueeze(0) for value in (inputs, targets, prior))
    actual, _ = solve_rows(rows, wanted, start, 0.3, intercept=False)
    close(actual[0].double(), expected)


def test_targets_that_the_prior_gives_leave_it_unchanged() -> None:
    """Fewer rows than columns: what the rows do not say stays as it was."""
    inputs, prior = torch.from_numpy(correlated(5, 20)).float(), torch.randn(20, 3, generator=torch.Generator())
    weights, bias = solve_rows(inputs[None], (inputs @ prior)[None], prior[None], 1e-2, intercept=True)
    torch.testing.assert_close(weights[0], prior, atol=1e-4, rtol=0)
    torch.testing.assert_close(bias[0], torch.zeros(3), atol=1e-3, rtol=0)


def several(units: int, seed: int) -> tuple[list[tuple[Array, Array]], list[tuple[Consumer, IntArray]]]:
    """Rows and weights of three consumers of the same units: of 1, 3 and 2 columns a unit, and with further columns."""
    rows, consumers = [], []
    for number, per_unit in enumerate([1, 3, 2]):
        extra = 2 if number == 2 else 0
        columns = units * per_unit + extra
        inputs, weights, consumer = problem(columns, 3 + number, seed * 10 + number)
        blocks = np.random.default_rng(seed + number).permutation(columns)[extra:].reshape(units, per_unit)
        rows.append((inputs, weights))
        consumers.append((consumer, blocks))
    return rows, consumers


def test_output_energy_is_what_each_unit_alone_puts_out() -> None:
    rows, consumers = several(6, seed=1)
    expected = np.zeros(6)
    for (inputs, weights), (_, blocks) in zip(rows, consumers, strict=True):
        total = ((inputs @ weights) ** 2).sum()
        expected += [((inputs[:, columns] @ weights[columns]) ** 2).sum() / total for columns in blocks]
    close(output_energy(consumers), expected, 1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_greedy_order_removes_what_lstsq_over_all_units_misses_least(seed: int) -> None:
    rows, consumers = several(7, seed)
    order = greedy_order(consumers).tolist()
    assert sorted(order) == list(range(7))

    def loss(units: list[int]) -> float:
        """Relative error of all consumers, summed, when these units are gone and the rest is fitted anew."""
        total = 0.0
        for (inputs, weights), (_, blocks) in zip(rows, consumers, strict=True):
            stays = np.setdiff1d(np.arange(inputs.shape[1]), blocks[units])
            targets = inputs @ weights
            total += (lstsq(inputs[:, stays], targets)[1] if len(stays) else (targets**2).sum()) / (targets**2).sum()
        return total

    removed: list[int] = []
    for unit in order[::-1]:
        losses = {other: loss([*removed, other]) for other in range(7) if other not in removed}
        assert losses[unit] <= min(losses.values()) * (1 + 1e-4) + 1e-9
        removed.append(unit)


def test_the_greedy_order_drops_copies_first() -> None:
    """Units 3, 4 and 5 are sums of units 0, 1 and 2: three units can go at no loss, and the other three carry all."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(50, 3))
    inputs = np.hstack([base, base @ rng.normal(size=(3, 3))])
    consumer = Consumer(torch.from_numpy(inputs.T @ inputs), torch.from_numpy(rng.normal(size=(6, 4))))
    order = greedy_order([(consumer, np.arange(6)[:, None])])
    errors = NestedLeastSquares(Consumer(consumer.gram[order][:, order], consumer.weights[order])).errors()
    assert float(errors[3]) < 1e-4 * consumer.energy
    assert float(errors[2]) > 1e-3 * consumer.energy


def test_the_greedy_order_of_many_dependent_units_is_still_nearly_the_best() -> None:
    """96 units of rank 40: rounding errors add up over the removals, and each pick is still nearly the best."""
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(300, 40)) @ rng.normal(size=(40, 96)) + 1e-3 * rng.normal(size=(300, 96))
    weights = rng.normal(size=(96, 10))
    consumer = Consumer(torch.from_numpy(inputs.T @ inputs), torch.from_numpy(weights))
    order = greedy_order([(consumer, np.arange(96)[:, None])])
    targets = inputs @ weights
    for width in (8, 16, 32, 60):
        kept = order[:width]
        _, lost = lstsq(inputs[:, kept], targets)
        best = min(
            lstsq(inputs[:, np.setdiff1d(order[: width + 1], [unit])], targets)[1] for unit in order[: width + 1]
        )
        assert lost <= best * 1.01 + 1e-6 * consumer.energy


def test_a_consumer_that_sees_nothing_has_no_say() -> None:
    """Its inputs are 0 on all calibration images: no unit is worth anything to it."""
    _, consumers = several(6, seed=2)
    alone = greedy_order(consumers)
    blind = Consumer(torch.zeros(6, 6, dtype=torch.float64), torch.ones(6, 2, dtype=torch.float64))
    assert greedy_order([*consumers, (blind, np.arange(6)[:, None])]).tolist() == alone.tolist()
    close(output_energy([*consumers, (blind, np.arange(6)[:, None])]), output_energy(consumers), 1e-12)
