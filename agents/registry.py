"""The agents that a spec can ask for by `kind`. A new agent is one more line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from agents.base import Agent
from agents.ddpg import DDPG
from agents.given_plan import GivenPlan
from agents.local_search import LocalSearch
from agents.netadapt import NetAdapt
from agents.random_search import RandomSearch
from agents.reconstruction import Reconstruction
from agents.sensitivity import Sensitivity
from agents.uniform import Uniform

#: kind -> class
AGENTS: Mapping[str, type[Agent]] = {
    "ddpg": DDPG,
    "local_search": LocalSearch,
    "netadapt": NetAdapt,
    "plan": GivenPlan,
    "random": RandomSearch,
    "reconstruction": Reconstruction,
    "sensitivity": Sensitivity,
    "uniform": Uniform,
}

#: any of them, told apart by `kind`: the type of a field that holds an agent
AnyAgent = Annotated[
    DDPG | LocalSearch | NetAdapt | GivenPlan | RandomSearch | Reconstruction | Sensitivity | Uniform,
    Field(discriminator="kind"),
]
