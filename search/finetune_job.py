"""Fine-tuning in a job: the winners, trained by one recipe when all trials are finished.

In the job's folder, for each network, `finetune/<agent>-seed<k>/` (or `finetune/dense/`):

- `start.pt`, `checkpoint.pt`: the weights at the start (of the winner, or of the dense network if weights are removed
  during the training), and the state after each epoch, as long as the training is not done
- `weights.pt`: what it led to; not there if it diverged
- `result.json`: if and only if it is done
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import ValidationError
from torch import nn

from amc_env.fine_grained import WeightProblem
from amc_env.image_problem import ImageProblem
from amc_env.problem import Widths
from amc_env.splits import Split
from amc_env.training.augment import augmentation_of
from amc_env.training.finetune import DivergedError, TrainingLog, TrainingProgress, fine_tune, rehearse
from amc_env.training.regularizers import Regularizer
from amc_env.training.sparsify import Sparsify
from amc_env.weights import load_weights, save_weights
from hw.files import write_atomically
from hw.torch_threads import torch_threads
from search.errors import UserError
from search.machine import available_cpus
from search.progress import FineTuneProgress
from search.results import FineTunedRecord, FineTuneRecord, PolicyRecord, Results, SplitScores, TrialRecord
from search.spec_training import Finetune
from search.tables import agents_of, finished_trials, winner

OnFineTuneProgress = Callable[[FineTuneProgress], None]
_DENSE = "dense"


class FineTuneError(UserError):
    """What lies in the folder of a fine-tuning does not belong to it; the message says what to do."""


def fine_tune_winners(
    recipe: Finetune,
    problem: ImageProblem,
    training: Split,
    results: Results,
    folder: Path,
    on_progress: OnFineTuneProgress,
) -> FineTuneRecord:
    """Train each winner, and go on with what was interrupted; what is done is only read.

    Args:
        recipe: how, and which networks.
        problem: prunes and measures them.
        training: the images.
        results: with all trials.
        folder: the job's.
        on_progress: told after each step.

    Raises:
        FineTuneError: a folder holds another network's training, or damaged files.
        ValueError: the recipe does not fit the network or its images.
    """
    chosen = _chosen(results, recipe)
    names: dict[Widths, str] = {}  # those that several trials found are trained once
    for trial, best in chosen:
        names.setdefault(best.widths, f"{trial.agent}-seed{trial.seed}")
    networks = [*names.items(), *([(problem.dense_widths, _DENSE)] if recipe.dense else [])]
    threads = recipe.threads or available_cpus()
    repair = results.spec["resources"]["threads_per_trial"]
    work = _Work(recipe, problem, training, folder / "finetune", on_progress, len(networks), repair)
    with torch_threads(threads):
        done = {name: work.train(index, name, widths) for index, (widths, name) in enumerate(networks)}
    augmentation = augmentation_of(recipe.settings(), training.images.shape[1:])
    return FineTuneRecord(
        images=len(training),
        source=training.source,
        digest=training.digest(),
        crop_padding=augmentation.crop_padding,
        flip=augmentation.flip,
        threads=threads,
        winners=tuple(
            done[names[best.widths]].model_copy(update={"agent": trial.agent, "seed": trial.seed})
            for trial, best in chosen
        ),
        dense=done.get(_DENSE),
    )


def _chosen(results: Results, recipe: Finetune) -> list[tuple[TrialRecord, PolicyRecord]]:
    groups: Sequence[Sequence[TrialRecord]] = [finished_trials(results, agent) for agent in agents_of(results)]
    if recipe.per == "trial":
        groups = [[trial] for trials in groups for trial in trials]
    return [found for found in map(winner, groups) if found is not None]


@dataclass(frozen=True)
class _Work:
    """What all networks of a job have in common."""

    recipe: Finetune
    problem: ImageProblem
    training: Split
    folder: Path
    on_progress: OnFineTuneProgress
    networks: int
    repair_threads: int  # those on which the trials repaired and tested their networks

    def train(self, index: int, name: str, widths: Widths) -> FineTunedRecord:
        """Train the network of that index and widths in the folder of that name, or read what became of it."""
        place = self.folder / name
        if (place / "result.json").exists():
            return _read(place / "result.json", widths)
        place.mkdir(parents=True, exist_ok=True)
        sparsify = self._sparsify(widths)
        network = self._start(place / "start.pt", widths, sparsify)
        before = self._scores(network if sparsify is None else self._prune(widths))
        agent, _, seed = name.rpartition("-seed")
        record = FineTunedRecord(
            agent=agent or _DENSE, seed=int(seed) if agent else self.recipe.seed, widths=widths, folder=name,
            before=before, after=None, steps=0, losses=(), seconds=0.0,
        )  # fmt: skip
        try:
            log = self._fine_tune(
                network, widths, sparsify, place / "checkpoint.pt", partial(self._report, index, name)
            )
        except DivergedError as error:
            record = record.model_copy(update={"error": str(error)})
        else:
            save_weights(network, place / "weights.pt")
            update = {"after": self._scores(network), "steps": log.steps, "losses": log.losses, "seconds": log.seconds}
            if sparsify is not None:
                update |= {"sparsity": log.sparsity, "size_bytes": self._size(network, widths)}
            record = record.model_copy(update=update)
        write_atomically(place / "result.json", record.model_dump_json(indent=1))
        for file in ("start.pt", "checkpoint.pt"):
            (place / file).unlink(missing_ok=True)
        return record

    def _sparsify(self, widths: Widths) -> Sparsify | None:
        """What the training is to remove; None if nothing."""
        if self.recipe.sparsify is None or not isinstance(self.problem, WeightProblem):
            return None
        targets = {
            decision.name: width
            for decision, width in zip(self.problem.decisions, widths, strict=True)
            if width < decision.size
        }
        pattern = self.problem.settings.pattern.name
        return Sparsify(self.recipe.sparsify.settings(), targets, pattern) if targets else None

    def _size(self, network: nn.Module, widths: Widths) -> float | None:
        """Bytes of the network as it is stored, before any Huffman code."""
        if not isinstance(self.problem, WeightProblem):
            return None
        stages = self.problem.compression(network, widths)
        return next((float(stage["bytes"]) for stage in stages if stage["stage"] == "pruned"), None)

    def _prune(self, widths: Widths) -> nn.Module:
        with torch_threads(self.repair_threads):
            return self.problem.prune(widths)

    def _start(self, path: Path, widths: Widths, sparsify: Sparsify | None) -> nn.Module:
        """The network to train; its weights are kept, for another attempt may round otherwise."""
        network = self._prune(widths if sparsify is None else self.problem.dense_widths)
        if path.exists():
            load_weights(network, path)
        else:
            save_weights(network, path)
        return network

    def _fine_tune(
        self,
        network: nn.Module,
        widths: Widths,
        sparsify: Sparsify | None,
        checkpoint: Path,
        on_progress: Callable[[TrainingProgress], None],
    ) -> TrainingLog:
        settings = self.recipe.settings()
        return fine_tune(
            network,
            self.training,
            self.problem.data.preprocessing,
            settings,
            teacher=self.problem.network if settings.needs_teacher else None,
            kept_of_blocks=self.problem.kept_of_blocks(widths),
            sparsify=sparsify,
            regularizer=regularizer_of(self.recipe, self.problem),
            checkpoint=checkpoint,
            on_progress=on_progress,
            device=self.problem.device,
        )

    def _scores(self, network: nn.Module) -> SplitScores:
        search, test = (self.problem.measure_network(network, split) for split in ("search", "test"))
        return SplitScores(
            search_error=search.error,
            test_error=test.error,
            search_accuracy=search.accuracy,
            test_accuracy=test.accuracy,
        )

    def _report(self, index: int, name: str, progress: TrainingProgress) -> None:
        left = progress.steps - progress.step + (self.networks - index - 1) * progress.steps
        self.on_progress(
            FineTuneProgress(
                name, index + 1, self.networks, progress.step, progress.steps, progress.loss,
                left * progress.seconds_per_step,
            )
        )  # fmt: skip


def regularizer_of(recipe: Finetune, problem: ImageProblem) -> Regularizer | None:
    """The penalty of the spec on the layers that the problem decides on, or on all where it decides on channels."""
    if recipe.regularizer is None:
        return None
    if not isinstance(problem, WeightProblem):
        return recipe.regularizer.regularizer("filter")
    layers = tuple(decision.name for decision in problem.decisions)
    return recipe.regularizer.regularizer(problem.settings.pattern.name, layers)


def check_recipe(recipe: Finetune, problem: ImageProblem, training: Split) -> None:
    """Refuse, before anything is searched, what the training would refuse after it.

    Raises:
        ValueError: the training is too short for its schedule, or one step of the dense network fails.
    """
    settings = recipe.settings()
    if recipe.sparsify is not None:
        try:
            recipe.sparsify.settings().schedule_over(settings.total_steps(len(training)))
        except ValueError as error:
            raise ValueError(f"finetune.sparsify: {error}") from error
    regularizer, device = regularizer_of(recipe, problem), problem.device
    try:
        rehearse(problem.network, training, problem.data.preprocessing, settings, regularizer, device)
    except ValueError as error:
        raise ValueError(f"finetune: {str(error).removeprefix('fine-tuning: ')}") from error


def _read(path: Path, widths: Widths) -> FineTunedRecord:
    try:
        record = FineTunedRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise FineTuneError(f"{path} is damaged; delete its folder, the network is then trained anew") from error
    if record.widths != widths:
        raise FineTuneError(f"{path} is of another policy; delete its folder, the network is then trained anew")
    return record


def fine_tuned(results: Results, widths: Widths) -> FineTunedRecord | None:
    """What became of the policy of these widths; None if it was not fine-tuned, or diverged."""
    records = () if results.finetune is None else results.finetune.winners
    return next((record for record in records if record.widths == widths and record.after is not None), None)
