#!/usr/bin/env python3
r"""Sparse kernels against the libraries that are installed, on the nine layers of the EIE paper; ratios within one run.

    python scripts/bench_sparse.py vector             # one input, weights in the cache ("hot") and not ("cold")
    python scripts/bench_sparse.py batch              # 64 inputs
    python scripts/bench_sparse.py conv               # two convolutions at several densities
    python scripts/bench_sparse.py chain              # AlexNet's three linear layers, one after the other
    python scripts/bench_sparse.py vector --layers Alex-8 VGG-8 --json
    python scripts/bench_sparse.py vector --busy      # on a machine that others use: one thread, and its own time only

Weights are random, with the paper's sizes and densities and 15 shared values; activations have the paper's density.
All results are compared with the dense product before they are timed. Times are the 10th percentile of many interleaved
runs, in microseconds; a ratio is how many times faster the best of our kernels is.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from _sparse_peers import (
    DENSE_PEERS,
    INT8,
    SPARSE_PEERS,
    Call,
    dense_peers,
    onnx_session,
    read_all,
    rows_of,
    sparse_peers,
)
from threadpoolctl import threadpool_limits
from torch import nn

from hw.eie.paper import PAPER_LAYERS, PaperLayer
from hw.sparse import BatchMatrix, ColumnMatrix, ConvMatrix, LaneMatrix, SparseLinear, SparseRows, Window
from hw.sparse.rows import aligned_zeros
from hw.timing import Effort, latency, time_interleaved

OURS = "ours: "
CONVOLUTIONS = {"3x3, 64->64 at 32x32": (64, 64, 3, 32), "1x1, 128->256 at 14x14": (128, 256, 1, 14)}
DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.4)
_COLD_BYTES = 96 * 2**20
_TOLERANCE = {INT8: 0.05}
_SHORTEST_RUN = 4e-4


@dataclass
class Contender:
    """A call that is timed; `cold` empties the caches before each."""

    call: Call
    clock: Callable[[], float]
    cold: bool = False
    calls: int = 1

    def __post_init__(self) -> None:
        if not self.cold:
            start = self.clock()
            self.call()
            self.calls = max(int(_SHORTEST_RUN / max(self.clock() - start, 1e-6)), 1)

    def run(self) -> float:
        """Milliseconds of one call."""
        if self.cold:
            _TRASH.add_(1.0)
        start = self.clock()
        for _ in range(self.calls):
            self.call()
        return (self.clock() - start) * 1e3 / self.calls


_TRASH = torch.zeros(0)


def measure(calls: Mapping[str, Call], options: argparse.Namespace, *, cold: bool = False) -> dict[str, float]:
    """Microseconds of each call, interleaved."""
    global _TRASH
    _TRASH = torch.zeros(_COLD_BYTES // 4 if cold else 0)
    runs = max(options.runs // 3, 3) if cold else options.runs
    effort = Effort(runs, runs)
    contenders = [
        Contender(call, time.thread_time if options.busy else time.perf_counter, cold) for call in calls.values()
    ]
    times = time_interleaved(contenders, effort, rng=np.random.default_rng(0), pause=options.pause)
    return {name: 1e3 * latency(samples) for name, samples in zip(calls, times, strict=True)}


def check(calls: Mapping[str, Call], expected: np.ndarray) -> None:
    """All calls yield the same, within float32 rounding (int8: 5 %)."""
    for name, call in calls.items():
        actual = np.asarray(call(), dtype=np.float64).reshape(expected.shape)
        error = np.abs(actual - expected).max() / np.abs(expected).max()
        if not error < _TOLERANCE.get(name, 2e-5):
            raise SystemExit(f"{name}: differs by {error:.1e} of the largest result")


def best(times: Mapping[str, float], names: Sequence[str]) -> float:
    """The shortest time among the names that are there."""
    return min(times[name] for name in names if name in times)


def ours(times: Mapping[str, float]) -> float:
    """The shortest time of our kernels."""
    return min(value for name, value in times.items() if name.startswith(OURS))


def ratios(times: Mapping[str, float]) -> dict[str, float]:
    """How many times faster ours is."""
    own = ours(times)
    compared = {"best sparse": SPARSE_PEERS, "best dense float32": DENSE_PEERS}
    result = {name: best(times, peers) / own for name, peers in compared.items() if set(peers) & set(times)}
    single = (INT8, "torch CSR int32", "scipy CSR", "torch CSR of patches")
    return result | {name: times[name] / own for name in single if name in times}


def bandwidth(size_bytes: int, options: argparse.Namespace) -> float:
    """GB/s at which memory of this size is read by all threads, again and again, with 512-bit loads."""
    memory = aligned_zeros(-(-size_bytes // 512) * 128, np.float32)
    return memory.nbytes / measure({"read": partial(read_all, memory, options.threads)}, options)["read"] / 1e3


def bench_vector(layers: Sequence[PaperLayer], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One input: hot and cold."""
    table = []
    for layer in layers:
        rng = np.random.default_rng(0)
        matrix, x = rows_of(layer, rng), layer.activations(rng)
        weight, threads = matrix.to_dense(), options.threads
        lanes, columns = LaneMatrix.pack(matrix), ColumnMatrix.pack(matrix)
        floats = LaneMatrix.pack(matrix, shared=False)
        calls: dict[str, Call] = {
            f"{OURS}lanes": partial(lanes.matvec, x, threads=threads),
            f"{OURS}columns": partial(columns.matvec, x, threads=threads),
            "unshared lanes": partial(floats.matvec, x, threads=threads),
            **sparse_peers(matrix, x[None]),
            **dense_peers(weight, x[None], threads),
        }
        check(calls, weight.astype(np.float64) @ x)
        hot = measure(calls, options)
        cold = measure({name: calls[name] for name in calls if name != "scipy CSC"}, options, cold=True)
        read = lanes.size_bytes / hot[f"{OURS}lanes"] / 1e3
        limit = bandwidth(lanes.size_bytes, options)
        line = {
            "layer": layer.name, "hot_us": hot, "cold_us": cold, "hot": ratios(hot), "cold": ratios(cold),
            "megabytes": lanes.size_bytes / 1e6, "GB/s": read, "of the cache's": read / limit,
        }  # fmt: skip
        table.append(line)
        report(line, options)
    return table


def bench_batch(layers: Sequence[PaperLayer], options: argparse.Namespace) -> list[dict[str, Any]]:
    """64 inputs."""
    table = []
    for layer in layers:
        rng = np.random.default_rng(0)
        matrix = rows_of(layer, rng)
        x = np.stack([layer.activations(rng) for _ in range(64)])
        weight, panels = matrix.to_dense(), BatchMatrix.pack(matrix)
        calls: dict[str, Call] = {
            f"{OURS}panels": partial(panels.matmul, x, threads=options.threads),
            **{name: call for name, call in sparse_peers(matrix, x).items() if name != "scipy CSC"},
            **dense_peers(weight, x, options.threads),
        }
        check(calls, x.astype(np.float64) @ weight.T)
        times = measure(calls, options)
        useful = 2 * 64 * len(matrix.values) / ours(times) / 1e3
        line = {"layer": layer.name, "hot_us": times, "hot": ratios(times), "GFLOP/s": useful}
        table.append(line)
        report(line, options)
    return table


def bench_conv(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Two convolutions."""
    table = []
    for name, (inputs, outputs, side, pixels) in CONVOLUTIONS.items():
        for density in DENSITIES:
            rng = np.random.default_rng(0)
            shape, pad = (outputs, inputs, side, side), side // 2
            weight = np.where(rng.random(shape) < density, rng.standard_normal(shape), 0).astype(np.float32)
            x = rng.standard_normal((1, inputs, pixels, pixels)).astype(np.float32)
            matrix = SparseRows.from_dense(weight.reshape(outputs, -1))
            sparse = ConvMatrix.pack(matrix, inputs, Window((side, side), padding=(pad, pad)))
            tw, tx = torch.from_numpy(weight), torch.from_numpy(x)
            lw, lx = (tensor.to(memory_format=torch.channels_last) for tensor in (tw, tx))
            session = onnx_session(weight, options.threads, ("Conv", {"pads": [pad] * 4}))
            parts = (matrix.indptr.astype(np.int32), matrix.indices, matrix.values)
            csr = torch.sparse_csr_tensor(*(torch.from_numpy(part) for part in parts), matrix.shape)
            calls: dict[str, Call] = {
                f"{OURS}conv": partial(sparse.apply, x, threads=options.threads),
                "torch dense": partial(nn.functional.conv2d, tx, tw, padding=pad),
                "torch dense channels last": partial(nn.functional.conv2d, lx, lw, padding=pad),
                "onnxruntime dense": lambda s=session, x=x: s.run(None, {"x": x})[0],
                "torch CSR of patches": lambda m=csr, x=tx, k=side, p=pad: m @ nn.functional.unfold(x, k, padding=p)[0],
            }
            check(calls, nn.functional.conv2d(tx.double(), tw.double(), padding=pad).numpy())
            times = measure(calls, options)
            line = {
                "layer": f"{name}, density {density}", "hot_us": times,
                "hot": ratios(times),
                "GFLOP/s": 2 * len(matrix.values) * pixels**2 / ours(times) / 1e3,
            }  # fmt: skip
            table.append(line)
            report(line, options)
    return table


def bench_chain(options: argparse.Namespace) -> list[dict[str, Any]]:
    """AlexNet's linear layers with ReLU between them, one input; biases keep the activations at the paper's density."""
    rng = np.random.default_rng(0)
    chain = [layer for layer in PAPER_LAYERS if layer.name.startswith("Alex")]
    x = torch.from_numpy(chain[0].activations(rng))[None]
    linears = []
    values = x
    for place, layer in enumerate(chain):
        linear = nn.Linear(layer.inputs, layer.outputs)
        linear.weight.data = torch.from_numpy(rows_of(layer, rng).to_dense())
        with torch.inference_mode():
            linear.bias.data.zero_()
            values = linear(values)
            if place + 1 < len(chain):
                linear.bias.data -= torch.quantile(values, 1 - chain[place + 1].activation_density)
                values = torch.relu(values + linear.bias)
        linears.append(linear)

    def network(layers: Sequence[Callable[[torch.Tensor], torch.Tensor]]) -> nn.Module:
        parts = [part for layer in layers for part in (layer, nn.ReLU())][:-1]
        return nn.Sequential(*parts).eval()

    class Csr(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            matrix = SparseRows.from_dense(linear.weight.detach().numpy())
            parts = (matrix.indptr.astype(np.int32), matrix.indices, matrix.values)
            self.weight = torch.sparse_csr_tensor(*(torch.from_numpy(part) for part in parts), matrix.shape)
            self.bias = linear.bias.detach()[:, None]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.weight @ x.T + self.bias).T

    dense = network(linears)
    sparse = network([SparseLinear.from_linear(linear, kernel="lanes", threads=options.threads) for linear in linears])
    csr = network([Csr(linear) for linear in linears])
    int8 = torch.ao.quantization.quantize_dynamic(dense, {nn.Linear}, dtype=torch.qint8)
    calls: dict[str, Call] = {
        f"{OURS}SparseLinear": lambda: sparse(x),
        "torch dense": lambda: dense(x),
        "torch CSR int32": lambda: csr(x),
        INT8: lambda: int8(x),
    }
    check({name: call for name, call in calls.items() if name != INT8}, dense(x).detach().double().numpy())
    times = measure(calls, options)
    line = {"layer": "AlexNet FC6-8", "hot_us": times, "hot": ratios(times)}
    report(line, options)
    return [line]


def say(text: str) -> None:
    """A line on the terminal."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def report(line: Mapping[str, Any], options: argparse.Namespace) -> None:
    """One line of a table, as text."""
    if options.json:
        return
    say(f"\n{line['layer']}")
    for state in ("hot", "cold"):
        if f"{state}_us" in line:
            times = ", ".join(f"{name} {value:.1f}" for name, value in line[f"{state}_us"].items())
            factors = ", ".join(f"{name} {value:.2f}" for name, value in line[state].items())
            say(f"  {state}, us: {times}\n  {state}, times faster than: {factors}")
    for name in ("megabytes", "GB/s", "of the cache's", "GFLOP/s"):
        if name in line:
            say(f"  {name}: {line[name]:.2f}")


def summary(table: Sequence[Mapping[str, Any]], state: str) -> dict[str, tuple[float, float]]:
    """Smallest ratio and geometric mean over the layers."""
    names = table[0].get(state, {})
    columns = {name: np.array([line[state][name] for line in table]) for name in names}
    return {name: (float(column.min()), float(np.exp(np.log(column).mean()))) for name, column in columns.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("vector", "batch", "conv", "chain"))
    parser.add_argument("--layers", nargs="+", choices=[layer.name for layer in PAPER_LAYERS], help="default: all nine")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--runs", type=int, default=45, help="timed runs of each kernel; a third of them cold")
    parser.add_argument(
        "--pause",
        type=float,
        default=0.004,
        help="seconds between two libraries, whose threads spin for a while after a call",
    )
    parser.add_argument("--busy", action="store_true", help="one thread, timed by what it runs, not by the clock")
    parser.add_argument("--json", action="store_true", help="one JSON object at the end instead of text")
    options = parser.parse_args()
    options.threads = 1 if options.busy else options.threads
    torch.set_num_threads(options.threads)
    layers = [layer for layer in PAPER_LAYERS if not options.layers or layer.name in options.layers]
    with torch.inference_mode(), threadpool_limits(options.threads):
        if options.table == "vector":
            table = bench_vector(layers, options)
        elif options.table == "batch":
            table = bench_batch(layers, options)
        else:
            table = bench_conv(options) if options.table == "conv" else bench_chain(options)
    totals = {state: summary(table, state) for state in ("hot", "cold") if state in table[0]}
    if options.json:
        say(json.dumps({"table": table, "threads": options.threads, "busy": options.busy, "smallest, mean": totals}))
        return
    for state, columns in totals.items():
        for name, (smallest, mean) in columns.items():
            say(f"{state}, {name}: at least {smallest:.2f}, geometric mean {mean:.2f}")


if __name__ == "__main__":
    main()
