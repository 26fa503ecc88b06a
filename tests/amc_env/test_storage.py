"""A network as it is stored: the bytes that are counted are those of the files, and the files give it back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from amc_env.pruning.patterns import parse_pattern
from amc_env.storage import (
    Codes,
    StorageSettings,
    compression_stages,
    layer_bytes,
    load_compressed,
    save_compressed,
)

LAYERS = ["0", "3", "6"]


def network(seed: int = 0) -> nn.Module:
    """Three layers that can be pruned, one of them grouped, and two that stay dense."""
    torch.manual_seed(seed)
    layers = [
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 16, 70), nn.ReLU(), nn.Linear(70, 10),
    ]  # fmt: skip
    made = nn.Sequential(*layers)
    norm = made[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        norm.weight.normal_()
        norm.bias.normal_()
    return made.eval()


def pruned(density: float, values: int | None) -> nn.Module:
    """With this share of the weights of `LAYERS`, drawn from so many values if a number is given."""
    made, rng = network(), np.random.default_rng(1)
    with torch.no_grad():
        for name in LAYERS:
            weight = made.get_parameter(f"{name}.weight")
            if values is not None:
                weight.copy_(torch.from_numpy(rng.choice(np.linspace(-1, 1.3, values), weight.shape)))
            weight.mul_(torch.from_numpy(rng.random(weight.shape) < density))
    return made


def stored_bytes(folder: Path) -> int:
    """Bytes of all arrays in the files, without the sizes of matrices."""
    total = 0
    for path in folder.glob("*.npz"):
        with np.load(path) as arrays:
            total += sum(array.nbytes for name, array in arrays.items() if name != "size")
    return total


@pytest.mark.parametrize("density", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("elements", [1, 3])
@pytest.mark.parametrize("codebook", [16, 256, None])
def test_counted_bytes_are_those_of_the_files_and_the_files_give_the_network_back(
    density: float, elements: int, codebook: Codes | None, tmp_path: Path
) -> None:
    storage = StorageSettings(elements=elements, codebook=codebook)
    stored = pruned(density, None if codebook is None else codebook - 1)
    save_compressed(stored, LAYERS, storage, tmp_path / "compressed")
    stages = {stage.name: stage for stage in compression_stages(stored, LAYERS, storage)}
    last = "pruned" if codebook is None else "shared"
    assert stored_bytes(tmp_path / "compressed") == stages[last].size_bytes
    assert stages["dense"].size_bytes == sum(4 * parameter.numel() for parameter in stored.parameters())
    again = network(seed=1)
    load_compressed(again, tmp_path / "compressed")
    for name in [*LAYERS, "8"]:
        assert torch.equal(again.get_parameter(f"{name}.weight"), stored.get_parameter(f"{name}.weight"))
    image = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(again(image), stored(image), rtol=1e-5, atol=1e-5)


def test_each_stage_is_smaller_and_huffman_counts_less_than_is_stored() -> None:
    """At 30 % of the weights with values that are not equally frequent."""
    stored = pruned(0.3, 15)
    with torch.no_grad():
        weight = stored.get_parameter("6.weight")
        weight[weight > 0] = float(weight.max())
    sizes = [stage.layers["6"] for stage in compression_stages(stored, LAYERS, StorageSettings(codebook=16))]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


def test_the_bytes_of_a_pattern_are_those_counted_by_hand() -> None:
    """One column of 40 rows, non-zeros in rows 0 and 35: a run of 34 takes two entries of padding before the last."""
    mask = np.zeros((40, 1), dtype=bool)
    mask[[0, 35]] = True
    entries, pointers = 2 + 2, 2 * 2
    assert layer_bytes(mask, StorageSettings(codebook=16)) == entries + pointers + 16 * 4
    assert layer_bytes(mask, StorageSettings(codebook=256)) == entries * 3 // 2 + pointers + 256 * 4
    assert layer_bytes(mask, StorageSettings()) == entries * 4 + entries // 2 + pointers


def test_weights_that_are_not_shared_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"storage: expected at most 15 distinct weights in a layer, got 40; share them"
    ):
        save_compressed(pruned(1.0, 40), ["0"], StorageSettings(codebook=16), tmp_path / "compressed")


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    storage = StorageSettings(codebook=16)
    save_compressed(pruned(0.5, 15), LAYERS, storage, tmp_path / "compressed")
    other = pruned(0.5, 15)
    other.set_submodule("6", nn.Linear(8 * 16, 60))
    with pytest.raises(ValueError, match=r"6\.npz: expected 7680 weights, got 8960"):
        load_compressed(other, tmp_path / "compressed")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"elements": 0}, "storage: elements: expected at least 1, got 0"),
        ({"codebook": 32}, "storage: codebook: expected 16, 256 or none, got 32"),
        ({"format": "csr"}, "storage: format: expected one of eie, pattern, got 'csr'"),
        ({"format": "pattern", "elements": 2}, "storage: elements: of format eie only, got 2 with pattern"),
    ],
)
def test_unusable_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StorageSettings(**settings)  # type: ignore[arg-type]


def by_pattern(name: str, values: int | None) -> nn.Module:
    """With half of the units of `LAYERS`, those of the largest random scores."""
    made, rng = pruned(1.0, values), np.random.default_rng(2)
    with torch.no_grad():
        for layer in PATTERNED:
            weight = made.get_parameter(f"{layer}.weight")
            pattern = parse_pattern(name)
            mask = pattern.mask(rng.random(weight.shape), pattern.nearest(weight.shape, weight.numel() // 2))
            weight.mul_(torch.from_numpy(mask))
            weight[torch.from_numpy(mask) & (weight == 0)] = weight.max()
    return made


PATTERNED = ["3", "6"]  # the first has 3 inputs
PATTERNS = ["fine_grained", "vector", "kernel", "2x1", "1x2", "filter", "channel", "1:2", "n:2"]


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("codebook", [16, 256, None])
def test_every_pattern_is_stored_in_the_bytes_that_are_counted(
    name: str, codebook: Codes | None, tmp_path: Path
) -> None:
    storage, pattern = StorageSettings("pattern", codebook=codebook), parse_pattern(name)
    stored = by_pattern(name, None if codebook is None else codebook - 1)
    save_compressed(stored, PATTERNED, storage, tmp_path / "compressed", pattern)
    stages = {stage.name: stage for stage in compression_stages(stored, PATTERNED, storage, pattern)}
    assert list(stages) == ["dense", "pruned"] + (["shared"] if codebook else [])
    assert stored_bytes(tmp_path / "compressed") == stages["shared" if codebook else "pruned"].size_bytes
    again = network(seed=1)
    load_compressed(again, tmp_path / "compressed")
    for layer in ["0", *PATTERNED, "8"]:
        assert torch.equal(again.get_parameter(f"{layer}.weight"), stored.get_parameter(f"{layer}.weight"))
    for layer in PATTERNED:
        weight = stored.get_parameter(f"{layer}.weight").detach().numpy()
        assert layer_bytes(weight != 0, storage, pattern) == layer_bytes(weight, storage, pattern)


@pytest.mark.parametrize(
    ("name", "codebook", "expected"),
    [
        ("fine_grained", None, 144 // 8 + 72 * 4),  # weight (8, 2, 3, 3) of which half stay
        ("fine_grained", 16, 144 // 8 + 72 // 2 + 16 * 4),
        ("vector", None, 48 // 8 + 72 * 4),
        ("kernel", 256, 16 // 8 + 72 + 256 * 4),
        ("filter", None, 1 + 72 * 4),
        ("4x1", None, 36 // 8 + 1 + 72 * 4),
        ("1:2", None, 72 // 8 + 72 * 4),
    ],
)
def test_the_bytes_of_a_layer_by_pattern_counted_by_hand(name: str, codebook: Codes | None, expected: int) -> None:
    pattern = parse_pattern(name)
    mask = pattern.mask(np.random.default_rng(0).random((8, 2, 3, 3)), 72)
    assert layer_bytes(mask, StorageSettings("pattern", codebook=codebook), pattern) == expected


def test_2_to_4_takes_eight_bytes_and_a_half_of_sixteen() -> None:
    mask = parse_pattern("2:4").mask(np.random.default_rng(0).random((64, 64)), 2048)
    assert layer_bytes(mask, StorageSettings("pattern"), parse_pattern("2:4")) == 64 * 16 * 8.5


def test_a_damaged_layer_is_refused(tmp_path: Path) -> None:
    save_compressed(
        by_pattern("kernel", None), ["3"], StorageSettings("pattern"), tmp_path / "c", parse_pattern("kernel")
    )
    with np.load(tmp_path / "c" / "3.npz") as arrays:
        damaged = dict(arrays)
    damaged["values"] = damaged["values"][1:]
    np.savez(tmp_path / "c" / "3.npz", **damaged)
    with pytest.raises(ValueError, match=r"values: expected the shape \(8, 9\), got \(7, 9\)"):
        load_compressed(network(), tmp_path / "c")
