"""The winner of a job, run on this processor: whole, and layer by layer where its weights are sparse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

from amc_env.image_problem import ImageProblem
from hw.host import describe_host
from hw.sparse import DENSE as LEFT_DENSE
from hw.sparse import LINEAR_KERNELS, sparsify
from hw.sparse.break_even import measure_layer
from hw.sparse.peers import CSR, DENSE, best_of, peers
from hw.sparse.replacement import CONV, SMALLEST_GAIN, Layer, density_of, layer_inputs, pads_with_zeros, share_of
from hw.sparse.side_by_side import time_calls
from hw.timing import Effort
from hw.torch_threads import torch_threads
from search.chosen import choose_winner, load_winner
from search.results import MeasuredLayerRecord, MeasuredRecord, Results, TimingRecord

#: name of the network whose layers are sparse where that is faster
SPARSE = "sparse where it gains"
_IN_TORCH = ("torch", "torch, channels last")
KERNELS = (*LINEAR_KERNELS, CONV)
_WHOLE = Effort(fewest=45, most=150)


@dataclass(frozen=True)
class MeasureOptions:
    """How a winner is measured.

    Attributes:
        sparse: also with sparse layers, and each layer by itself.
        threads: of one run.
        batch: images in one run.
    """

    sparse: bool = False
    threads: int = 1
    batch: int = 1


def measure_winner(
    job: Path,
    problem: ImageProblem,
    results: Results,
    options: MeasureOptions,
    *,
    agent: str | None = None,
    seed: int | None = None,
    on_layer: Callable[[int, int], None] = lambda done, total: None,
) -> MeasuredRecord:
    """Time the best policy's network of a job, or of one agent or seed of it, beside the dense network.

    Args:
        job: the job's folder.
        problem: of the job.
        results: of the job.
        options: how.
        agent, seed: of which trials; None for all.
        on_layer: called with how many layers are measured, of how many.

    Raises:
        ChoiceError: there is no such winner.
        ValueError: more images at once than there are.
    """
    chosen = choose_winner(results, agent, seed)
    widths = chosen.network.widths
    example = problem.example(options.batch)
    dense = problem.deployed(problem.network)
    pruned = problem.deployed(load_winner(job, problem, results, widths))
    layers: tuple[MeasuredLayerRecord, ...] = ()
    kernels: dict[str, str] | None = None
    if options.sparse:
        layers = measure_layers(pruned, example, options.threads, on_layer)
        kernels = {layer.name: layer.kernel for layer in layers if layer.kernel != LEFT_DENSE}
    times, differences = _whole(dense, pruned, kernels, example, options.threads)
    host = describe_host({name: metadata.version(name) for name in ("torch", "onnxruntime", "numba")})
    return MeasuredRecord(
        agent=chosen.trial.agent,
        seed=chosen.trial.seed,
        widths=widths,
        threads=options.threads,
        batch=options.batch,
        host={"processor": host.processor, "cpus": str(host.cpus)} | dict(host.versions),
        dense={name: times[f"dense {name}"] for name in DENSE if f"dense {name}" in times},
        pruned={name: timing for name, timing in times.items() if not name.startswith("dense ")},
        differences=differences,
        layers=layers,
    )


def measure_layers(
    network: nn.Module, example: torch.Tensor, threads: int, on_layer: Callable[[int, int], None]
) -> tuple[MeasuredLayerRecord, ...]:
    """Each convolution and linear layer that can be sparse and runs, on the input that it gets from the example."""
    layers: dict[str, Layer] = {
        name: module
        for name, module in network.named_modules()
        if type(module) in (nn.Linear, nn.Conv2d) and pads_with_zeros(module)
    }
    inputs = layer_inputs(network, layers, example)  # none of a layer that only training calls
    records = []
    for done, (name, layer) in enumerate((name, layer) for name, layer in layers.items() if name in inputs):
        on_layer(done, len(inputs))
        records.append(_measured_layer(name, layer, inputs[name], threads))
    on_layer(len(inputs), len(inputs))
    return tuple(records)


def _measured_layer(name: str, layer: Layer, x: torch.Tensor, threads: int) -> MeasuredLayerRecord:
    measured = measure_layer(layer, x, threads=threads)
    sparse = best_of(measured.milliseconds, KERNELS)
    dense = best_of(measured.milliseconds, _IN_TORCH)
    if sparse is None or dense is None:
        raise RuntimeError(f"layer {name!r} was not timed both dense and sparse")
    gains = measured.milliseconds[dense] >= SMALLEST_GAIN * measured.milliseconds[sparse]
    return MeasuredLayerRecord(
        name=name,
        described=_described(layer, x),
        density=density_of(layer),
        activation_density=share_of(x),
        kernel=sparse if gains else LEFT_DENSE,
        milliseconds=dict(measured.milliseconds),
        sparse=measured.sparse,
        break_even=measured.break_even,
    )


def _described(layer: Layer, x: torch.Tensor) -> str:
    if isinstance(layer, nn.Linear):
        return f"linear {layer.in_features} to {layer.out_features}"
    kernel, size = ("x".join(map(str, pair)) for pair in (layer.kernel_size, x.shape[-2:]))
    stride = "" if layer.stride == (1, 1) else f", stride {layer.stride[0]}"
    groups = "" if layer.groups == 1 else f", {layer.groups} groups"
    return f"{kernel}, {layer.in_channels} to {layer.out_channels}, at {size}{stride}{groups}"


def _whole(
    dense: nn.Module, pruned: nn.Module, kernels: Mapping[str, str] | None, example: torch.Tensor, threads: int
) -> tuple[dict[str, TimingRecord], dict[str, float]]:
    """Times of all in one interleaved run, those of the dense network with "dense " before; differences of outputs."""
    with torch_threads(threads), torch.inference_mode():
        expected = pruned(example)
        calls = {f"dense {name}": call for name, call in peers(dense, example, threads, dense_only=True).items()}
        winner = peers(pruned, example, threads)
        if kernels is None:
            winner.pop(CSR, None)
        else:
            sparse = sparsify(pruned, example, threads=threads, kernels=kernels).network
            winner[SPARSE] = lambda: sparse(example)
        times = time_calls(calls | winner, effort=_WHOLE)
        outputs = {name: torch.as_tensor(call()) for name, call in winner.items()}
    scale = float(expected.abs().max())
    differences = {name: float((values - expected).abs().max()) / scale for name, values in outputs.items()}
    return {name: TimingRecord(**asdict(timing)) for name, timing in times.items()}, differences
