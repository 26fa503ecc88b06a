"""A search for lottery tickets as a folder; interrupted, the same call goes on.

- `DIR/seed<k>/`: see `amc_env.training.lottery`
- `DIR/results.json`, `DIR/lottery.html`: when all seeds are done
- `DIR/lock`: locked by the process that searches
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc_env.objectives import evaluate_objective, find_objective
from amc_env.settings import find_device
from amc_env.splits import DataSplits, Split
from amc_env.training.lottery import Lottery, LotteryProgress, TicketError, TicketRecord, find_tickets
from hw.files import write_atomically
from hw.torch_threads import torch_threads
from search.build import build_architecture, splits_of, training_of
from search.errors import UserError
from search.locking import locked
from search.lottery_report import LeftCurve, LeftPoint
from search.lottery_spec import LotterySpec
from search.results import Record

_BATCH = 500  # images that are scored at once
_VERSIONS = ("amc-search", "torch", "numpy")
#: how tables name the arms
ARM_NAMES = {
    "ticket": "ticket",
    "one_shot": "one-shot ticket",
    "reinitialised": "its mask, new weights",
    "random_mask": "random mask, its weights",
}


class LotteryError(UserError):
    """The search cannot be done as asked; the message says why."""


class TicketResult(Record):
    """`amc_env.training.lottery.TicketRecord` as it is stored; `scores` are top-1 on the splits "search" and "test"."""

    seed: int
    round: int
    arm: str
    kept: dict[str, int]
    weights: int
    scores: dict[str, float]
    losses: tuple[float, ...]


class LotteryResults(Record):
    """`results.json` of a search for tickets."""

    version: Literal[1] = 1
    name: str
    spec: dict[str, Any]
    data_digest: str
    training_digest: str
    networks: tuple[TicketResult, ...]
    versions: dict[str, str]

    @property
    def dense(self) -> LeftPoint:
        """The dense network's test accuracies."""
        return LeftPoint(1.0, tuple(network.scores["test"] for network in self.networks if network.round == 0))

    @property
    def curves(self) -> tuple[LeftCurve, ...]:
        """Test accuracies of each arm over the rounds."""
        arms = [arm for arm in ARM_NAMES if any(network.arm == arm for network in self.networks)]
        return tuple(LeftCurve(ARM_NAMES[arm], tuple(self._points(arm))) for arm in arms)

    def _points(self, arm: str) -> Iterator[LeftPoint]:
        for number in sorted({network.round for network in self.networks} - {0}):
            found = [network for network in self.networks if (network.round, network.arm) == (number, arm)]
            left = sum(found[0].kept.values()) / found[0].weights
            yield LeftPoint(left, tuple(network.scores["test"] for network in found))


def run_lottery(
    spec: LotterySpec, folder: Path, on_progress: Callable[[int, LotteryProgress], None] = lambda done, progress: None
) -> LotteryResults:
    """Search with each seed, or go on.

    Args:
        spec: what to do.
        folder: new, or of an earlier call with the same spec; rounds, arms and seeds may be more.
        on_progress: told after each step, with how many seeds are done.

    Raises:
        LotteryError: network or data are not as the spec says, or the folder is of another search or in use.
    """
    section = spec.lottery
    try:
        data = splits_of(spec.data)
        training = training_of(spec.data, section.images, section.training.settings(), "lottery")
        device = find_device(section.device)
        lottery = Lottery(
            build=lambda seed: _untrained(spec, seed),
            training=training,
            preprocessing=data.preprocessing,
            score=lambda network: {name: _accuracy(network, data, name, device) for name in ("search", "test")},
            settings=section.settings(),
            device=device,
        )
        networks: list[TicketRecord] = []
        folder.mkdir(parents=True, exist_ok=True)
        busy = LotteryError(f"{folder}: another process is running this search")
        with locked(folder, busy), torch_threads(section.threads):
            for done, seed in enumerate(spec.seeds):
                place = folder / f"seed{seed}"
                networks += find_tickets(lottery, seed, place, lambda progress, done=done: on_progress(done, progress))  # type: ignore[misc]
    except (ValueError, OSError, TicketError) as error:
        raise LotteryError(str(error)) from error
    results = LotteryResults(
        name=spec.name,
        spec=spec.model_dump(mode="json"),
        data_digest=data.digest,
        training_digest=training.digest(),
        networks=tuple(TicketResult(**asdict(network)) for network in networks),
        versions={"python": platform.python_version(), **{name: metadata.version(name) for name in _VERSIONS}},
    )
    write_atomically(folder / "results.json", results.model_dump_json(indent=1))
    return results


def _untrained(spec: LotterySpec, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_architecture(spec.network)


def _accuracy(network: nn.Module, data: DataSplits, name: str, device: torch.device) -> float:
    split: Split = data.search if name == "search" else data.test

    def batches() -> Iterator[tuple[torch.Tensor, NDArray[np.int64]]]:
        for first in range(0, len(split), _BATCH):
            part = slice(first, first + _BATCH)
            yield data.preprocessing(split.images[part]).to(device), split.labels[part]

    score = evaluate_objective(network, batches(), find_objective("top1"), None, total=len(split))
    return 1.0 - score.error
