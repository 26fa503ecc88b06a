"""Texts: the sentences, the classifier, and the pruning of its layers, for which no channels need be traced."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from amc_env.datasets import SplitSizes, load_splits, load_training
from amc_env.fine_grained import WeightProblem
from amc_env.pruning.patterns import parse_pattern
from amc_env.pruning.trace import UntraceableNetworkError, trace_channels, trace_layers
from amc_env.settings import EvaluationSettings, Fidelity, WeightSettings
from amc_env.splits import AsTheyAre, DataSplits, Preprocessing
from amc_env.stdlib_docs import LENGTH, PACKAGES, VOCABULARY, stdlib_docs_arrays
from amc_env.storage import StorageSettings, load_compressed, save_compressed
from amc_env.text_classifier import Attention, TextClassifier, TextRecipe
from amc_env.training.finetune import fine_tune
from amc_env.training.recipe import FineTuneSettings
from tests.amc_env.pruning.small_networks import SMALL_KNOWN, images

SMALL = TextRecipe(width=16, heads=2, blocks=1)


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return TextClassifier(SMALL).eval()


def write_tokens(path: Path, **others: Any) -> Path:
    """Texts whose first token tells the class."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part, count in (("train", 120), ("test", 90)):
        tokens = rng.integers(1, VOCABULARY, (count, LENGTH))
        tokens[:, 0] = rng.integers(2, 2 + len(PACKAGES), count)
        tokens[np.arange(LENGTH) >= rng.integers(5, LENGTH + 1, count)[:, None]] = 0
        arrays |= {f"{part}_tokens": tokens, f"{part}_labels": tokens[:, 0] - 2}
    np.savez(path, **arrays | others)
    return path


@pytest.fixture
def data(tmp_path: Path) -> DataSplits:
    return load_splits("npz_tokens", SplitSizes(100, 40, 40), path=write_tokens(tmp_path / "texts.npz"))


def test_sentences_of_the_documentation() -> None:
    tokens, labels, test_tokens, test_labels = stdlib_docs_arrays()
    assert tokens.dtype == labels.dtype == np.int64
    assert len(tokens) > 2000
    assert len(test_tokens) > 1000
    for part, of_part in ((tokens, labels), (test_tokens, test_labels)):
        assert part.shape == (len(of_part), LENGTH)
        assert np.unique(of_part).tolist() == list(range(len(PACKAGES)))
        assert (part[:, :5] > 0).all()  # five words at least, and nothing after the end
        assert ((part[:, 1:] == 0) | (part[:, :-1] > 0)).all()
    assert np.unique(tokens).tolist() == list(range(VOCABULARY))  # the vocabulary is that of the training sentences
    splits = load_splits("stdlib_docs", SplitSizes(10, 20, 30, seed=1))
    assert splits.preprocessing == AsTheyAre()
    assert splits.test.source == f"stdlib_docs test sentences, 30 of {len(test_tokens)} drawn with seed 1"


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    own, torchs = Attention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        parts = (own.query, own.key, own.value)
        torchs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        torchs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        torchs.out_proj.load_state_dict(own.out.state_dict())
    x, seen = torch.randn(3, 5, 8), torch.arange(5) < torch.tensor([[5], [2], [4]])
    expected, _ = torchs(x, x, x, key_padding_mask=~seen)
    torch.testing.assert_close(own(x, seen[:, None, None, :]), expected)


def test_nothing_behind_the_end_of_a_text_is_looked_at() -> None:
    network, tokens = classifier(), torch.randint(1, VOCABULARY, (4, LENGTH))
    tokens[:, 9:] = 0
    before = network(tokens)
    with torch.no_grad():
        network.get_parameter("embedding.weight")[0] += 1.0
        network.get_parameter("positions")[9:] += 1.0
    torch.testing.assert_close(network(tokens), before)


@pytest.mark.parametrize("name", SMALL_KNOWN)
def test_layers_are_the_same_whether_or_not_channels_are_followed(name: str) -> None:
    network = SMALL_KNOWN[name]().eval()
    strict, loose = trace_channels(network, images(2, size=32)), trace_layers(network, images(2, size=32))
    assert loose.layers == strict.layers
    assert loose.foldable == strict.foldable
    assert all(np.array_equal(a, b) for a, b in zip(loose.inputs, strict.inputs, strict=True))


def test_layers_of_an_encoder() -> None:
    network, tokens = classifier(), torch.ones(2, LENGTH, dtype=torch.int64)
    for name in ("attention.query", "linear1"):  # torch multiplies otherwise where there is no bias
        layer = network.get_submodule(f"blocks.0.{name}")
        network.set_submodule(f"blocks.0.{name}", nn.Linear(layer.in_features, layer.out_features, bias=False))  # type: ignore[arg-type]
    found = {layer.name: layer for layer in trace_layers(network, tokens).layers if layer.op == "linear"}
    linear = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    assert set(found) == set(linear)
    for name, module in linear.items():
        positions = 1 if name == "classifier" else LENGTH
        assert found[name].macs == positions * module.weight.numel()
    with pytest.raises(UntraceableNetworkError, match="operation 'embedding' on channels is not supported"):
        trace_channels(network, tokens)


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x).mean(dim=1)  # type: ignore[no-any-return]


def test_layers_that_torch_hides_are_no_layers_that_stay_whole() -> None:
    message = "in module 'encoder.self_attn', operation '_native_multi_head_attention' hides them; write attention with"
    with pytest.raises(UntraceableNetworkError, match=message):
        trace_layers(Hidden().eval(), torch.randn(2, 5, 8))


@pytest.mark.parametrize("granularity", ["fine_grained", "4x1", "2:4", "filter"])
def test_an_encoder_is_pruned_by_every_pattern(granularity: str, data: DataSplits, tmp_path: Path) -> None:
    network, pattern = classifier(), parse_pattern(granularity)
    problem = WeightProblem(
        network,
        data,
        budget={"size": "95%"},
        settings=WeightSettings(granularity=granularity, levels=6),
        storage=StorageSettings("pattern"),
        evaluation=EvaluationSettings(fidelity="prefix", objective="cross_entropy"),
    )
    assert problem.dense_costs["size"] == 4 * sum(parameter.numel() for parameter in network.parameters())
    widths = problem.widths(np.full(len(problem.decisions), 0.5))
    pruned, masks = problem.prune(widths), problem.masks(widths)
    assert set(masks) == set(problem.names)
    for name, mask in masks.items():
        weight = pruned.get_parameter(f"{name}.weight").detach().numpy()
        assert ((weight != 0) <= mask).all()
        assert pattern.holding(mask) == mask.sum()
    if granularity == "2:4":
        assert all((mask.reshape(-1, 4).sum(axis=1) == 2).all() for mask in masks.values())
    assert problem.plan(widths)["granularity"] == granularity
    save_compressed(pruned, list(masks), problem.storage, tmp_path / "compressed", pattern)
    again = TextClassifier(SMALL)
    load_compressed(again, tmp_path / "compressed")
    tokens = problem.example(5)
    torch.testing.assert_close(again(tokens), pruned(tokens))
    fitted = problem.measure(widths, "search").error
    assert np.isfinite(fitted)
    assert problem.score(problem.dense_widths) == problem.measure(problem.dense_widths, "search")


def test_what_is_fitted_is_nearer_to_the_dense_outputs(data: DataSplits) -> None:
    outputs, tokens = {}, torch.from_numpy(data.test.images)
    fidelities: tuple[Fidelity, ...] = ("magnitude", "prefix")
    for fidelity in fidelities:
        problem = WeightProblem(
            classifier(),
            data,
            budget={"macs": "60%"},
            settings=WeightSettings(granularity="2:4"),
            evaluation=EvaluationSettings(fidelity=fidelity),
        )
        outputs[fidelity] = problem.prune(problem.smallest_widths)(tokens)
    dense = classifier()(tokens)
    assert F.mse_loss(outputs["prefix"], dense) < F.mse_loss(outputs["magnitude"], dense)


def test_an_encoder_is_fine_tuned(tmp_path: Path) -> None:
    path, network = write_tokens(tmp_path / "texts.npz"), classifier()
    training = load_training("npz_tokens", SplitSizes(10, 10, 10), path=path)
    log = fine_tune(network, training, AsTheyAre(), FineTuneSettings(epochs=8, learning_rate=0.1, batch=32))
    assert log.losses[-1] < log.losses[0]
    with pytest.raises(ValueError, match="crop_padding, flip and mixup are of images; leave them out for texts"):
        fine_tune(network, training, AsTheyAre(), FineTuneSettings(epochs=1, flip=True))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (
            {"test_tokens": np.ones((90, LENGTH))},
            f"test_tokens: expected int64 (n, length) of at least 0, got float64 (90, {LENGTH}), the least 1.0",
        ),
        (
            {"test_tokens": -np.ones((90, LENGTH), np.int64)},
            f"test_tokens: expected int64 (n, length) of at least 0, got int64 (90, {LENGTH}), the least -1",
        ),
        ({"test_labels": np.arange(4)}, "test_labels: expected integers or floats (90, ...), got int64 (4,)"),
        (
            {"train_tokens": np.ones((120, 3), np.int64)},
            f"images: expected one shape, got (3,), ({LENGTH},)",
        ),
    ],
)
def test_malformed_texts(others: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "texts.npz", **others)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_splits("npz_tokens", SplitSizes(10, 20, 30), path=path)


def test_texts_are_not_preprocessed(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "texts.npz")
    with pytest.raises(ValueError, match=r"^npz_tokens: nothing is done to token ids; leave preprocessing out$"):
        load_splits("npz_tokens", SplitSizes(10, 20, 30), Preprocessing(), path=path)
