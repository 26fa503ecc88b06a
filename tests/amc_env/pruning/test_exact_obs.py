"""The order of optimal brain surgeon against trying every removal, with the weights that stay fitted anew each time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from amc_env.pruning.exact_obs import obs_scores
from amc_env.pruning.least_squares import Consumer, solve_subset
from amc_env.pruning.patterns import FineGrained

RIDGE = 1e-6
Array = NDArray[np.float64]


def obs_order(consumers: list[Consumer], ridge: float) -> NDArray[np.int64]:
    return FineGrained().order(obs_scores(consumers, ridge))


def consumer_of(columns: int, outputs: int, seed: int) -> Consumer:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(40, columns)) @ rng.normal(size=(columns, columns))
    weights = rng.normal(size=(columns, outputs))
    return Consumer(torch.from_numpy(inputs.T @ inputs), torch.from_numpy(weights))


def error(consumer: Consumer, output: int, kept: list[int]) -> float:
    """What is left of the damped squared error of one output on these columns."""
    own = Consumer(consumer.gram, consumer.weights[:, output : output + 1])
    lost = own.weights.clone()
    if kept:
        lost[kept] -= solve_subset(own, np.array(kept), RIDGE)
    return float((lost * (own.with_ridge(RIDGE) @ lost)).sum())


def traces(consumer: Consumer) -> list[list[tuple[int, float]]]:
    """For each output, by trial of every column, the removals in order with what each adds to the error."""
    columns, outputs = consumer.weights.shape
    found = []
    for output in range(outputs):
        kept, before, trace = list(range(columns)), 0.0, []
        while kept:
            after = {column: error(consumer, output, [c for c in kept if c != column]) for column in kept}
            best = min(after, key=after.__getitem__)
            trace.append((best, after[best] - before))
            before = after[best]
            kept.remove(best)
        found.append(trace)
    return found


def merged(rows: list[list[tuple[int, float]]], columns: int) -> list[int]:
    """Removals of the layer: always the row whose next one is cheapest."""
    rows = [list(row) for row in rows]
    order = []
    while any(rows):
        row = min((index for index, trace in enumerate(rows) if trace), key=lambda index: rows[index][0][1])
        order.append(row * columns + rows[row].pop(0)[0])
    return order


@pytest.mark.parametrize("seed", range(5))
def test_every_removal_is_the_cheapest_there_is(seed: int) -> None:
    consumer = consumer_of(columns=7, outputs=3, seed=seed)
    assert obs_order([consumer], RIDGE)[::-1].tolist() == merged(traces(consumer), 7)


def test_groups_of_a_layer_are_merged_like_rows() -> None:
    groups = [consumer_of(columns=5, outputs=2, seed=seed) for seed in (1, 2)]
    rows = [*traces(groups[0]), *traces(groups[1])]
    assert obs_order(groups, RIDGE)[::-1].tolist() == merged(rows, 5)


def test_independent_inputs_go_by_the_energy_that_they_bring() -> None:
    scales, weights = np.array([1.0, 4.0, 9.0, 16.0]), np.array([[4.0, 1.5, 1.0, 0.1]])
    consumer = Consumer(torch.diag(torch.from_numpy(scales)), torch.from_numpy(weights.T))
    expected = np.argsort(-(scales * weights[0] ** 2)).tolist()
    assert obs_order([consumer], 1e-12).tolist() == expected


def test_inputs_that_never_vary_go_first() -> None:
    consumer = consumer_of(columns=6, outputs=2, seed=3)
    gram = consumer.gram.clone()
    gram[[1, 4]] = 0.0
    gram[:, [1, 4]] = 0.0
    order = obs_order([Consumer(gram, consumer.weights)], 1e-6).tolist()
    assert set(order[-4:]) == {row * 6 + column for row, column in itertools.product((0, 1), (1, 4))}


def test_scores_are_what_the_removals_cost() -> None:
    consumer = consumer_of(columns=6, outputs=2, seed=4)
    scores = obs_scores([consumer], RIDGE)
    for row, trace in enumerate(traces(consumer)):
        due = np.maximum.accumulate([loss for _, loss in trace])
        np.testing.assert_allclose(scores[row, [column for column, _ in trace]], due, rtol=1e-5, atol=1e-7)


def test_equal_costs_are_told_apart_in_the_order_of_the_removals() -> None:
    """Two rows of zeros: every removal is free, and still no two scores are equal."""
    consumer = Consumer(torch.eye(4, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.float64))
    scores = obs_scores([consumer], RIDGE)
    assert len(np.unique(scores)) == scores.size
    assert scores.max() < 1e-300
