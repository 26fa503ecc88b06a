"""How far the trials of a job are: what they report, and a live view of it, one line per trial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from rich.console import Console
from rich.live import Live
from rich.table import Table

TrialState = Literal["waiting", "running", "retrying", "finished", "failed"]


@dataclass(frozen=True)
class TrialProgress:
    """Where a trial stands.

    Attributes:
        trial: its name, e.g. "ddpg-seed0".
        evaluations: done so far, those of earlier attempts included.
        best_reward: of the feasible evaluations; None if there are none.
        seconds: spent on these evaluations, in all attempts.
    """

    trial: str
    state: TrialState
    evaluations: int = 0
    best_reward: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class CalibrationProgress:
    """How many layers are measured of those that the trials need; comes before all trials."""

    done: int
    layers: int

    def __str__(self) -> str:
        return f"calibrating: {self.done}/{self.layers} layers"


@dataclass(frozen=True)
class LatencyProgress:
    """How many networks are measured for a latency table, or timed at the end; comes before and after all trials.

    Attributes:
        seconds_left: None if nothing is known yet.
        unit: what is measured: whole networks, or layers.
    """

    done: int
    networks: int
    seconds_left: float | None = None
    unit: Literal["networks", "layers"] = "networks"

    def __str__(self) -> str:
        left = "" if self.seconds_left is None else f", {_clock(self.seconds_left)} left"
        return f"measuring latency: {self.done}/{self.networks} {self.unit}{left}"


@dataclass(frozen=True)
class FineTuneProgress:
    """Where the fine-tuning of the winners stands; comes after all trials.

    Attributes:
        name: of the network that is trained, e.g. "ddpg-seed0".
        index, networks: the how many-eth of how many it is.
        step, steps: of its training.
        loss: of the last batch.
        seconds_left: of all networks.
    """

    name: str
    index: int
    networks: int
    step: int
    steps: int
    loss: float
    seconds_left: float

    def __str__(self) -> str:
        return (
            f"fine-tuning {self.name} ({self.index}/{self.networks}): step {self.step}/{self.steps}, "
            f"loss {self.loss:.4f}, {_clock(self.seconds_left)} left"
        )


OnProgress = Callable[[TrialProgress], None]
SetUpProgress = CalibrationProgress | LatencyProgress | FineTuneProgress
OnJobProgress = Callable[[TrialProgress | SetUpProgress], None]


def seconds_left(progress: TrialProgress, evaluations: int) -> float | None:
    """Time until `evaluations` are done if they take as long as those before; None if nothing is known."""
    if progress.state not in ("running", "retrying") or progress.evaluations == 0:
        return None
    return progress.seconds / progress.evaluations * (evaluations - progress.evaluations)


class LiveProgress:
    """A table in the terminal that follows the trials; a context manager, called with all that a job tells.

    Args:
        trials: names of all trials.
        evaluations: how many a trial may do.
        console: where to draw; standard error unless told.
    """

    def __init__(self, trials: Sequence[str], evaluations: int, console: Console | None = None) -> None:
        self._evaluations = evaluations
        self._trials = {trial: TrialProgress(trial, "waiting") for trial in trials}
        self._set_up: SetUpProgress | None = None
        console = console or Console(stderr=True)
        self._live = Live(get_renderable=self.table, console=console, refresh_per_second=2, redirect_stdout=False)

    def __call__(self, progress: TrialProgress | SetUpProgress) -> None:
        if isinstance(progress, CalibrationProgress):
            if self._set_up or progress.done < progress.layers:
                self._set_up = progress
            return
        if isinstance(progress, LatencyProgress | FineTuneProgress):
            self._set_up = progress
            return
        self._set_up = None
        known = self._trials[progress.trial]
        if progress.evaluations == 0 and known.evaluations > 0:
            progress = TrialProgress(
                progress.trial, progress.state, known.evaluations, known.best_reward, known.seconds
            )
        self._trials[progress.trial] = progress

    def __enter__(self) -> LiveProgress:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def table(self) -> Table:
        """The view as it is now."""
        title = None if self._set_up is None else str(self._set_up)
        table = Table(box=None, header_style="dim", title=title, title_justify="left")
        table.add_column("trial")
        table.add_column("state")
        for heading in ("best reward", "evaluations", "time left"):
            table.add_column(heading, justify="right")
        for trial in self._trials.values():
            done = str(trial.evaluations) if trial.state == "finished" else f"{trial.evaluations}/{self._evaluations}"
            best = "-" if trial.best_reward is None else f"{trial.best_reward:.4f}"
            state = "testing" if trial.state == "running" and trial.evaluations >= self._evaluations else trial.state
            table.add_row(trial.trial, state, best, done, _clock(seconds_left(trial, self._evaluations)))
        return table


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}"
