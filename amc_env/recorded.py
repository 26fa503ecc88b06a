"""Recorded problems: a surrogate in the place of a real network, fitted to evaluations of it that were recorded.

A recording is one .npz file. It holds the decisions, the shapes of the layers and how costs follow from the widths, so
that costs are exact; evaluated plans with their scores, which are an offline data set too (`Recording.plans`); and for
each objective a Gaussian process of the error's log or logit over the ratios, of which only the mean is used. How far
that is from the real evaluation was measured on plans it had not seen, and stands in the recording (`Recording.fits`).

What is recorded is how plans differ where they were evaluated: far from them, and below the smallest cost among them,
the surrogate falls back to the mean of what it knows. A search on it may find plans that are better only there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from amc_env.cost_map import ChannelMap
from amc_env.matern import matern
from amc_env.problem import Decision, FloatArray, PruningProblem, RewardForm, Score, Widths
from hw.files import read_npz, write_npz
from hw.layers import LayerShape

_VERSION = 1
Link = Literal["log", "logit"]
_ARRAYS = ("lengths", "weights")
#: of errors, and back
LINKS: Mapping[Link, tuple[Callable[[FloatArray], FloatArray], Callable[[FloatArray], FloatArray]]] = {
    "log": (np.log, np.exp),
    "logit": (lambda errors: np.log(errors / (1.0 - errors)), lambda linked: 1.0 / (1.0 + np.exp(-linked))),
}
_MAP = ("fixed_in", "in_per_unit", "fixed_out", "out_per_unit")


@dataclass(frozen=True)
class Fit:
    """How well the surrogate of one objective foretells evaluations of plans that it has not seen.

    Attributes:
        plans: how many were left out, ten times a tenth.
        rmse: root of the mean squared difference of the errors.
        spread: standard deviation of the recorded errors, which is what no surrogate at all would come to.
        rank: Spearman's rank correlation.
        drawn_plans, drawn_rmse, drawn_spread, drawn_rank: the same of those plans alone that were drawn at random at
            all budgets; the others are of searches at one.
    """

    plans: int
    rmse: float
    spread: float
    rank: float
    drawn_plans: int
    drawn_rmse: float
    drawn_spread: float
    drawn_rank: float


@dataclass(frozen=True)
class Surrogate:
    """The error e with link(e) = mean + sum_i weights_i * k(|(ratios - points_i) / lengths|), k the Matern 5/2 kernel.

    Attributes:
        link: "log" of e, or "logit", log(e / (1 - e)).
        mean: of link(e).
        lengths: in ratios, for each decision, float64 (decisions,).
        weights: float64 (plans,).
        smallest, largest: errors among the recorded; the surrogate stays between them.
    """

    link: Link
    mean: float
    lengths: FloatArray
    weights: FloatArray
    smallest: float
    largest: float

    def __call__(self, distances: FloatArray) -> float:
        """The error of a plan, given its distances in lengths from those recorded, float64 (plans,)."""
        linked = self.mean + matern(distances) @ self.weights
        return float(np.clip(LINKS[self.link][1](linked), self.smallest, self.largest))


@dataclass(frozen=True)
class Recording:
    """What was recorded of a network.

    Attributes:
        source: how it came about: network, data, fidelity, versions.
        decisions, layers, cost_map: of the problem.
        plans: widths of the evaluated plans, int64 (plans, decisions).
        errors: by objective, float64 (plans,).
        curves: `reconstruction_errors` of the problem.
        surrogates, fits: by objective.
    """

    source: Mapping[str, Any]
    decisions: tuple[Decision, ...]
    layers: tuple[LayerShape, ...]
    cost_map: ChannelMap
    plans: NDArray[np.int64]
    errors: Mapping[str, FloatArray]
    curves: tuple[FloatArray, ...]
    surrogates: Mapping[str, Surrogate]
    fits: Mapping[str, Fit]

    @cached_property
    def ratios(self) -> FloatArray:
        """Of the evaluated plans, float64 (plans, decisions)."""
        ratios: FloatArray = 1.0 - self.plans / np.array([decision.size for decision in self.decisions])
        return ratios

    def save(self, path: Path) -> None:
        """Write as .npz, whole or not at all."""
        described = {
            "version": _VERSION,
            "source": dict(self.source),
            "decisions": [{"name": each.name, "size": each.size, "choices": each.choices} for each in self.decisions],
            "firsts": [self.layers.index(each.layer) for each in self.decisions],
            "layers": [asdict(layer) for layer in self.layers],
            "surrogates": {
                name: {key: value for key, value in asdict(each).items() if key not in _ARRAYS}
                for name, each in self.surrogates.items()
            },
            "fits": {name: asdict(fit) for name, fit in self.fits.items()},
        }
        arrays: dict[str, Any] = {name: getattr(self.cost_map, name) for name in _MAP}
        arrays |= {f"error.{name}": errors for name, errors in self.errors.items()}
        arrays |= {f"{key}.{name}": getattr(each, key) for name, each in self.surrogates.items() for key in _ARRAYS}
        smallest = np.uint8 if self.plans.max() < 256 else np.uint16
        arrays |= {"about": np.array(json.dumps(described)), "plans": self.plans.astype(smallest)}
        write_npz(path, arrays | {"curves": np.concatenate(self.curves)}, compressed=True)

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is no recording of this version.
        """
        try:
            arrays: dict[str, Any] = dict(read_npz(path))
            about = json.loads(str(arrays["about"]))
            version = about["version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: expected a recording written by Recording.save ({error!r})") from error
        if version != _VERSION:
            raise ValueError(f"{path}: expected a recording of version {_VERSION}, got version {version!r}")
        layers = tuple(_layer(layer) for layer in about["layers"])
        decisions = tuple(
            Decision(each["name"], each["size"], tuple(each["choices"]), layers[first])
            for each, first in zip(about["decisions"], about["firsts"], strict=True)
        )
        ends = np.cumsum([len(decision.choices) for decision in decisions])
        return cls(
            source=about["source"],
            decisions=decisions,
            layers=layers,
            cost_map=ChannelMap(**{name: arrays[name] for name in _MAP}),
            plans=arrays["plans"].astype(np.int64),
            errors={name: arrays[f"error.{name}"] for name in about["surrogates"]},
            curves=tuple(np.split(arrays["curves"], ends[:-1])),
            surrogates={
                name: Surrogate(**each, **{key: arrays[f"{key}.{name}"] for key in _ARRAYS})
                for name, each in about["surrogates"].items()
            },
            fits={name: Fit(**fit) for name, fit in about["fits"].items()},
        )


def _layer(content: dict[str, Any]) -> LayerShape:
    pairs: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
    }
    return LayerShape(**pairs)


class RecordedProblem(PruningProblem):
    """A recorded network: exact costs, errors by the surrogate in a tenth of a millisecond.

    Args:
        recording: see `Recording`.
        objective: one that was recorded: "top1", or "agreement" with the dense network.
        budget, reward: as of `PruningProblem`; half the MACs unless told.

    Raises:
        ValueError: the objective was not recorded.
    """

    def __init__(
        self,
        recording: Recording,
        *,
        objective: str = "top1",
        budget: Mapping[str, float | str] | None = None,
        reward: RewardForm = "error",
    ) -> None:
        if objective not in recording.surrogates:
            raise ValueError(f"objective: expected one of {', '.join(recording.surrogates)}, got {objective!r}")
        self.recording, self.objective = recording, objective
        self._surrogate = recording.surrogates[objective]
        self._points = recording.ratios / self._surrogate.lengths
        self._squares = (self._points**2).sum(axis=1)
        super().__init__(
            recording.decisions,
            recording.layers,
            recording.cost_map,
            budget={"macs": "50%"} if budget is None else budget,
            reward=reward,
        )

    def score(self, widths: Widths) -> Score:
        ratios = self.ratios(widths) / self._surrogate.lengths
        squares = self._squares - 2.0 * (self._points @ ratios) + ratios @ ratios
        error = self._surrogate(np.sqrt(np.maximum(squares, 0.0)))
        return Score(error, 1.0 - error if self.objective == "top1" else None)

    def reconstruction_errors(self) -> tuple[FloatArray, ...]:
        return self.recording.curves


def shipped_recording(name: str) -> Path:
    """The file of a recording that comes with the package."""
    return Path(str(resources.files("amc_env") / "recordings" / f"{name}.npz"))
