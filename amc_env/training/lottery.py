"""Lottery tickets: sparse networks that train as well as the dense one, from its own first weights.

A ticket is found by iterative magnitude pruning: train, remove the smallest weights, set the rest back to what they
were, and again. Beside it stand one-shot pruning and two controls. All train to the end of one recipe: new weights
from step 0, the dense network's weights after k steps from step k.

[LTH] Frankle and Carbin, The lottery ticket hypothesis, arXiv 1803.03635, section 2: back to the initial weights.
[REWIND] Frankle et al., Stabilizing the lottery ticket hypothesis, arXiv 1903.01611, section 3: back to the weights
after k steps, from where the training goes on with the learning rate of step k.

Differences from the papers: by default one threshold for all layers ([LTH] has one for each layer of its LeNet, and
half the rate at the output); the order of the images after a rewinding is that of a new training; the momentum begins
at 0 again; new weights train from step 0, where the authors' code (open_lth) begins at step k unless it is told.

In the folder of a search for tickets:

- `conditions.json`: what is trained; another network, recipe or data needs another folder
- `rewound.pt`: the weights to which tickets go back
- `round<r>-<arm>.pt`, `-masks.npz`, `.json`: a network when it was trained, its masks, and what became of it; round 0
  is the dense network
- `round<r>-<arm>-training.pt`: the state of a training that is under way, after each of its epochs
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc_env.pruning.pattern import hold_zeros
from amc_env.pruning.patterns import FineGrained
from amc_env.splits import AsTheyAre, Preprocessing, Split
from amc_env.training.finetune import TrainingProgress, fine_tune
from amc_env.training.recipe import FineTuneSettings
from amc_env.training.sparsify import Scope, global_masks
from amc_env.weights import read_state, save_weights, weights_digest
from hw.files import read_npz, write_atomically, write_npz

Arm = Literal["ticket", "one_shot", "reinitialised", "random_mask"]
Masks = dict[str, NDArray[np.bool_]]
_VERSION = 1  # raise it whenever the same settings would lead to other networks


class TicketError(RuntimeError):
    """A mask or a network broke what holds for all tickets: nothing of the search is to be believed."""


@dataclass(frozen=True)
class LotterySettings:
    """How tickets are searched for.

    Attributes:
        training: of every network; its seed is that of the search.
        rounds: of pruning, at least 1.
        ratio: fraction removed in each round of the weights that are left, in (0, 1).
        rewind: steps of the dense training to whose weights tickets go back; 0 for the initial ones.
        scope: "global": one threshold for all layers; "local": the same fraction of each.
        arms: what is trained in each round. "ticket": always. "one_shot": with the dense network's smallest weights
            removed at once, from the same weights. "reinitialised": the ticket's mask on other initial weights, from
            step 0. "random_mask": as many weights of each layer as in the ticket, drawn at random, from the ticket's
            weights.
    """

    training: FineTuneSettings
    rounds: int = 5
    ratio: float = 0.2
    rewind: int = 0
    scope: Scope = "global"
    arms: tuple[Arm, ...] = get_args(Arm)

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds: expected at least 1, got {self.rounds}")
        if not 0.0 < self.ratio < 1.0:
            raise ValueError(f"ratio: expected a fraction in (0, 1), got {self.ratio}")
        if self.rewind < 0:
            raise ValueError(f"rewind: expected at least 0 steps, got {self.rewind}")
        if self.scope not in get_args(Scope):
            raise ValueError(f"scope: expected one of {', '.join(get_args(Scope))}, got {self.scope!r}")
        unknown = [arm for arm in self.arms if arm not in get_args(Arm)]
        if unknown or "ticket" not in self.arms:
            raise ValueError(f"arms: expected ticket, and others of {', '.join(get_args(Arm))}, got {list(self.arms)}")


@dataclass(frozen=True)
class TicketRecord:
    """A network of a search.

    Attributes:
        seed, round: of the search; 0 is the dense network.
        arm: "dense" in round 0.
        kept: weights left, by layer.
        weights: of the dense layers together.
        scores: what `score` said of the trained network.
        losses: of each epoch.
    """

    seed: int
    round: int
    arm: str
    kept: dict[str, int]
    weights: int
    scores: dict[str, float]
    losses: tuple[float, ...]

    @property
    def left(self) -> float:
        """Fraction of the weights, in (0, 1]."""
        return sum(self.kept.values()) / self.weights


@dataclass(frozen=True)
class LotteryProgress:
    """Which network is in training, the how many-eth of how many, and how far it is."""

    seed: int
    round: int
    arm: str
    index: int
    networks: int
    training: TrainingProgress


@dataclass(frozen=True)
class Lottery:
    """What is trained, on what, and how it is judged.

    Attributes:
        build: an untrained network by a seed; the same seed gives the same weights.
        training, preprocessing: images, and what the network needs done to them.
        score: of a trained network in evaluation mode, any number of figures by name.
        settings: how.
        device: where to train.
    """

    build: Callable[[int], nn.Module]
    training: Split
    preprocessing: Preprocessing | AsTheyAre
    score: Callable[[nn.Module], Mapping[str, float]]
    settings: LotterySettings
    device: torch.device | str = "cpu"


def find_tickets(
    lottery: Lottery,
    seed: int,
    folder: Path,
    on_progress: Callable[[LotteryProgress], None] = lambda progress: None,
) -> list[TicketRecord]:
    """Search for tickets with one seed: of the initial weights, of the order of the images, of the random masks.

    What was interrupted goes on; networks that are done are only read. The same arguments give the same networks.

    Args:
        lottery: what to do.
        seed: at least 0.
        folder: of this seed alone, and of one process at a time.
        on_progress: told after each step.

    Raises:
        TicketError: a network that was trained has weights where its mask has none, or a mask is not within the one
            before it.
        DivergedError: a training diverged.
        ValueError: the folder is of another search, or the settings do not suit network or images.
    """
    search = _Search(lottery, seed, folder, on_progress)
    search.open()
    records = [search.dense()]
    for number in range(1, lottery.settings.rounds + 1):
        records += search.round(number)
    return records


class _Search:
    """One seed."""

    def __init__(
        self, lottery: Lottery, seed: int, folder: Path, on_progress: Callable[[LotteryProgress], None]
    ) -> None:
        self._lottery, self._seed, self._folder, self._on_progress = lottery, seed, folder, on_progress
        self._recipe = replace(lottery.settings.training, seed=seed)
        network = lottery.build(seed)
        self._layers = [n for n, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        self._weights = sum(network.get_parameter(f"{name}.weight").numel() for name in self._layers)
        self._steps = self._recipe.total_steps(len(lottery.training))
        if lottery.settings.rewind >= self._steps:
            raise ValueError(f"rewind: expected less than the {self._steps} steps, got {lottery.settings.rewind}")
        self._digest = weights_digest(network)

    def open(self) -> None:
        """Make the folder, or see that it is of the same search; rounds and arms may be others."""
        settings = replace(self._lottery.settings, rounds=1, arms=get_args(Arm), training=self._recipe)
        parts = [_VERSION, settings, self._digest, self._lottery.training.digest(), self._lottery.preprocessing]
        conditions = {"seed": self._seed, "identity": hashlib.sha256(repr(parts).encode()).hexdigest()}
        path = self._folder / "conditions.json"
        if path.exists():
            if json.loads(path.read_text()) != conditions:
                raise ValueError(
                    f"{self._folder}: of another search for tickets: seed, network, images or recipe are not the same; "
                    f"give another folder"
                )
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(conditions))

    def dense(self) -> TicketRecord:
        """Train the whole network, and keep the weights to which tickets go back."""
        network, rewind = self._lottery.build(self._seed), self._lottery.settings.rewind
        rewound = self._folder / "rewound.pt"
        if rewind == 0 and not rewound.exists():
            save_weights(network, rewound)

        def keep(progress: TrainingProgress) -> None:
            if progress.step == rewind:
                save_weights(network, rewound)

        return self._train(network, 0, "dense", {}, keep)

    def round(self, number: int) -> list[TicketRecord]:
        """Prune the ticket of the round before, and train it beside the other arms."""
        settings = self._lottery.settings
        before = self._masks(number - 1)
        masks = self._smallest_removed(self._trained(number - 1), before, number)
        if any((mask & ~before[name]).any() for name, mask in masks.items()):
            raise TicketError(f"seed {self._seed}, round {number}: the mask brings back weights that were removed")
        whole = {name: np.ones_like(mask) for name, mask in masks.items()}
        records = []
        for arm in (arm for arm in get_args(Arm) if arm in settings.arms):
            if arm == "one_shot":
                chosen = self._smallest_removed(self._trained(0), whole, number)
            elif arm == "random_mask":
                chosen = self._drawn(masks, number)
            else:
                chosen = masks
            network = self._lottery.build(self._seed)
            if arm == "reinitialised":
                network = self._lottery.build(int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0]))
            else:
                network.load_state_dict(read_state(self._folder / "rewound.pt"))
            records.append(self._train(network, number, arm, chosen))
        return records

    def _smallest_removed(self, state: Mapping[str, torch.Tensor], before: Masks, number: int) -> Masks:
        """Masks of a round, by the size of trained weights within the masks of the round before."""
        left = (1.0 - self._lottery.settings.ratio) ** number
        scores = {
            name: np.where(before[name], state[f"{name}.weight"].double().abs().cpu().numpy(), -1.0)
            for name in self._layers
        }
        if self._lottery.settings.scope == "global":
            return global_masks(scores, math.ceil(left * self._weights - 1e-9), FineGrained())
        return {
            name: FineGrained().mask(score, max(1, math.ceil(left * score.size - 1e-9)))
            for name, score in scores.items()
        }

    def _drawn(self, masks: Masks, number: int) -> Masks:
        rng = np.random.default_rng([self._seed, number])
        return {name: rng.permutation(mask.reshape(-1)).reshape(mask.shape) for name, mask in masks.items()}

    def _masks(self, number: int) -> Masks:
        """Of the ticket of a round."""
        if number == 0:
            network = self._lottery.build(self._seed)
            return {n: np.ones(network.get_parameter(f"{n}.weight").shape, dtype=bool) for n in self._layers}
        path = self._folder / f"{_name(number, 'ticket')}-masks.npz"
        try:
            stored = read_npz(path)
        except ValueError as error:
            raise ValueError(f"{path} is damaged; delete the folder {self._folder}, it is then made anew") from error
        return {name: stored[name] for name in self._layers}

    def _trained(self, number: int) -> dict[str, torch.Tensor]:
        return read_state(self._folder / f"{_name(number, 'dense' if number == 0 else 'ticket')}.pt")

    def _train(
        self,
        network: nn.Module,
        number: int,
        arm: str,
        masks: Masks,
        on_step: Callable[[TrainingProgress], None] = lambda progress: None,
    ) -> TicketRecord:
        """Train a network with no other weights than those of the masks, or read what became of it."""
        path = self._folder / f"{_name(number, arm)}.json"
        checkpoint = path.with_name(f"{path.stem}-training.pt")
        if path.exists():
            checkpoint.unlink(missing_ok=True)
            return _read(path)
        self._mask(network, masks)

        def report(progress: TrainingProgress) -> None:
            on_step(progress)
            arms: list[str] = [each for each in get_args(Arm) if each in self._lottery.settings.arms]
            index = 1 if number == 0 else 2 + (number - 1) * len(arms) + arms.index(arm)
            networks = 1 + self._lottery.settings.rounds * len(arms)
            self._on_progress(LotteryProgress(self._seed, number, arm, index, networks, progress))

        log = fine_tune(
            network,
            self._lottery.training,
            self._lottery.preprocessing,
            self._recipe,
            first_step=self._lottery.settings.rewind if arm not in ("dense", "reinitialised") else 0,
            checkpoint=checkpoint,
            on_progress=report,
            device=self._lottery.device,
        )
        for name, mask in masks.items():
            weight = network.get_parameter(f"{name}.weight").detach().cpu().numpy()
            if weight[~mask].any():
                raise TicketError(
                    f"seed {self._seed}, {_name(number, arm)}: removed weights of layer {name!r} are back"
                )
        scores = {name: float(value) for name, value in self._lottery.score(network).items()}
        sizes = {name: network.get_parameter(f"{name}.weight").numel() for name in self._layers}
        kept = {name: int(np.count_nonzero(masks[name])) if masks else size for name, size in sizes.items()}
        record = TicketRecord(self._seed, number, arm, kept, self._weights, scores, log.losses)
        write_npz(path.with_name(f"{path.stem}-masks.npz"), masks, compressed=True)
        save_weights(network, path.with_suffix(".pt"))
        write_atomically(path, json.dumps(asdict(record)))
        checkpoint.unlink(missing_ok=True)
        return record

    def _mask(self, network: nn.Module, masks: Masks) -> None:
        """Zero what the masks have not, for good."""
        network.to(self._lottery.device)
        for name, mask in masks.items():
            weight = network.get_parameter(f"{name}.weight")
            stays = torch.from_numpy(mask).to(weight.device)
            with torch.no_grad():
                weight.masked_fill_(~stays, 0.0)
            hold_zeros(weight, stays)


def _name(number: int, arm: str) -> str:
    return f"round{number}-{arm}"


def _read(path: Path) -> TicketRecord:
    try:
        content = json.loads(path.read_bytes())
        return TicketRecord(**(content | {"losses": tuple(content["losses"])}))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged; delete it, the network is then trained anew") from error
