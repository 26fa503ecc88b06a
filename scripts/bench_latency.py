#!/usr/bin/env python3
r"""Predicted against measured latency, and winners against their budget, on this machine.

For each network, runtime and number of threads: build a latency table, predict random policies, time each twice end to
end. With --searches also: search for that many budgets, time each winner, let one that misses correct the table once.
No files are needed: neither weights nor pixels change how long a network takes, so both are random, and the searches
maximise a stand-in for the accuracy (minus the mean squared ratio) under the real latency budget.

    python scripts/bench_latency.py --networks resnet56 mobilenet_v2 resnet18
    python scripts/bench_latency.py --networks mobilenet_v2 --policies 0 --searches 10
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from agents.local_search import LocalSearch
from amc_env import zoo
from amc_env.evaluation import NetworkProblem
from amc_env.problem import FloatArray, Score, Widths
from amc_env.settings import EvaluationSettings, PruningSettings
from amc_env.splits import DataSplits, Preprocessing, Split
from hw.host import RUNTIME_NAMES, Conditions
from hw.latency_file import load_table, save_table
from hw.latency_table import LatencyTable
from search.latency import TableSize, build_latency_table, time_winners, verify_table

#: pixels, channel counts are multiples of, what stays whole
NETWORKS = {
    "resnet56": (32, 8, ("conv1", "layer2.0.conv2", "layer3.0.conv2")),
    "mobilenet_v2": (224, 16, ()),
    "resnet18": (224, 16, ()),
    "resnet50": (224, 16, ()),
}
MARGIN = 0.01


class WithoutImages(NetworkProblem):
    """A network's decisions and costs, with a stand-in for its error: the mean squared ratio."""

    def score(self, widths: Widths) -> Score:
        return Score(float((self.ratios(widths) ** 2).mean()), None)

    def reconstruction_errors(self) -> tuple[FloatArray, ...]:
        """Exact for the stand-in."""
        count = len(self.decisions)
        return tuple((1.0 - np.array(d.choices) / d.size) ** 2 / count for d in self.decisions)


@dataclass(frozen=True)
class Verified:
    """Predictions of one table. Errors, noise (one network timed twice) and bias are relative."""

    network: str
    conditions: str
    build_seconds: float
    networks_timed: int
    policies: int
    median_error: float
    p95_error: float
    bias: float
    rank_correlation: float
    noise_median: float
    noise_p95: float
    noise_rank_correlation: float
    slowest: float
    lookup_us: float


@dataclass(frozen=True)
class Searched:
    """One search: by how much its winner, timed, exceeds the budget; first as found, then after one correction."""

    network: str
    conditions: str
    budget: float
    over_at_first: float
    over: float
    corrected: bool
    noise: float


def build_problem(name: str, table: LatencyTable | None = None, budget: str | None = None) -> WithoutImages:
    """The network with random weights, and no data to speak of."""
    side, round_to, keep = NETWORKS[name]
    torch.manual_seed(0)
    network = zoo.cifar_resnet(56) if name == "resnet56" else zoo.torchvision_network(name)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, side, side), dtype=np.uint8)
    split = Split(pixels, np.zeros(4, dtype=np.int64), "random pixels")
    return WithoutImages(
        network,
        DataSplits(split, split, split, Preprocessing((0.5,), (0.25,)), digest=""),
        budget={} if budget is None else {"latency_ms": budget},
        reward="error_macs" if budget is None else "error",
        settings=PruningSettings(round_to=round_to, criterion="l1", keep=keep),
        evaluation=EvaluationSettings(fidelity="magnitude", recalibrate_batchnorm=False),
        cost_models=[] if table is None else [table],
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["resnet56", "mobilenet_v2", "resnet18"])
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIME_NAMES, default=["onnxruntime"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--policies", type=int, default=60, help="0: do not verify")
    parser.add_argument("--searches", type=int, default=0)
    parser.add_argument("--tables", type=Path, help="folder in which tables are kept and found again")
    parser.add_argument("--json", action="store_true", help="one JSON object at the end instead of tables")
    options = parser.parse_args()
    lines: list[Verified | Searched] = []
    for name in options.networks:
        for runtime in options.runtimes:
            for threads in options.threads:
                for line in measure(name, Conditions(runtime, threads), options):
                    lines.append(line)
                    if not options.json:
                        sys.stdout.write(f"{_text(line)}\n")
                        sys.stdout.flush()
    if options.json:
        sys.stdout.write(json.dumps({"figures": [{"kind": type(line).__name__, **asdict(line)} for line in lines]}))
        sys.stdout.write("\n")


def measure(name: str, conditions: Conditions, options: argparse.Namespace) -> list[Verified | Searched]:
    """All figures of one network under given conditions."""
    problem = build_problem(name)
    started = time.perf_counter()
    table = _table(name, problem, conditions, options.tables)
    seconds = time.perf_counter() - started
    lines: list[Verified | Searched] = []
    if options.policies:
        lines.append(_verified(name, problem, table, seconds, options.policies))
    shares = np.linspace(0.8, 0.35, options.searches) if options.searches else []
    return lines + [_searched(name, table, float(share)) for share in shares]


def _table(name: str, problem: NetworkProblem, conditions: Conditions, folder: Path | None) -> LatencyTable:
    path = None if folder is None else folder / f"{name}-{conditions.runtime}-{conditions.threads}.json"
    if path is not None and path.exists():
        return load_table(path)
    table = build_latency_table(problem, conditions, TableSize())
    if path is not None:
        save_table(table, path)
    return table


def _verified(name: str, problem: NetworkProblem, table: LatencyTable, seconds: float, policies: int) -> Verified:
    checked = verify_table(problem, table, policies)
    errors, noise = np.abs(checked.errors), np.abs(checked.noise)
    cost = problem.channels.cost_of_widths(table.bind(problem.layers))
    rounds = []
    for _ in range(20):
        started = time.perf_counter()
        for network in checked.networks:
            cost(network.widths)
        rounds.append((time.perf_counter() - started) / len(checked.networks))
    return Verified(
        name,
        str(table.conditions),
        seconds,
        len(table.networks),
        policies,
        float(np.median(errors)),
        float(np.percentile(errors, 95)),
        float(checked.errors.mean()),
        checked.rank_correlation,
        float(np.median(noise)),
        float(np.percentile(noise, 95)),
        checked.noise_rank_correlation,
        max(checked.speeds),
        1e6 * float(np.percentile(rounds, 10)),
    )


def _searched(name: str, table: LatencyTable, share: float) -> Searched:
    """Search for a share of the dense latency, as a job does: a margin below it, and one correction."""
    limit = share * build_problem(name, table, "100%").dense_costs["latency_ms"]
    first = over = 0.0
    for turn in (0, 1):
        problem = build_problem(name, table, f"{100 * share * (1 - MARGIN)}%")
        best = LocalSearch().search(problem, max_evaluations=60, seed=0, on_evaluation=lambda _: None)
        if best is None:
            raise RuntimeError("local search found no feasible policy")
        timed = time_winners(problem, table, [best.widths])
        (winner,) = timed.winners
        over = winner.measured_ms / limit - 1.0
        first = over if turn == 0 else first
        if over <= 0 or turn == 1:
            break
        table = table.refined(winner.predicted_ms, winner.measured_ms, problem.dense_costs["latency_ms"])
    noise = timed.dense.p10 / timed.again.p10 - 1.0
    return Searched(name, str(table.conditions), share, first, over, turn == 1, noise)


def _text(line: Verified | Searched) -> str:
    if isinstance(line, Searched):
        corrected = f"{100 * line.over_at_first:+.1f} %, corrected once, then " if line.corrected else ""
        return (
            f"{line.network}, {line.conditions}: budget {100 * line.budget:.0f} % of dense; measured / budget: "
            f"{corrected}{100 * line.over:+.1f} % (the dense network twice: {100 * line.noise:+.1f} %)"
        )
    return (
        f"{line.network}, {line.conditions}: {line.policies} policies: median error {100 * line.median_error:.2f} %, "
        f"95 % {100 * line.p95_error:.2f} %, bias {100 * line.bias:+.2f} %, rank correlation "
        f"{line.rank_correlation:.4f}\n"
        f"    the same network twice: median {100 * line.noise_median:.2f} %, 95 % {100 * line.noise_p95:.2f} %, rank "
        f"correlation {line.noise_rank_correlation:.4f}; machine up to {line.slowest:.2f} times as slow as for the "
        f"table\n"
        f"    table: {line.networks_timed} networks in {line.build_seconds:.0f} s; {line.lookup_us:.0f} us a look-up"
    )


if __name__ == "__main__":
    main()
