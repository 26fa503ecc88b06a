"""Pruning as a Gymnasium environment: one ratio per step, the score of the pruned network at the end."""

from __future__ import annotations

import math
from typing import Any, Literal, SupportsFloat

import gymnasium
import numpy as np
from numpy.typing import NDArray

from amc_env.embedding import FEATURES, PREVIOUS_RATIO, REDUCED, LayerEmbedding
from amc_env.problem import Evaluation, PruningProblem
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
    `Box(0, 1)`, shape (11,), float32: the embedding of the decision to come ([AMC] section 3.1).

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

    ## Info
    Every step: "decision" (name), "kept" (channels kept by it). The last step: "feasible", "is_success" (the
    same), "violation", "accuracy" (only if scored), "costs" and "pruning_policy" (name -> ratio after rounding).

    ## Arguments
    - `problem`: a `PruningProblem`; without one, `ToyProblem()`: closed-form accuracy, half the MACs.
    - `constraint`, `infeasible_reward`: see above.
    - `render_mode`: "ansi" returns the decisions so far as a table.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}

    def __init__(
        self,
        problem: PruningProblem | None = None,
        *,
        constraint: Constraint = "strict",
        infeasible_reward: float = -math.inf,
        render_mode: str | None = None,
    ) -> None:
        if constraint not in ("strict", "clamp", "fit"):
            raise ValueError(f"constraint: expected 'strict', 'clamp' or 'fit', got {constraint!r}")
        if render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode: expected None or 'ansi', got {render_mode!r}")
        if math.isnan(infeasible_reward):
            raise ValueError("infeasible_reward: expected a number or -inf, got nan")
        self.problem: PruningProblem = ToyProblem() if problem is None else problem
        self.constraint = constraint
        self.infeasible_reward = infeasible_reward
        self.render_mode = render_mode
        self.action_space = gymnasium.spaces.Box(0.0, _LARGEST_RATIO, (1,), np.float32)
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (len(FEATURES),), np.float32)
        self._embed = LayerEmbedding(self.problem)
        self._kept: list[int] = []
        #: the evaluation that ended the last finished episode
        self.last_evaluation: Evaluation | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self._kept = []
        return self._embed(0, self._kept), {}

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
            return self._embed(step + 1, self._kept), 0.0, False, False, info
        if self.constraint == "fit":
            fitted = self.problem.fit_to_budget(self.problem.ratios(self._kept))
            self._kept = list(self.problem.widths(fitted))
        evaluation = self.problem.evaluate_widths(tuple(self._kept))
        self.last_evaluation = evaluation
        reward = evaluation.reward if evaluation.feasible else self.infeasible_reward
        return self._final_observation(), float(reward), True, False, info | self._outcome(evaluation)

    def render(self) -> str | None:
        """The decisions so far: name, channels, kept, ratio."""
        if self.render_mode is None:
            return None
        lines = [f"{'decision':<32} {'channels':>8} {'kept':>6} {'ratio':>6}"]
        for decision, kept in zip(self.problem.decisions, self._kept, strict=False):
            lines.append(f"{decision.name:<32} {decision.size:>8} {kept:>6} {decision.ratio(kept):>6.2f}")
        return "\n".join(lines)

    def _clamp(self, step: int, kept: int) -> int:
        """The largest allowed width <= `kept` that leaves the budgets within reach (the smallest always does)."""
        widths = [*self._kept, kept, *self.problem.smallest_widths[step + 1 :]]
        if self.problem.feasible(widths):
            return kept
        choices = self.problem.decisions[step].choices
        low, high = 0, choices.index(kept)
        while high - low > 1:
            middle = (low + high) // 2
            widths[step] = choices[middle]
            low, high = (middle, high) if self.problem.feasible(widths) else (low, middle)
        return choices[low]

    def _final_observation(self) -> Observation:
        last = len(self._kept) - 1
        observation = self._embed(last, self._kept[:-1])
        observation[REDUCED] = self._embed.reduced(self._kept)
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
