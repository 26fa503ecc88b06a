r"""Make a recorded problem of evaluations: fit the surrogate, measure it on plans left out, write the recording.

    python scripts/fit_recording.py examples/resnet56-compare.yaml --set network.weights=... --set data.path=... \
        --plans resnet56.jsonl --journal runs/half/trials/*/evaluations.jsonl --out amc_env/recordings/NAME.npz

Plans come from `scripts/record_problem.py`, and from journals of searches on the same network and fidelity. Prints how
far the surrogate is from the evaluation on plans that it had not seen.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from amc_env.evaluation import NetworkProblem
from amc_env.matern import distances, matern
from amc_env.problem import Widths
from amc_env.recorded import LINKS, Fit, Link, Recording, Surrogate
from search.build import build_problem, load_data
from search.rank_correlation import spearman
from search.spec import load_spec

Array = NDArray[np.float64]
_LENGTHS, _NOISES, _FOLDS = (0.5, 1.0, 2.0, 4.0, 8.0), (1e-3, 1e-2, 1e-1), 10
_MOST, _LEAST = 800, 1e-6  # plans that lengths are fitted to, noise


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
        inner = values[(values > 0.0) & (values < 1.0)] if name == "top1" else values[values > 0.0]
        link: Link = "logit" if name == "top1" else "log"
        linked = LINKS[link][0](values.clip(inner.min(), inner.max()))
        tried = {choose: LINKS[link][1](left_out(ratios, linked, choose)) for choose in (one_length, a_length_for_each)}
        choose, foretold = min(tried.items(), key=lambda item: float(((item[1] - values) ** 2).mean()))
        fits[name] = Fit(
            len(plans), *agreement(foretold, values), len(drawn), *agreement(foretold[random], values[random])
        )
        lengths, noise = choose(ratios, linked)
        mean, weights = solve(ratios / lengths, linked, noise)
        surrogates[name] = Surrogate(link, mean, lengths, weights, float(inner.min()), float(inner.max()))
        fit = fits[name]
        click.echo(
            f"{name}: {len(plans)} plans, {choose.__name__.replace('_', ' ')}: {lengths.min():.2f} to "
            f"{lengths.max():.2f}, noise {noise:.2g}; left out: rmse {fit.rmse:.4f}, spread {fit.spread:.4f}, rank "
            f"correlation {fit.rank:.3f}; of the {fit.drawn_plans} drawn at all budgets {fit.drawn_rmse:.4f}, "
            f"{fit.drawn_spread:.4f}, {fit.drawn_rank:.3f}"
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


def solve(points: Array, linked: Array, noise: float) -> tuple[float, Array]:
    """Mean and weights of the process at points in lengths."""
    mean = float(linked.mean())
    weights = np.linalg.solve(matern(distances(points, points)) + noise * np.eye(len(linked)), linked - mean)
    return mean, np.asarray(weights, dtype=np.float64)


def one_length(ratios: Array, linked: Array) -> tuple[Array, float]:
    """Length and noise of the largest marginal likelihood on a grid (Rasmussen and Williams 2006, equation 2.30)."""
    best, most = (1.0, 1e-2), -np.inf
    centred = linked - linked.mean()
    for length in _LENGTHS:
        for noise in _NOISES:
            root = np.linalg.cholesky(matern(distances(ratios, ratios) / length) + noise * np.eye(len(linked)))
            half = np.linalg.solve(root, centred)
            likelihood = -0.5 * len(linked) * np.log(half @ half / len(linked)) - np.log(np.diag(root)).sum()
            if likelihood > most:
                best, most = (length, noise), likelihood
    return np.full(ratios.shape[1], best[0]), best[1]


def a_length_for_each(ratios: Array, linked: Array) -> tuple[Array, float]:
    """Lengths and noise by climbing the same likelihood, of at most `_MOST` plans.

    The logarithms of the lengths are normal around that of 2 with variance 2, which keeps them where plans say little.
    """
    some = np.random.default_rng(0).permutation(len(linked))[:_MOST]
    points, values = torch.from_numpy(ratios[some]), torch.from_numpy(linked[some] - linked[some].mean())
    logs = torch.full((ratios.shape[1] + 1,), np.log(2.0), dtype=torch.float64)
    logs[-1] = np.log(1e-2)
    logs.requires_grad_()

    def loss() -> torch.Tensor:
        scaled = points / logs[:-1].exp()
        squares = (scaled**2).sum(1)[:, None] + (scaled**2).sum(1) - 2.0 * scaled @ scaled.T
        far = np.sqrt(5.0) * squares.clamp(min=1e-12).sqrt()
        kernel = (1.0 + far + far**2 / 3.0) * torch.exp(-far)
        root = torch.linalg.cholesky(kernel + (logs[-1].exp() + _LEAST) * torch.eye(len(values), dtype=torch.float64))
        explained = values @ torch.cholesky_solve(values[:, None], root)[:, 0]
        prior = 0.25 * ((logs[:-1] - np.log(2.0)) ** 2).sum()
        likelihood: torch.Tensor = 0.5 * len(values) * (explained / len(values)).log() + root.diagonal().log().sum()
        optimizer.zero_grad()
        (likelihood + prior).backward()  # type: ignore[no-untyped-call]
        return likelihood + prior

    optimizer = torch.optim.LBFGS([logs], max_iter=60, line_search_fn="strong_wolfe")
    optimizer.step(loss)  # type: ignore[no-untyped-call]
    found = logs.detach().exp().numpy()
    return found[:-1], float(found[-1] + _LEAST)


def left_out(ratios: Array, linked: Array, choose: Callable[[Array, Array], tuple[Array, float]]) -> Array:
    """Every plan's error, linked, foretold by the nine tenths that it is not in, which choose lengths and noise too."""
    order = np.random.default_rng(0).permutation(len(linked))
    foretold = np.empty(len(linked))
    for part in np.array_split(order, _FOLDS):
        rest = np.setdiff1d(order, part)
        lengths, noise = choose(ratios[rest], linked[rest])
        known = ratios[rest] / lengths
        mean, weights = solve(known, linked[rest], noise)
        foretold[part] = mean + matern(distances(ratios[part] / lengths, known)) @ weights
    return foretold


def agreement(foretold: Array, values: Array) -> tuple[float, float, float]:
    """Root of the mean squared difference, spread of the values, and rank correlation."""
    if len(values) < 2:
        return (0.0, 0.0, 0.0)
    rmse = float(np.sqrt(((foretold - values) ** 2).mean()))
    return rmse, float(values.std()), spearman(foretold.tolist(), values.tolist())


if __name__ == "__main__":
    main()
