r"""Make a recorded problem of evaluations: fit the surrogate, measure it on plans left out, write the recording.

    python scripts/fit_recording.py examples/resnet56-compare.yaml --set network.weights=... --set data.path=... \
        --plans resnet56.jsonl --journal runs/half/trials/*/evaluations.jsonl --out amc_env/recordings/NAME.npz

Plans come from `scripts/record_problem.py`, and from journals of searches on the same network and fidelity. Prints how
far the surrogate is from the evaluation on plans that it had not seen.
"""

from __future__ import annotations

import argparse
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from amc_env.evaluation import NetworkProblem
from amc_env.matern import distances, matern
from amc_env.problem import Widths
from amc_env.recorded import Fit, Recording, Surrogate
from search.build import build_problem, load_data
from search.latency import rank_correlation
from search.spec import load_spec

_LENGTHS, _NOISES, _FOLDS = (0.5, 1.0, 2.0, 4.0, 8.0), (1e-3, 1e-2, 1e-1), 10


def main() -> None:
    """Read, fit, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--plans", type=Path, nargs="*", default=[], help="written by record_problem.py")
    parser.add_argument("--journal", type=Path, nargs="*", default=[], help="evaluations.jsonl of trials")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    spec = load_spec(options.spec, options.overrides)
    problem = build_problem(spec, load_data(spec))
    if not isinstance(problem, NetworkProblem):
        raise SystemExit(f"{options.spec}: expected a network that loses channels")
    drawn, scored = read(options.plans), read([*options.plans, *options.journal])
    random = np.array([widths in drawn for widths in scored])
    plans = np.array(list(scored), dtype=np.int64)
    ratios = 1.0 - plans / np.array(problem.dense_widths)
    measured = np.array(list(scored.values()))
    errors = {"top1": 1.0 - measured[:, 1]}
    if spec.evaluation.objective != "top1":
        errors[spec.evaluation.objective] = measured[:, 0]
    surrogates, fits = {}, {}
    for name, values in errors.items():
        floor = values[values > 0.0].min()
        logs = np.log(np.maximum(values, floor))
        length, noise = choose(ratios, logs)
        foretold = left_out(ratios, logs, length, noise)
        fits[name] = Fit(
            len(plans), *agreement(foretold, values), len(drawn), *agreement(foretold[random], values[random])
        )
        mean, weights = solve(ratios, logs, length, noise)
        surrogates[name] = Surrogate(mean, length, weights, float(floor), float(values.max()))
        fit = fits[name]
        click.echo(
            f"{name}: {len(plans)} plans, length {length}, noise {noise}; left out: rmse {fit.rmse:.4f}, spread "
            f"{fit.spread:.4f}, rank correlation {fit.rank:.3f}; of the {fit.drawn_plans} drawn at all budgets "
            f"{fit.drawn_rmse:.4f}, {fit.drawn_spread:.4f}, {fit.drawn_rank:.3f}"
        )
    source = spec.content()
    for section, key in (("network", "weights"), ("data", "path"), ("data", "labels")):
        if source[section].get(key) is not None:
            source[section][key] = Path(source[section][key]).name
    kept = {name: source[name] for name in ("network", "data", "pruning", "evaluation")}
    versions = {name: metadata.version(name) for name in ("amc-search", "torch")}
    Recording(
        {**kept, "versions": versions}, problem.decisions, problem.layers, problem.cost_map,
        plans, errors, problem.reconstruction_errors(), surrogates, fits,
    ).save(options.out)  # fmt: skip
    click.echo(f"{options.out}: {options.out.stat().st_size:,} bytes")


def read(files: list[Path]) -> dict[Widths, tuple[float, float]]:
    """Error and accuracy of each plan that was looked at whole."""
    scored: dict[Widths, tuple[float, float]] = {}
    for file in files:
        for line in file.read_text().splitlines():
            entry: dict[str, Any] = json.loads(line)
            if entry["accuracy"] is not None and entry.get("fraction", 1.0) == 1.0:
                scored.setdefault(tuple(entry["widths"]), (entry["error"], entry["accuracy"]))
    return scored


def solve(
    ratios: NDArray[np.float64], logs: NDArray[np.float64], length: float, noise: float
) -> tuple[float, NDArray[np.float64]]:
    """Mean and weights of the process."""
    mean = float(logs.mean())
    weights = np.linalg.solve(matern(distances(ratios, ratios) / length) + noise * np.eye(len(logs)), logs - mean)
    return mean, np.asarray(weights, dtype=np.float64)


def choose(ratios: NDArray[np.float64], logs: NDArray[np.float64]) -> tuple[float, float]:
    """Length and noise of the largest marginal likelihood on a grid (Rasmussen and Williams 2006, equation 2.30)."""
    best, most = (1.0, 1e-2), -np.inf
    centred = logs - logs.mean()
    for length in _LENGTHS:
        for noise in _NOISES:
            root = np.linalg.cholesky(matern(distances(ratios, ratios) / length) + noise * np.eye(len(logs)))
            half = np.linalg.solve(root, centred)
            likelihood = -0.5 * len(logs) * np.log(half @ half / len(logs)) - np.log(np.diag(root)).sum()
            if likelihood > most:
                best, most = (length, noise), likelihood
    return best


def left_out(
    ratios: NDArray[np.float64], logs: NDArray[np.float64], length: float, noise: float
) -> NDArray[np.float64]:
    """Every plan's error, foretold by the nine tenths that it is not in."""
    order = np.random.default_rng(0).permutation(len(logs))
    foretold = np.empty(len(logs))
    for part in np.array_split(order, _FOLDS):
        rest = np.setdiff1d(order, part)
        mean, weights = solve(ratios[rest], logs[rest], length, noise)
        foretold[part] = np.exp(mean + matern(distances(ratios[part], ratios[rest]) / length) @ weights)
    return foretold


def agreement(foretold: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Root of the mean squared difference, spread of the values, and rank correlation."""
    if len(values) < 2:
        return (0.0, 0.0, 0.0)
    rmse = float(np.sqrt(((foretold - values) ** 2).mean()))
    return rmse, float(values.std()), rank_correlation(foretold.tolist(), values.tolist())


if __name__ == "__main__":
    main()
