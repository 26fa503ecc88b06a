"""Objectives against numbers by hand and torch's own functions; stopping early finds the same winner."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from agents.random_search import RandomSearch
from amc_env import Score, ToyProblem
from amc_env.objectives import KnownImages, Objective, evaluate_objective, find_objective, network_outputs
from amc_env.problem import Evaluation, RewardForm, Widths

LOGITS = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, math.log(2.0)], [1.0, 0.5, 0.0]])
LABELS = torch.tensor([0, 0, 2])
IDENTITY = nn.Identity()


def user_objective(folder: Path, name: str, body: str) -> Objective:
    (folder / f"{name}.py").write_text(
        f"import torch\ndef metric(outputs, labels, dense_outputs):\n    return {body}\n"
    )
    return find_objective(f"{name}:metric", folder)


def evaluate(objective: Objective, images: Any, labels: Any, size: int = 2, **options: Any) -> Score:
    return evaluate_objective(IDENTITY, batches(images, labels, size), objective, None, total=len(labels), **options)


def batches(images: Any, labels: Any, size: int) -> Iterator[tuple[torch.Tensor, Any]]:
    for first in range(0, len(labels), size):
        yield images[first : first + size], labels[first : first + size]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("top1", [0, 1, 1]),
        ("top2", [0, 0, 1]),
        ("top3", [0, 0, 0]),
        # -log softmax by hand: the second row's softmax is (1/4, 1/4, 1/2)
        ("cross_entropy", [math.log(1 + math.exp(-2) + math.exp(-1)), math.log(4), 1.6802696706]),
    ],
)
def test_errors_by_hand(name: str, expected: list[float]) -> None:
    errors = find_objective(name).errors(LOGITS, LABELS, None)
    torch.testing.assert_close(errors, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_agreement_by_hand_needs_no_labels() -> None:
    dense = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])  # (1/2, 1/2) and (3/4, 1/4)
    pruned = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0]])
    errors = find_objective("agreement").errors(pruned, torch.zeros(2, 7), dense)
    assert errors.tolist() == pytest.approx([0.5 * math.log(2 / 3) + 0.5 * math.log(2), 0.0], abs=1e-7)


def test_jensen_shannon_by_hand_needs_no_labels() -> None:
    """(3/4, 1/4) against (1/4, 3/4), whose mean is (1/2, 1/2): each is log 2 less its entropy away from that."""
    dense = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0], [300.0, 0.0]])
    pruned = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0], [0.0, 300.0]])
    objective = find_objective("jensen_shannon")
    errors = objective.errors(pruned, torch.zeros(3, 7), dense)
    by_hand = 0.75 * math.log(0.75) + 0.25 * math.log(0.25) + math.log(2.0)
    assert errors.tolist() == pytest.approx([by_hand, 0.0, math.log(2.0)], abs=1e-7)
    assert objective.worst == math.log(2.0)


@given(st.integers(1, 8), st.integers(2, 12), st.integers(0, 2**32 - 1), st.floats(0.0, 50.0))
def test_jensen_shannon_is_symmetric_and_the_entropy_that_mixing_adds(
    images: int, classes: int, seed: int, scale: float
) -> None:
    logits, dense = scale * torch.randn(2, images, classes, generator=torch.Generator().manual_seed(seed))
    objective = find_objective("jensen_shannon")
    errors = objective.errors(logits, torch.zeros(images), dense)
    p, q = (values.double().softmax(1) for values in (logits, dense))
    mixed, *own = (torch.special.entr(values).sum(1) for values in ((p + q) / 2, p, q))
    torch.testing.assert_close(errors, mixed - sum(own) / 2, atol=1e-5, rtol=0)
    assert torch.equal(errors, objective.errors(dense, torch.zeros(images), logits))
    assert (errors >= 0.0).all()
    assert (errors <= objective.worst).all()


@given(st.integers(1, 8), st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_mean_errors_are_torchs(images: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, dense = torch.randn(2, images, classes, generator=generator)
    labels = torch.randint(classes, (images,), generator=generator)
    score = evaluate(find_objective("cross_entropy"), logits, labels.numpy(), size=3)
    assert score.error == pytest.approx(float(F.cross_entropy(logits, labels)), abs=1e-5)
    assert score.accuracy == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    divergence = F.kl_div(logits.log_softmax(1), dense.softmax(1), reduction="batchmean")
    errors = find_objective("agreement").errors(logits, labels, dense)
    assert float(errors.mean()) == pytest.approx(float(divergence), abs=1e-5)
    assert (errors >= 0).all()


def test_bfloat16_logits_are_compared_in_float32() -> None:
    errors = find_objective("agreement").errors(LOGITS.bfloat16(), LABELS, LOGITS)
    assert errors.dtype == torch.float64
    assert float(errors.max()) < 1e-4


def test_agreement_takes_the_dense_outputs_batch_by_batch() -> None:
    dense = network_outputs(IDENTITY, batches(LOGITS, LABELS, 2))
    objective = find_objective("agreement")
    score = evaluate_objective(IDENTITY, batches(LOGITS, LABELS, 2), objective, dense, total=3)
    assert score == Score(0.0, 1 / 3)
    with pytest.raises(ValueError, match="objective 'agreement': needs the dense network's outputs, got None"):
        evaluate(objective, LOGITS, LABELS)
    with pytest.raises(ValueError, match="shorter"):
        evaluate_objective(IDENTITY, batches(LOGITS, LABELS, 2), objective, dense[:1], total=3)


def test_a_metric_of_ones_own_sees_what_the_network_returns(tmp_path: Path) -> None:
    """A network that returns boxes in a list: no classification, so no accuracy."""

    class Boxes(nn.Module):
        def forward(self, images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
            return [{"box": image} for image in images]

    objective = user_objective(
        tmp_path, "boxes", "torch.stack([(o['box'] - l).abs().mean() for o, l in zip(outputs, labels)])"
    )
    images, labels = torch.zeros(5, 4), np.arange(20, dtype=np.float32).reshape(5, 4)
    score = evaluate_objective(Boxes(), batches(images, labels, 2), objective, [None] * 3, total=5)
    assert score == Score(labels.mean(), None)


def test_a_network_of_one_output_does_not_classify(tmp_path: Path) -> None:
    objective = user_objective(tmp_path, "regression", "(outputs[:, 0] - labels) ** 2")
    score = evaluate_objective(
        IDENTITY, batches(torch.ones(4, 1), np.array([0, 1, 2, 3]), 4), objective, [None], total=4
    )
    assert score == Score(1.5, None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("top_1", r"objective: unknown 'top_1'; did you mean 'top1'\? \(known: top1, top5, cross_entropy, agreement, "),
        ("top0", "objective: unknown 'top0'"),
        ("crossentropy", r"did you mean 'cross_entropy'\?"),
        ("mine:", "objective: expected module:function, got 'mine:'"),
        ("no_such_module:metric", "objective: cannot import 'no_such_module'"),
        ("math:sqr", r"objective: module 'math' has no function 'sqr'; did you mean 'sqrt'\?"),
    ],
)
def test_unknown_objectives_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_objective(name)


@pytest.mark.parametrize(
    ("name", "outputs", "labels", "message"),
    [
        ("top1", [LOGITS], LABELS, r"expected the network to return logits \(n, classes\), got list"),
        ("top1", LOGITS[..., None], LABELS, r"expected the network to return logits \(n, classes\), got \(3, 3, 1\)"),
        ("cross_entropy", LOGITS, torch.zeros(3), r"expected class indices .* got torch.float32 \(3,\)"),
        ("top1", LOGITS, torch.zeros(3, 2), r"expected class indices .* got torch.float32 \(3, 2\)"),
        ("cross_entropy", LOGITS, torch.tensor([0, 3, 1]), r"expected labels in 0..2, the network's outputs, got 0..3"),
        ("top1", LOGITS, torch.tensor([0, -1, 1]), r"expected labels in 0..2, the network's outputs, got -1..1"),
        ("top4", LOGITS, LABELS, "objective 'top4': the network has 3 outputs only"),
        ("cross_entropy", LOGITS * math.nan, LABELS, "expected finite errors, got nan for 3 of 3 images"),
    ],
)
def test_outputs_and_labels_are_checked(name: str, outputs: Any, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_objective(name).errors(outputs, labels, None)


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("scalar", "outputs.mean()", r"one error for each of the 3 images, \(3,\), got \(\)"),
        ("number", "0.5", r"one error for each of the 3 images, \(3,\), got float"),
        ("infinite", "1 / (labels - 2)", "expected finite errors, got inf for 1 of 3 images"),
    ],
)
def test_what_a_metric_returns_is_checked(tmp_path: Path, name: str, body: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        user_objective(tmp_path, name, body).errors(LOGITS, LABELS, None)


def test_a_negative_error_cannot_be_stopped_early(tmp_path: Path) -> None:
    objective = user_objective(tmp_path, "negative", "-outputs[:, 0]")
    ones = torch.ones(4, 1)
    dense = [None] * 2
    score = evaluate_objective(IDENTITY, batches(ones, ones, 2), objective, dense, total=4)
    assert score == Score(-1.0, None)
    with pytest.raises(ValueError, match=r"expected errors of at least 0, .* got -1; set stop_early: false"):
        evaluate_objective(IDENTITY, batches(ones, ones, 2), objective, dense, total=4, give_up_at=0.5)


def test_a_score_tells_which_images_were_classified_rightly() -> None:
    logits, labels = torch.eye(2).repeat(5, 1), np.array([1, 0, 1, 1, 0, 1, 0, 1, 0, 0])
    top1 = find_objective("top1")
    whole = evaluate(top1, logits, labels)
    assert whole.correct is not None
    assert np.unpackbits(np.frombuffer(whole.correct, np.uint8), count=10).tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 0]
    assert evaluate(top1, logits, labels, give_up_at=0.3).correct is None
    known = KnownImages(1, 0.0, 1)
    assert evaluate_objective(IDENTITY, batches(logits, labels, 5), top1, None, total=11, known=known).correct is None


def test_stops_as_soon_as_the_errors_seen_are_too_many() -> None:
    logits, labels = torch.eye(2).repeat(4, 1), np.array([1, 0, 1, 1, 0, 1, 0, 1])  # errors 1 1 1 0 0 0 0 0
    top1 = find_objective("top1")
    assert evaluate(top1, logits, labels, give_up_at=0.375) == Score(0.75, 0.25, 0.5)
    assert evaluate(top1, logits, labels, give_up_at=0.376) == evaluate(top1, logits, labels) == Score(0.375, 0.625)
    with pytest.raises(ValueError, match="total: the batches hold 8 images, expected 9"):
        evaluate_objective(IDENTITY, batches(logits, labels, 2), top1, None, total=9)


@given(
    st.integers(1, 12).flatmap(
        lambda images: st.lists(
            st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 7.3]), min_size=images, max_size=images), min_size=1
        )
    ),
    st.integers(1, 5),
)
def test_stopping_early_finds_the_same_winner(streams: list[list[float]], size: int) -> None:
    identity = Objective("given", lambda outputs, labels, dense_outputs: labels)
    full = [evaluate(identity, torch.zeros(len(stream)), torch.tensor(stream), size).error for stream in streams]
    best, winner = math.inf, -1
    for index, stream in enumerate(streams):
        score = evaluate(identity, torch.zeros(len(stream)), torch.tensor(stream), size, give_up_at=best)
        if score.fraction < 1.0:
            assert score.error >= best
        elif score.error < best:
            best, winner = score.error, index
    assert winner == full.index(min(full))


class Streamed(ToyProblem):
    """Each of 40 images has an error of its own, drawn by the widths."""

    stop_early = False

    def score(self, widths: Widths) -> Score:
        rng = np.random.default_rng(widths)
        errors = torch.from_numpy(rng.exponential(size=40) * super().score(widths).error)
        objective = Objective("given", lambda outputs, labels, dense_outputs: labels)
        give_up_at = self.hopeless_error(widths) if self.stop_early else None
        return evaluate(objective, torch.zeros(40), errors, size=4, give_up_at=give_up_at)


@pytest.mark.parametrize("reward", ["error", "error_macs", "error_weights"])
@pytest.mark.parametrize("seed", range(3))
def test_a_search_that_stops_early_finds_the_same_plan(reward: RewardForm, seed: int) -> None:
    found, stopped = [], 0
    for stop_early in (False, True):
        problem = Streamed(4, reward=reward, seed=seed)
        problem.stop_early = stop_early
        history: list[Evaluation] = []
        found.append(RandomSearch().search(problem, max_evaluations=40, seed=seed, on_evaluation=history.append))
        stopped += sum(evaluation.stopped_early for evaluation in history)
    assert found[0] == found[1]
    assert stopped > 10
