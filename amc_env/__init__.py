"""Pruning-ratio selection as a Gymnasium environment, after AMC (arXiv 1802.03494). Importing registers it."""

import gymnasium

from amc_env.budget import Budget, InfeasibleBudgetError
from amc_env.cost_map import ChannelMap
from amc_env.env import PruningEnv
from amc_env.policy import PruningPolicy
from amc_env.problem import Decision, Evaluation, PruningProblem, Score
from amc_env.toy import ToyProblem

gymnasium.register(
    "Pruning-v0", entry_point="amc_env.env:PruningEnv", vector_entry_point="amc_env.vector:PruningVectorEnv"
)

__all__ = [
    "Budget",
    "ChannelMap",
    "Decision",
    "Evaluation",
    "InfeasibleBudgetError",
    "PruningEnv",
    "PruningPolicy",
    "PruningProblem",
    "Score",
    "ToyProblem",
]
