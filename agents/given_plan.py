"""A plan written by hand, or found elsewhere, as an agent: so that it is compared on equal terms."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import Field, model_validator

from agents.base import Agent, BestSoFar, OnEvaluation
from amc_env.policy import PruningPolicy, is_number
from amc_env.problem import Evaluation, PruningProblem

Ratio = Annotated[float, Field(ge=0, lt=1)]


class GivenPlan(Agent):
    """One evaluation: the plan that the spec states.

    Attributes:
        path: a file with the ratios: one that `amc export` wrote (policy.json), or YAML or JSON with name: ratio. It is
            read when the spec is, which then holds the ratios in its place and replays without the file.
        ratios: decision -> fraction removed. A name may be a pattern, such as "layer1.*"; a decision that is named
            itself takes its own ratio, another that of the first pattern that fits.
        default: ratio of the decisions that are not named; None: all must be.
        fit: bring the plan to the budget by one scalar; otherwise it is evaluated as it stands, and is infeasible if
            it violates the budget.
    """

    deterministic: ClassVar[bool] = True

    kind: Literal["plan"] = "plan"
    path: Path | None = None
    ratios: dict[str, Ratio] = {}
    default: Ratio | None = None
    fit: bool = False

    @model_validator(mode="before")
    @classmethod
    def _read(cls, settings: Any) -> Any:
        if not isinstance(settings, dict) or settings.get("path") is None:
            return settings
        if settings.get("ratios"):
            raise ValueError("path and ratios: expected one of them, got both")
        return {**settings, "path": None, "ratios": read_ratios(Path(settings["path"]))}

    @model_validator(mode="after")
    def _says_something(self) -> GivenPlan:
        if not self.ratios and self.default is None:
            raise ValueError("expected ratios, a path to a file of them, or a default for all decisions")
        return self

    def check(self, problem: PruningProblem, max_evaluations: int) -> None:
        """Refuse a plan that names unknown decisions, or not all."""
        self.plan(problem)

    def plan(self, problem: PruningProblem) -> dict[str, float]:
        """The ratio of each decision.

        Raises:
            ValueError: a name fits no decision, or a decision has no ratio.
        """
        unknown = [
            name
            for name in self.ratios
            if name not in problem.names and not any(fnmatchcase(known, name) for known in problem.names)
        ]
        if unknown:
            close = difflib.get_close_matches(unknown[0], problem.names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"ratios: no decision is called {_listed(unknown)}{hint} (known: {', '.join(problem.names)})"
            )
        found = {name: self._ratio(name) for name in problem.names}
        missing = [name for name, ratio in found.items() if ratio is None]
        if missing:
            raise ValueError(f"ratios: none for {_listed(missing)}; add them, or default: 0.0 to keep the rest whole")
        return {name: ratio for name, ratio in found.items() if ratio is not None}

    def search(
        self, problem: PruningProblem, *, max_evaluations: int, seed: int, on_evaluation: OnEvaluation
    ) -> Evaluation | None:
        best = BestSoFar(on_evaluation)
        if max_evaluations > 0:
            plan = self.plan(problem)
            best(problem.evaluate(problem.fit_to_budget(plan) if self.fit else plan))
        return best.evaluation

    def _ratio(self, name: str) -> float | None:
        if name in self.ratios:
            return self.ratios[name]
        return next((ratio for pattern, ratio in self.ratios.items() if fnmatchcase(name, pattern)), self.default)


def read_ratios(path: Path) -> dict[str, float]:
    """The ratios in a file that `PruningPolicy.save` wrote, or in YAML or JSON with name: ratio.

    Raises:
        ValueError: the file cannot be read, or holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "problem", None) or error
        raise ValueError(f"path: {path} cannot be read as a plan: {reason}") from error
    if isinstance(content, Mapping) and set(content) == {"version", "ratios"}:
        return dict(PruningPolicy.load(path))
    ratios = content if isinstance(content, Mapping) else {}
    if not ratios or not all(isinstance(name, str) and is_number(ratio) for name, ratio in ratios.items()):
        raise ValueError(f"path: expected {path} to hold name: ratio, as 'conv1: 0.5', got {str(content)[:60]!r}")
    return dict(PruningPolicy(ratios))


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names))
