"""The agents that a spec can ask for by `kind`. A new agent is one more line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from agents.base import Agent
from agents.cma_es import CMAES
from agents.ddpg import DDPG
from agents.given_plan import GivenPlan
from agents.global_ranking import GlobalRanking
from agents.local_search import LocalSearch
from agents.netadapt import NetAdapt
from agents.random_search import RandomSearch
from agents.reconstruction import Reconstruction
from agents.sac import SAC
from agents.sensitivity import Sensitivity
from agents.surrogate import SurrogateSearch
from agents.td3 import TD3
from agents.uniform import Uniform

#: kind -> class
AGENTS: Mapping[str, type[Agent]] = {
    "cma_es": CMAES,
    "ddpg": DDPG,
    "global": GlobalRanking,
    "local_search": LocalSearch,
    "netadapt": NetAdapt,
    "plan": GivenPlan,
    "random": RandomSearch,
    "reconstruction": Reconstruction,
    "sac": SAC,
    "sensitivity": Sensitivity,
    "surrogate": SurrogateSearch,
    "td3": TD3,
    "uniform": Uniform,
}

#: any of them, told apart by `kind`: the type of a field that holds an agent
AnyAgent = Annotated[
    CMAES
    | DDPG
    | GlobalRanking
    | LocalSearch
    | NetAdapt
    | GivenPlan
    | RandomSearch
    | Reconstruction
    | SAC
    | Sensitivity
    | SurrogateSearch
    | TD3
    | Uniform,
    Field(discriminator="kind"),
]
