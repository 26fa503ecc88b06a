"""[AMC]'s changes to stable-baselines3's learners, once for DDPG, TD3 and SAC: rates, exploration, whole episodes."""

from __future__ import annotations

import contextlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import stable_baselines3
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import update_learning_rate
from torch import nn

from agents.local_search import Climb
from agents.noise import decay_for, truncated_normal
from agents.off_policy import Deterministic, OffPolicy
from agents.replay import Episode, EpisodeReplay
from agents.sac import SAC
from agents.td3 import TD3
from amc_env.env import PruningEnv
from amc_env.problem import Evaluation, FloatArray, PruningProblem


class AMCLearner(OffPolicyAlgorithm):
    """An off-policy learner of stable-baselines3 with the changes of [AMC] section 3.3, to be mixed in before it.

    Args:
        env: the environment; its `infeasible_reward` must be finite.
        settings: of the agent.
        episodes: how many will be played; the noise falls over them.
        seed: of the networks, the exploration, the sampling, the updates and the order of the budgets.
        curves: for each decision the error of each of its choices, of which warm-up "heuristic" and the residual make
            plans; None: the problem's reconstruction errors.
        **options: of the learner that this is mixed into.

    Raises:
        ValueError: the environment's `infeasible_reward` is not finite.
    """

    def __init__(
        self,
        env: PruningEnv,
        settings: OffPolicy,
        *,
        episodes: int,
        seed: int,
        curves: Sequence[FloatArray] | None = None,
        **options: Any,
    ) -> None:
        if not math.isfinite(env.infeasible_reward):
            raise ValueError(
                f"a learner needs finite rewards, but the environment's infeasible_reward is {env.infeasible_reward}: "
                f"one infinite reward turns its networks to NaN. Use PruningEnv(problem, infeasible_reward=-1.0)."
            )
        self._env = env
        self._space = cast(Box, env.action_space)
        self._common = settings
        self._curves = curves
        self._steps = len(env.problem.decisions)
        self._warmup = settings.warmup_for(episodes)
        networks, exploration, sampling, updates, turns = np.random.SeedSequence(seed).spawn(5)
        self._rng = np.random.default_rng(exploration)
        self._embed = env.embedding
        self._plan: NDArray[np.float64] | None = None
        self._climbs: dict[Any, Climb] = {}
        self._climbing: Climb | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(updates.generate_state(1)[0]))
            self._torch_state = torch.get_rng_state()
            torch.manual_seed(int(networks.generate_state(1)[0]))
            super().__init__(
                "MlpPolicy",
                env,
                learning_rate=settings.critic_learning_rate,
                buffer_size=settings.replay_size,
                learning_starts=self._warmup * self._steps,
                batch_size=settings.batch_size,
                tau=settings.tau,
                gamma=settings.discount,
                train_freq=(1, "episode"),
                gradient_steps=settings.updates_per_decision * self._steps,
                replay_buffer_class=EpisodeReplay,
                replay_buffer_kwargs={
                    "seed": sampling,
                    "baseline_decay": settings.baseline_decay,
                    "rewrite": self._executed_episode if settings.stored_action == "executed" else None,
                },
                policy_kwargs={"net_arch": list(settings.hidden), "optimizer_kwargs": {"fused": True}},
                device="cpu",
                **options,
            )
        if settings.residual:
            self._begin_without_correction()
        if self.env is not None:
            self.env.seed(int(turns.generate_state(1)[0]))
        self.set_logger(Logger(None, []))

    @abstractmethod
    def _explore(self) -> float:
        """The actor's output for the present observation, with exploration, from its whole range scaled to [0, 1]."""

    def _output(self) -> float:
        """The actor's output, scaled to [0, 1); drawn, if the actor is stochastic."""
        return float(self.predict(np.asarray(self._last_obs))[0].item())

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        with self._own_randomness():
            super().train(gradient_steps, batch_size)

    def _update_learning_rate(self, optimizers: list[torch.optim.Optimizer] | torch.optim.Optimizer) -> None:
        """Set [AMC]'s two rates where stable-baselines3 sets one; called with all optimizers before each update."""
        policy = cast(Any, self.policy)
        update_learning_rate(policy.actor.optimizer, self._common.actor_learning_rate)
        update_learning_rate(policy.critic.optimizer, self._common.critic_learning_rate)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """The ratio to play, (1, 1), and the same as an output of the actor for the replay."""
        step = self.num_timesteps % self._steps
        if step == 0:
            self._begin_episode()
        ratio = self._ratio(step) if self._plan is None else float(self._plan[step])
        action = np.array([[ratio]], dtype=np.float32).clip(self._space.low, self._space.high)
        return action, self._as_outputs(action, slice(step, step + 1))

    def _begin_episode(self) -> None:
        """Learn how the last plan of the heuristic did; remember the budget and find the plan to play, if any."""
        if self._climbing is not None:
            self._climbing.tell(self._embed.problem.judge(self._last_evaluation()))
        self._embed = self._env.embedding
        self._plan, self._climbing = None, None
        if self._episode_num >= self._warmup:
            return
        problem = self._embed.problem
        if self._common.warmup == "budget":
            self._plan = problem.fit_to_budget(self._rng.uniform(0.0, problem.ratios(problem.smallest_widths)))
        if self._common.warmup == "heuristic" and (widths := self._climb(problem).ask()) is not None:
            self._plan, self._climbing = problem.ratios(widths), self._climb(problem)

    def _climb(self, problem: PruningProblem) -> Climb:
        """The local search under the budget of this view of the problem."""
        if problem.budgets not in self._climbs:
            curves = self._env.problem.reconstruction_errors() if self._curves is None else self._curves
            self._climbs[problem.budgets] = Climb(problem, curves, self._rng)
        return self._climbs[problem.budgets]

    def _heuristic(self) -> NDArray[np.float64]:
        """The ratios that the actor corrects in this episode, (decisions,)."""
        return self._embed.problem.ratios(self._climb(self._embed.problem).start)

    def _ratio(self, step: int) -> float:
        """The ratio that the actor chooses, explored."""
        output = self._explore()
        if not self._common.residual:
            return output
        return float(self._heuristic()[step] + self._common.residual * (2.0 * output - 1.0))

    def _as_outputs(self, ratios: NDArray[Any], steps: slice) -> NDArray[Any]:
        """Ratios at these steps, (steps, 1), as outputs of the actor in [-1, 1] (beyond, if no output gives them)."""
        if not self._common.residual:
            return self.policy.scale_action(ratios)
        return ((ratios - self._heuristic()[steps, np.newaxis]) / self._common.residual).astype(np.float32)

    def _executed_episode(self) -> Episode:
        """The episode that just ended, as if its rounded and clamped or fitted ratios had been chosen."""
        evaluation = self._last_evaluation()
        kept = list(evaluation.widths)
        observations = np.stack([self._embed(step, kept[:step]) for step in range(self._steps)])
        ratios = np.array(evaluation.ratios, dtype=np.float32).reshape(-1, 1)
        return observations, self._as_outputs(ratios, slice(None))

    def _last_evaluation(self) -> Evaluation:
        if self._env.last_evaluation is None:
            raise RuntimeError("no episode has ended yet")
        return self._env.last_evaluation

    def _begin_without_correction(self) -> None:
        """Make the last layer of the actor, and of its target, zero: its (mean) output is the middle of the range."""
        for name in ("actor", "actor_target"):
            for parameter in _last_linear(getattr(self.policy, name, None)):
                nn.init.zeros_(parameter)

    @contextlib.contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """Within the block torch draws from this learner's own state, so that no one else's draws change a search."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._torch_state)
            yield
            self._torch_state = torch.get_rng_state()


def _last_linear(actor: Any) -> list[nn.Parameter]:
    """Weight and bias of the layer that gives the actor's (mean) output; none without an actor."""
    layers = [] if actor is None else [layer for layer in actor.mu.modules() if isinstance(layer, nn.Linear)]
    return list(layers[-1].parameters()) if layers else []


class _NoisyLearner(AMCLearner):
    """Explores by truncated-normal noise around the actor's output."""

    def __init__(self, env: PruningEnv, settings: Deterministic, *, episodes: int, **options: Any) -> None:
        self._noise = settings
        learning = episodes - settings.warmup_for(episodes)
        self._decay = settings.sigma_decay or decay_for(settings.sigma, settings.final_sigma, learning)
        super().__init__(env, settings, episodes=episodes, **options)

    def sigma(self, episode: int) -> float:
        """Width of the exploration in episode 0, 1, ...: constant in the warm-up, then falling by a factor each."""
        return self._noise.sigma * self._decay ** max(0, episode - self._warmup)

    def _explore(self) -> float:
        return truncated_normal(self._rng, self._output(), self.sigma(self._episode_num))


class DDPGLearner(_NoisyLearner, stable_baselines3.DDPG):
    """stable-baselines3's DDPG in [AMC]'s way."""


class TD3Learner(_NoisyLearner, stable_baselines3.TD3):
    """stable-baselines3's TD3 in [AMC]'s way."""

    def __init__(self, env: PruningEnv, settings: TD3, **options: Any) -> None:
        super().__init__(
            env,
            settings,
            policy_delay=settings.policy_delay,
            target_policy_noise=settings.target_noise,
            target_noise_clip=settings.target_noise_clip,
            **options,
        )


class SACLearner(AMCLearner, stable_baselines3.SAC):
    """stable-baselines3's SAC in [AMC]'s way; its actor explores by itself."""

    def __init__(self, env: PruningEnv, settings: SAC, **options: Any) -> None:
        super().__init__(
            env,
            settings,
            ent_coef=f"auto_{settings.temperature}",
            target_entropy=settings.target_entropy,
            **options,
        )
        if self.ent_coef_optimizer is not None:
            update_learning_rate(self.ent_coef_optimizer, settings.temperature_learning_rate)

    def _explore(self) -> float:
        with self._own_randomness():
            return self._output()


class ReportEpisodes(BaseCallback):
    """Passes on the evaluation that ends each episode and stops learning after the last."""

    def __init__(self, env: PruningEnv, report: Callable[[Evaluation], None], episodes: int) -> None:
        super().__init__()
        self._env, self._report, self._left = env, report, episodes

    def _on_step(self) -> bool:
        if self.locals["dones"][0] and self._env.last_evaluation is not None:
            self._report(self._env.last_evaluation)
            self._left -= 1
        return self._left > 0
