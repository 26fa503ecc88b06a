"""Pruning as a Gymnasium environment: one ratio per step, the score of the pruned network at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, SupportsFloat

import gymnasium
import numpy as np
from numpy.typing import NDArray

from amc_env.embedding import FEATURES, PREVIOUS_RATIO, REDUCED, LayerEmbedding
from amc_env.front import budget_views
from amc_env.problem import Evaluation, PruningProblem
from amc_env.problems import make_problem
from amc_env.rendering import draw
from amc_env.toy import ToyProblem

Constraint = Literal["strict", "clamp", "fit"]
Observation = NDArray[np.float32]
_LARGEST_RATIO = float(np.nextafter(np.float32(1), np.float32(0)))


class PruningEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """Choose one ratio per step; the score of the pruned network comes at the end.

    ## Description
    Choose the fraction of channels to remove from every layer of a trained network, in forward order, under a
    budget ([AMC], arXiv 1802.03494). An episode has exactly one step per decision of the problem.

    ## Action space
    `Box(0, 1)` with 1 excluded, shape (1,), float32: the fraction removed of the channels of the current decision.
    It is rounded to the nearest channel count that the problem allows.

    ## Observation space
    `Box(0, 1)`, float32, shape (11,), with `budgets` (12,): the embedding of the decision to come ([AMC] section 3.1).

    | index | feature | meaning | divided by |
    | --- | --- | --- | --- |
    | 0 | t | index of the decision | number of decisions - 1 |
    | 1 | n | output channels of the layer that first produces the channels | largest n |
    | 2 | c | its input channels | largest c |
    | 3 | h | height of its input in pixels | largest h |
    | 4 | w | width of its input in pixels | largest w |
    | 5 | stride | its stride | largest stride |
    | 6 | k | its kernel size | largest k |
    | 7 | macs | dense MACs of the layers that this decision owns | largest such sum |
    | 8 | reduced | MACs that the decisions so far remove | dense MACs of the network |
    | 9 | rest | dense MACs of the layers that later decisions own | dense MACs of the network |
    | 10 | previous_ratio | ratio of the previous decision, after rounding | - |
    | 11 | budget | only with `budgets`: the limit of this episode | dense cost that it limits |

    With a problem whose `feature_cost` is another than "macs", such as the latency of a table, features 7 to 9 count
    that cost in the place of MACs.

    The observation after the last step is that of the last decision with its ratio counted in 8 and 10.

    ## Reward
    0 before the last step; then the reward of `problem.evaluate`: -(1 - accuracy) on the search split (or one of
    the paper's unconstrained forms, see `PruningProblem`), and `infeasible_reward`, -inf by default, if a budget
    is violated. A learner needs the finite form: `PruningEnv(infeasible_reward=-1.0)`.

    ## Constraint
    - "strict": ratios are taken as they come; a violated budget is found at the end.
    - "clamp": [AMC] Algorithm 1. A step keeps no more channels than leave the budget within reach if all later
      decisions remove the most they can. Counted on rounded channels, so no episode ends over the budget.
    - "fit": the finished plan is brought to the budget by `problem.fit_to_budget`, from above or from below.

    ## Several budgets
    With `budgets`, fractions of the dense cost that the problem's one budget limits, each episode is played under one
    of them or under the problem's own: `reset(options={"budget": 0.5})` asks for one, else all have their turn before
    any has it again, in an order that the seed draws. Constraint, reward and info are those of the episode's budget;
    `last_evaluation` is the problem's own, which may violate its budget and yet be scored.

    ## Info
    Every step: "decision" (name), "kept" (channels kept by it). The last step: "feasible", "is_success" (the
    same), "violation", "accuracy" (only if scored), "costs" and "pruning_policy" (name -> ratio after rounding).

    ## Arguments
    - `problem`: a `PruningProblem`, or the name of one (`amc_env.problems`); without one, `ToyProblem()`: closed-form
      accuracy, half the MACs.
    - `budget`, `real`: of a problem named, see `make_problem`.
    - `constraint`, `infeasible_reward`, `budgets`: see above.
    - `render_mode`: "ansi" returns the decisions so far as a table, "rgb_array" as bars, uint8 (height, width, 3), the
      part that each decision keeps; the bar at the top is the cost with all later decisions dense, its mark the budget.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}

    def __init__(
        self,
        problem: PruningProblem | str | None = None,
        *,
        budget: Mapping[str, float | str] | None = None,
        real: Mapping[str, str | Path] | None = None,
        constraint: Constraint = "strict",
        infeasible_reward: float = -math.inf,
        budgets: Sequence[float] = (),
        render_mode: str | None = None,
    ) -> None:
        if constraint not in ("strict", "clamp", "fit"):
            raise ValueError(f"constraint: expected 'strict', 'clamp' or 'fit', got {constraint!r}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode: expected None, 'ansi' or 'rgb_array', got {render_mode!r}")
        if math.isnan(infeasible_reward):
            raise ValueError("infeasible_reward: expected a number or -inf, got nan")
        if isinstance(problem, str):
            problem = make_problem(problem, budget=budget, real=real)
        elif budget is not None or real is not None:
            raise ValueError("budget, real: of a problem that is named; this one has its budget already")
        self.problem: PruningProblem = ToyProblem() if problem is None else problem
        self.constraint = constraint
        self.infeasible_reward = infeasible_reward
        self.render_mode = render_mode
        self.action_space = gymnasium.spaces.Box(0.0, _LARGEST_RATIO, (1,), np.float32)
        self._embeddings = {
            fraction: LayerEmbedding(view, budget=True)
            for fraction, view in (budget_views(self.problem, budgets) if budgets else {}).items()
        }
        self._turns: list[float] = []
        #: what this episode observes; its problem is the one under the budget of this episode
        self.embedding = next(iter(self._embeddings.values()), None) or LayerEmbedding(self.problem)
        features = len(FEATURES) + bool(budgets)
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (features,), np.float32)
        self._kept: list[int] = []
        #: the evaluation that ended the last finished episode
        self.last_evaluation: Evaluation | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._turns = []
        asked = (options or {}).get("budget")
        if self._embeddings or asked is not None:
            self.embedding = self._embedding_of(asked)
        self._kept = []
        return self.embedding(0, self._kept), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        step = len(self._kept)
        if step == len(self.problem.decisions):
            raise RuntimeError("step: the episode has ended; call reset() first")
        ratio = float(np.asarray(action).reshape(-1)[0])
        if not 0.0 <= ratio < 1.0:
            raise ValueError(f"action: expected a ratio removed in [0, 1), got {ratio}")
        decision = self.problem.decisions[step]
        kept = decision.kept(ratio)
        if self.constraint == "clamp":
            kept = self._clamp(step, kept)
        self._kept.append(kept)
        info: dict[str, Any] = {"decision": decision.name, "kept": kept}
        if step + 1 < len(self.problem.decisions):
            return self.embedding(step + 1, self._kept), 0.0, False, False, info
        playing = self.embedding.problem
        if self.constraint == "fit":
            fitted = playing.fit_to_budget(playing.ratios(self._kept))
            self._kept = list(self.problem.widths(fitted))
        widths = tuple(self._kept)
        evaluation = self.problem.evaluate_widths(widths, probe=playing.feasible(widths))
        self.last_evaluation = evaluation
        if playing is not self.problem:
            evaluation = playing.judge(evaluation)
        reward = evaluation.reward if evaluation.feasible else self.infeasible_reward
        return self._final_observation(), float(reward), True, False, info | self._outcome(evaluation)

    def _embedding_of(self, asked: float | None) -> LayerEmbedding:
        """That of the budget asked for, or of the next whose turn it is."""
        if asked is None:
            self._turns = self._turns or self.np_random.permutation(list(self._embeddings)).tolist()
            return self._embeddings[self._turns.pop()]
        if asked not in self._embeddings:
            known = ", ".join(map(str, self._embeddings)) or "none; make the environment with `budgets`"
            raise ValueError(f"options: unknown budget {asked}; known: {known}")
        return self._embeddings[asked]

    @property
    def steps_made(self) -> int:
        """How many decisions of this episode are made."""
        return len(self._kept)

    def decided(self, widths: list[int]) -> None:
        """Take these as the decisions made so far, units kept by each."""
        self._kept = widths

    def render(self) -> str | NDArray[np.uint8] | None:
        """The decisions so far, as a table or as bars."""
        if self.render_mode is None:
            return None
        if self.render_mode == "rgb_array":
            return draw(self.embedding.problem, self._kept)
        lines = [f"{'decision':<32} {'channels':>8} {'kept':>6} {'ratio':>6}"]
        for decision, kept in zip(self.problem.decisions, self._kept, strict=False):
            lines.append(f"{decision.name:<32} {decision.size:>8} {kept:>6} {decision.ratio(kept):>6.2f}")
        return "\n".join(lines)

    def _clamp(self, step: int, kept: int) -> int:
        """The largest allowed width <= `kept` that leaves the budgets within reach (the smallest always does)."""
        widths = [*self._kept, kept, *self.problem.smallest_widths[step + 1 :]]
        feasible = self.embedding.problem.feasible
        if feasible(widths):
            return kept
        choices = self.problem.decisions[step].choices
        low, high = 0, choices.index(kept)
        while high - low > 1:
            middle = (low + high) // 2
            widths[step] = choices[middle]
            low, high = (middle, high) if feasible(widths) else (low, middle)
        return choices[low]

    def _final_observation(self) -> Observation:
        last = len(self._kept) - 1
        observation = self.embedding(last, self._kept[:-1])
        observation[REDUCED] = self.embedding.reduced(self._kept)
        observation[PREVIOUS_RATIO] = self.problem.decisions[last].ratio(self._kept[last])
        return observation

    def _outcome(self, evaluation: Evaluation) -> dict[str, Any]:
        outcome: dict[str, Any] = {
            "feasible": evaluation.feasible,
            "is_success": evaluation.feasible,
            "violation": evaluation.violation,
            "costs": dict(evaluation.costs),
            "pruning_policy": dict(zip(self.problem.names, evaluation.ratios, strict=True)),
        }
        if evaluation.accuracy is not None:
            outcome["accuracy"] = evaluation.accuracy
        return outcome
