from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from agents.base import Agent
from agents.ddpg import DDPG
from agents.registry import AGENTS, AnyAgent


def test_the_union_holds_exactly_the_registered_agents() -> None:
    assert set(get_args(get_args(AnyAgent)[0])) == set(AGENTS.values())
    assert all(cls.model_fields["kind"].default == kind for kind, cls in AGENTS.items())


def test_kind_chooses_the_class_and_its_settings() -> None:
    agent = TypeAdapter[Agent](AnyAgent).validate_python({"kind": "ddpg", "sigma": 0.25, "name": "narrow"})
    assert agent == DDPG(sigma=0.25, name="narrow")
    assert (agent.label, DDPG().label) == ("narrow", "ddpg")


def test_an_unknown_kind_lists_the_known() -> None:
    with pytest.raises(ValidationError, match="does not match any of the expected tags: 'cma_es', 'ddpg', 'global'"):
        TypeAdapter[Agent](AnyAgent).validate_python({"kind": "dqn"})


def test_importing_the_registry_does_not_load_the_learning_library() -> None:
    code = "import sys, agents.registry; sys.exit('stable_baselines3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
