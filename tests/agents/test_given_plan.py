from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from agents.given_plan import GivenPlan
from amc_env.policy import PruningPolicy
from amc_env.toy import ToyProblem
from tests.contracts.agent_contract import AgentContract, reported

RATIOS = {"layer0": 0.5, "layer1": 0.25, "layer2": 0.0}


class TestGivenPlan(AgentContract):
    agent = GivenPlan(ratios={"layer0": 0.25}, default=0.5, fit=True)
    far = no_better = "one evaluation only"


def test_is_evaluated_as_it_stands() -> None:
    problem = ToyProblem(3, budget={"macs": "90%"})
    (evaluation,) = reported(GivenPlan(ratios=RATIOS), problem, 5)
    assert evaluation.ratios == (0.5, 0.25, 0.0)


def test_one_over_the_budget_is_infeasible_unless_it_is_fitted() -> None:
    problem = ToyProblem(3, budget={"macs": "30%"})
    plan, fitted = GivenPlan(ratios=RATIOS), GivenPlan(ratios=RATIOS, fit=True)
    assert plan.search(problem, max_evaluations=1, seed=0, on_evaluation=lambda _: None) is None
    assert not reported(plan, problem, 1)[0].feasible
    assert reported(fitted, problem, 1)[0] == problem.evaluate(problem.fit_to_budget(RATIOS))


def test_patterns_and_the_default_give_what_is_not_named_itself() -> None:
    plan = GivenPlan(ratios={"layer[01]": 0.5, "layer*": 0.25, "layer1": 0.75}).plan(ToyProblem(3))
    assert plan == {"layer0": 0.5, "layer1": 0.75, "layer2": 0.25}
    assert GivenPlan(ratios={"layer1": 0.75}, default=0.0).plan(ToyProblem(2)) == {"layer0": 0.0, "layer1": 0.75}
    assert GivenPlan(default=0.5).plan(ToyProblem(2)) == {"layer0": 0.5, "layer1": 0.5}


def test_decisions_without_a_ratio_are_listed() -> None:
    expected = "ratios: none for 'layer0', 'layer2'; add them, or default: 0.0 to keep the rest whole"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        GivenPlan(ratios={"layer1": 0.5}).check(ToyProblem(3), 1)


def test_unknown_names_are_listed_with_the_nearest() -> None:
    expected = "ratios: no decision is called 'layr1', 'conv*'; did you mean 'layer1'? (known: layer0, layer1, layer2)"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        GivenPlan(ratios={"layr1": 0.5, "conv*": 0.1}, default=0.0).check(ToyProblem(3), 1)


def test_a_policy_is_read_once_and_replays_without_its_file(tmp_path: Path) -> None:
    PruningPolicy(RATIOS).save(tmp_path / "policy.json")
    agent = GivenPlan.model_validate({"kind": "plan", "path": str(tmp_path / "policy.json")})
    (tmp_path / "policy.json").unlink()
    assert agent == GivenPlan(ratios=RATIOS)
    assert GivenPlan.model_validate_json(agent.model_dump_json()) == agent


@pytest.mark.parametrize("text", ["layer0: 0.5\nlayer1: 0.25\nlayer2: 0\n", json.dumps(RATIOS)], ids=["YAML", "JSON"])
def test_a_mapping_in_a_file_is_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan").write_text(text)
    assert GivenPlan(path=tmp_path / "plan").ratios == RATIOS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- 0.5\n", "to hold name: ratio, as 'conv1: 0.5', got '[0.5]'"),
        ("", "to hold name: ratio, as 'conv1: 0.5', got 'None'"),
        ("conv1: half\n", "to hold name: ratio, as 'conv1: 0.5', got \"{'conv1': 'half'}\""),
        ("conv1: 1.0\n", "ratio of 'conv1': expected a fraction removed in [0, 1), got 1.0"),
        ('{"version": 1, "ratios": {"a": "0.5"}}', "ratio of 'a': expected a fraction removed in [0, 1), got '0.5'"),
        ("{", "cannot be read as a plan: expected the node content, but found '<stream end>'"),
        ('{"version": 2, "ratios": {}}', "expected a pruning policy of version 1, got version 2"),
    ],
)
def test_a_file_that_holds_no_plan_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "plan").write_text(text)
    with pytest.raises(ValidationError, match=re.escape(expected)):
        GivenPlan(path=tmp_path / "plan")


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ValidationError, match=r"path: /none\.json cannot be read as a plan: No such file or directory"):
        GivenPlan(path=Path("/none.json"))


def test_settings_that_say_nothing_or_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="expected ratios, a path to a file of them, or a default for all"):
        GivenPlan()
    with pytest.raises(ValidationError, match="path and ratios: expected one of them, got both"):
        GivenPlan(path=tmp_path / "plan", ratios=RATIOS)
    with pytest.raises(ValidationError, match=r"ratios.layer0\n  Input should be less than 1"):
        GivenPlan(ratios={"layer0": 1.0})
