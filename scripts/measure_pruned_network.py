#!/usr/bin/env python3
r"""A network whose weights hold zeros: its size in EIE's form, top-1, and time with dense and with sparse layers.

Every layer is encoded, decoded and compared, the decoded network runs with `hw.sparsify`, and whole networks are timed
side by side: dense in torch and onnxruntime, sparse.

    python scripts/measure_pruned_network.py --network squeezenet1_0 --weights squeezenet.pt --images DIR --labels CSV \
        --crop 227 --mean 123 117 104 --scale 1 --out docs/results/squeezenet.md
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from amc_env import zoo
from amc_env.datasets import SplitSizes, load_splits
from amc_env.splits import Preprocessing, Split
from hw.eie import Codebook, EIEMatrix, huffman_size, weight_matrix
from hw.files import write_atomically
from hw.host import describe_host
from hw.sparse import DENSE_KERNELS, sparsify
from hw.sparse.peers import peers
from hw.sparse.replacement import LayerChoice
from hw.sparse.side_by_side import time_calls
from hw.timing import Effort, Timing
from hw.torch_threads import torch_threads

_BATCH = 50


@dataclass(frozen=True)
class StoredLayer:
    """What a layer takes in EIE's form with one processing element, in bytes."""

    density: float
    dense_bytes: int
    stored_bytes: int
    huffman_bytes: int


def main() -> None:
    """Measure, print, and write the page."""
    options = _options()
    torch.set_num_threads(options.threads)
    network = zoo.torchvision_network(options.network)
    zoo.load_weights(network, options.weights)
    network.eval()
    preprocessing = Preprocessing(tuple(options.mean), tuple(options.std), options.scale)
    sizes = SplitSizes(calibration=1, search=1, test=options.count, seed=0)
    images = load_splits(
        "image_folder", sizes, preprocessing, path=options.images, labels=options.labels, resize=256, crop=options.crop
    ).test
    stored, decoded = through_eie(network)
    example = preprocessing(images.images[:1])
    result = sparsify(decoded, example, threads=options.threads)
    accuracies = [top1(candidate, images, preprocessing) for candidate in (network, decoded, result.network)]
    times = whole_networks(network, result.network, example, options.threads)
    page = _page(options, stored, result.layers, accuracies, times)
    sys.stdout.write(page)
    if options.out is not None:
        write_atomically(options.out, page)


def through_eie(network: nn.Module) -> tuple[dict[str, StoredLayer], nn.Module]:
    """What each convolution and linear layer takes, and a copy of the network with the weights as they come back."""
    decoded, stored = copy.deepcopy(network), {}
    for name, layer in decoded.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        weights = weight_matrix(layer.weight.detach().numpy())
        matrix = EIEMatrix.encode(weights, Codebook.of_values(weights))
        size = matrix.size
        coded = huffman_size(matrix).size_bytes + size.pointer_bytes + size.codebook_bytes
        stored[name] = StoredLayer(size.nonzeros / weights.size, weights.nbytes, size.total, coded)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(matrix.to_dense()).reshape(layer.weight.shape))
        if not torch.equal(layer.weight, network.get_parameter(f"{name}.weight")):
            raise RuntimeError(f"layer {name!r} did not come back as it was encoded")
    return stored, decoded


def top1(network: nn.Module, images: Split, preprocessing: Preprocessing) -> float:
    """Share of the images that the network classifies rightly."""
    right = 0
    with torch.inference_mode():
        for first in range(0, len(images), _BATCH):
            outputs = network(preprocessing(images.images[first : first + _BATCH]))
            right += int((outputs.argmax(1).numpy() == images.labels[first : first + _BATCH]).sum())
    return right / len(images)


def whole_networks(dense: nn.Module, sparse: nn.Module, example: torch.Tensor, threads: int) -> dict[str, Timing]:
    """Times of one image, all networks in one interleaved run."""
    with torch_threads(threads), torch.inference_mode():
        calls = {f"dense, {name}": call for name, call in peers(dense, example, threads, dense_only=True).items()}
        return time_calls(calls | {"sparse where it gains": partial(sparse, example)}, effort=Effort(45, 150))


def _page(
    options: argparse.Namespace,
    stored: dict[str, StoredLayer],
    layers: Sequence[LayerChoice],
    accuracies: Sequence[float],
    times: dict[str, Timing],
) -> str:
    dense, eie, coded = (
        sum(getattr(layer, name) for layer in stored.values())
        for name in ("dense_bytes", "stored_bytes", "huffman_bytes")
    )
    host = describe_host({})
    best = min(timing.p10 for name, timing in times.items() if name.startswith("dense"))
    lines = [
        f"# {options.network}, pruned: stored, decoded, run sparse",
        "",
        f"Weights: `{options.weights.name}`. {options.threads} thread(s) of {host.processor}, one image of "
        f"{options.crop} pixels; milliseconds are the 10th percentile of interleaved runs.",
        "",
        f"Top-1 on {options.count} images: {accuracies[0]:.2%} as given, {accuracies[1]:.2%} encoded and decoded "
        f"(every weight came back bit for bit), {accuracies[2]:.2%} with sparse layers.",
        "",
        f"Convolutions and linear layers take {dense:,} bytes dense, {eie:,} in EIE's form with one element "
        f"({dense / eie:.1f} times less), {coded:,} with Huffman codes.",
        "",
        "| whole network | ms | p90 | of the best dense |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {timing.p10:.2f} | {timing.p90:.2f} | {timing.p10 / best:.2f} |"
            for name, timing in times.items()
        ),
        "",
        "| layer | density | dense bytes | stored | Huffman | torch dense, ms | sparse, ms | runs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_row(choice, stored[choice.name]) for choice in layers),
        "",
    ]
    return "\n".join(lines)


def _row(choice: LayerChoice, stored: StoredLayer) -> str:
    times = choice.milliseconds
    dense = min((times[kernel] for kernel in times if kernel in DENSE_KERNELS), default=None)
    sparse = min((times[kernel] for kernel in times if kernel not in DENSE_KERNELS), default=None)
    cells = [
        choice.name,
        f"{stored.density:.1%}",
        f"{stored.dense_bytes:,}",
        f"{stored.stored_bytes:,}",
        f"{stored.huffman_bytes:,}",
        "-" if dense is None else f"{dense:.3f}",
        "-" if sparse is None else f"{sparse:.3f}",
        choice.kernel if choice.milliseconds else f"{choice.kernel} ({choice.reason})",
    ]
    return f"| {' | '.join(cells)} |"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", required=True, help="a classification model of torchvision")
    parser.add_argument("--weights", type=Path, required=True, help="its state_dict, with zeros")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, help="CSV with file and class_index; without it, a sub-folder per class")
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--mean", type=float, nargs="+", default=[0.485, 0.456, 0.406])
    parser.add_argument(
        "--std", type=float, nargs="+", default=None, help="default: ImageNet's if --scale is 255, else 1"
    )
    parser.add_argument("--scale", type=float, default=255.0)
    parser.add_argument("--count", type=int, default=998, help="images for top-1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the page there, Markdown")
    options = parser.parse_args()
    if options.std is None:
        options.std = [0.229, 0.224, 0.225] if options.scale == 255.0 else [1.0]
    return options


if __name__ == "__main__":
    main()
