"""Specs: what is accepted, and that what is not is named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from amc_env.pruning.criteria import CRITERIA
from amc_env.pruning.saliency import SaliencySettings
from amc_env.settings import EvaluationSettings
from hw.host import RUNTIME_NAMES
from search import service
from search.lottery_spec import LotterySpec
from search.spec import STARTER, SpecError, load_as, load_spec, save_spec, spec_schema
from search.spec_inputs import Architecture, Network, Npz, Toy, UserFunction
from search.spec_models import Evaluation, Spec

TOY = """\
version: 1
network: {kind: toy, decisions: 3}
budget: {macs: 50%}
agents: [{kind: uniform}, {kind: random}]
evaluations: 5
"""
DIGITS = {**yaml.safe_load(TOY), "network": {"kind": "digits"}, "data": {"kind": "digits"}}


def write(folder: Path, text: str, name: str = "spec.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, TOY))
    assert spec.network == Toy(kind="toy", decisions=3)
    assert spec.seeds == (0,)
    assert spec.resources.max_failures == 2
    assert [agent.label for agent in spec.agents] == ["uniform", "random"]


def test_saved_spec_is_the_same_spec(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, TOY))
    again = load_spec(write(tmp_path, save_spec(spec), "again.yaml"))
    assert again == spec
    assert again.spec_id == spec.spec_id


def test_json_and_key_order_give_the_same_spec_id(tmp_path: Path) -> None:
    content = dict(reversed(yaml.safe_load(TOY).items()))
    path = write(tmp_path, json.dumps(content), "spec.json")
    assert load_spec(path).spec_id == load_spec(write(tmp_path, TOY)).spec_id


def test_another_value_gives_another_spec_id(tmp_path: Path) -> None:
    path = write(tmp_path, TOY)
    assert load_spec(path).spec_id != load_spec(path, ["evaluations=6"]).spec_id


def test_starter_is_valid(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, STARTER))
    assert spec.network.kind == "digits"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seedz": [1]}, "seedz: unknown key; did you mean 'seeds'?"),
        ({"network": {"kind": "toy", "decision": 3}}, "network.decision: unknown key; did you mean 'decisions'?"),
        ({"agents": [{"kind": "random", "nme": "a"}]}, "agents.0.nme: unknown key; did you mean 'name'?"),
        ({"resources": {"max_failure": 1}}, "resources.max_failure: unknown key; did you mean 'max_failures'?"),
        ({"agents": [{"kind": "unifrom"}]}, "agents.0: unknown kind 'unifrom'; did you mean 'uniform'?"),
        ({"network": {"kind": "toys"}}, "network: unknown kind 'toys'; did you mean 'toy'?"),
        ({"agents": [{}]}, "agents.0: expected a mapping with a kind"),
        ({"agents": []}, "agents: expected at least one"),
        ({"agents": [{"kind": "random"}, {"kind": "random"}]}, "agents: two agents are called 'random'"),
        ({"seeds": [1, 1]}, "seeds: expected each seed once, got [1, 1]"),
        ({"seeds": [-1]}, "seeds.0: Input should be greater than or equal to 0, got -1"),
        ({"evaluations": 0}, "evaluations: Input should be greater than or equal to 1, got 0"),
        ({"evaluations": None}, "evaluations: Input should be a valid integer"),
        (
            {"budget": {"mac": "50%"}},
            "budget: unknown cost 'mac'; did you mean 'macs'? "
            "(known: macs, size, activations, latency_ms, sparse_latency_ms)",
        ),
        ({"budget": {"macs": "150%"}}, "budget: budget macs: expected a positive number"),
        ({"budget": {}}, "budget: expected at least one limit"),
        ({"version": 2}, "version: Input should be 1, got 2"),
        ({"name": "a/b"}, "name: String should match pattern"),
        ({"network": {"kind": "digits"}}, "data: needed by every network but 'toy'"),
        ({"network": {"kind": "cifar_resnet", "depth": 56}}, "network.weights: is missing"),
        ({"data": {"kind": "npz", "test_image": 1}}, "data.test_image: unknown key; did you mean 'test_images'?"),
    ],
)  # fmt: skip
def test_faults_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path, yaml.safe_dump({**yaml.safe_load(TOY), **change}))
    with pytest.raises(SpecError, match=re.escape(message)):
        load_spec(path)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.yaml: cannot be read as a spec: No such file"):
        load_spec(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match=r"line 2, column 7: not YAML"):
        load_spec(write(tmp_path, "version: 1\nname: ]"))
    with pytest.raises(SpecError, match="expected keys and values such as 'version: 1', got list"):
        load_spec(write(tmp_path, "[1]"))


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, TOY)
    spec = load_spec(path, ["agents.1.name=a", "resources.max_failures=0", "seeds=[3, 4]", "budget={size: 1e3}"])
    assert [agent.label for agent in spec.agents] == ["uniform", "a"]
    assert spec.resources.max_failures == 0
    assert spec.seeds == (3, 4)
    assert spec.budget == {"size": "1e3"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluations", "--set evaluations: expected key=value"),
        ("agents.2.name=a", "--set agents.2.name=a: expected an index of 0..1 in a list, got '2'"),
        ("evaluations.a=1", "nothing can be set under 'a': what holds it is 5"),
        ("seeds=[1", "the value is not YAML"),
        ("sedes=[1]", "sedes: unknown key; did you mean 'seeds'?"),
    ],
)
def test_faulty_overrides_are_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        load_spec(write(tmp_path, TOY), [override])


def test_paths_resolve_against_the_file_and_those_of_overrides_against_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "specs").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    text = TOY.replace("{kind: toy, decisions: 3}", "{kind: function, target: 'm:f', weights: ../w.pt}")
    path = write(tmp_path / "specs", text + "data: {kind: npz, path: a.npz, search_images: 1, test_images: 1}\n")
    spec = load_spec(path)
    assert isinstance(spec.network, UserFunction)
    assert isinstance(spec.data, Npz)
    assert spec.network.weights == tmp_path / "w.pt"
    assert spec.network.folder == tmp_path / "specs"
    assert spec.data.path == tmp_path / "specs" / "a.npz"
    changed = load_spec(path, ["data.path=b.npz", "network={kind: cifar_resnet, depth: 20, weights: c.pt}"])
    assert isinstance(changed.data, Npz)
    assert changed.data.path == tmp_path / "here" / "b.npz"
    assert changed.content()["network"]["weights"] == str(tmp_path / "here" / "c.pt")


def test_the_evaluation_section_has_the_defaults_of_the_problem() -> None:
    assert Evaluation().settings() == EvaluationSettings()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_is_known(criterion: str) -> None:
    spec = Spec.model_validate({**DIGITS, "pruning": {"criterion": criterion}})
    assert spec.pruning.criterion == criterion


def test_an_unknown_criterion_gets_its_closest_match() -> None:
    with pytest.raises(
        ValidationError, match=r"pruning.criterion\n.*expected one of input_l1, .*did you mean 'taylor'"
    ):
        Spec.model_validate({**DIGITS, "pruning": {"criterion": "tailor"}})


def test_what_a_criterion_reads_stands_in_the_spec_and_its_id_only_if_told() -> None:
    plain = Spec.model_validate(DIGITS)
    assert "saliency" not in plain.content()["pruning"]
    told = Spec.model_validate(
        {**DIGITS, "pruning": {"criterion": "snip_momentum", "saliency": {"snip_factors": [0.9, 1.0], "seed": 3}}}
    )
    assert told.pruning.settings().saliency == SaliencySettings(seed=3, snip_factors=(0.9, 1.0))
    assert Spec.model_validate(told.content()) == told
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        Spec.model_validate({**DIGITS, "pruning": {"saliency": {"snip_factors": [0.9, -1.0]}}})


def test_one_threshold_needs_scores_that_compare() -> None:
    spec = {**DIGITS, "agents": [{"kind": "global"}]}
    assert Spec.model_validate({**spec, "pruning": {"criterion": "taylor"}}).agents[0].needs_scores
    with pytest.raises(
        ValidationError, match="agents: global ranks the channels of all layers, of which criterion obs"
    ):
        Spec.model_validate({**spec, "pruning": {"criterion": "obs"}})


@pytest.mark.parametrize(
    ("budget", "got"), [({}, "none"), ({"macs": "50%", "size": "50%"}, "macs, size"), ({"latency_ms": "50%"}, None)]
)
def test_several_budgets_are_fractions_of_one(budget: dict[str, str], got: str | None) -> None:
    spec = {**DIGITS, "budget": budget, "reward": "error_macs", "agents": [{"kind": "ddpg", "budgets": [0.7, 0.5]}]}
    if got is None:
        assert Spec.model_validate(spec).agents[0].needs_budget
        return
    message = f"agents: ddpg takes `budgets`, fractions of .*; expected one limit in budget, got {got}"
    with pytest.raises(ValidationError, match=message):
        Spec.model_validate(spec)


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        (
            {"objective": "agrement"},
            "evaluation: objective: unknown 'agrement'; did you mean 'agreement'? (known",
        ),
        (
            {"fidelity": "full"},
            "evaluation.fidelity: Input should be 'magnitude', 'prefix' or 'sequential'",
        ),
        (
            {"fidelity": "sequential", "recalibrate_batchnorm": True},
            "evaluation: recalibrate_batchnorm: batch norm recalibration after sequential reconstruction does harm",
        ),
        ({"images": 0}, "evaluation.images: Input should be greater than or equal to 1, got 0"),
        ({"imges": 10}, "evaluation.imges: unknown key; did you mean 'images'? (known here: fidelity, recal"),
    ],
)
def test_faulty_evaluation_sections_are_named(tmp_path: Path, evaluation: dict[str, Any], message: str) -> None:
    path = write(tmp_path, yaml.safe_dump({**DIGITS, "evaluation": evaluation}))
    with pytest.raises(SpecError, match=re.escape(message)):
        load_spec(path)


def test_the_toy_network_takes_no_evaluation_section(tmp_path: Path) -> None:
    assert load_spec(write(tmp_path, TOY + "evaluation: {fidelity: sequential}\n")).evaluation == Evaluation()
    with pytest.raises(SpecError, match="evaluation: network 'toy' has a closed-form accuracy; leave the section out"):
        load_spec(write(tmp_path, TOY + "evaluation: {fidelity: prefix}\n"))


def test_the_module_of_an_objective_is_beside_the_spec_and_not_imported_at_load_time(tmp_path: Path) -> None:
    text = yaml.safe_dump({**DIGITS, "evaluation": {"objective": "no_such_module:errors"}})
    path = write(tmp_path, text)
    assert load_spec(path).evaluation.folder == tmp_path
    assert load_spec(write(tmp_path, save_spec(load_spec(path)), "again.yaml")) == load_spec(path)
    plain = write(tmp_path, yaml.safe_dump(DIGITS))
    assert load_spec(plain).evaluation.folder is None
    assert load_spec(plain, ["evaluation.objective=m:f"]).evaluation.folder == tmp_path
    with pytest.raises(ValueError, match="folder: expected the folder of the module of objective 'm:f'"):
        Evaluation(objective="m:f")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "examples").glob("*.yaml")), ids=lambda path: path.stem
)
def test_examples_are_valid(path: Path) -> None:
    if "lottery" in yaml.safe_load(path.read_text()):
        assert load_as(LotterySpec, path).lottery.rounds > 1
        return
    spec = load_spec(path)
    assert spec.evaluation.fidelity == ("prefix" if spec.pruning.of_weights else "sequential")


def test_schema_describes_the_starter() -> None:
    schema = spec_schema()
    assert set(yaml.safe_load(STARTER)) <= set(schema["properties"])
    assert schema["additionalProperties"] is False


@given(seeds=st.lists(st.integers(0, 2**32), min_size=1, max_size=4, unique=True), evaluations=st.integers(1, 10**6))
def test_content_round_trips(seeds: list[int], evaluations: int) -> None:
    spec = Spec.model_validate({**yaml.safe_load(TOY), "seeds": seeds, "evaluations": evaluations})
    assert Spec.model_validate(json.loads(json.dumps(spec.content()))) == spec


def kinds(union: Any) -> set[str]:
    members = get_args(get_args(union)[0])
    return {get_args(member.model_fields["kind"].annotation)[0] for member in members}


def test_every_network_can_be_trained_by_the_lottery_and_those_with_weights_be_uploaded() -> None:
    assert kinds(Architecture) == kinds(Network) - {"toy"}
    page = Path(service.__file__).parent / "web" / "upload.js"
    listed = re.search(r"const KINDS = \{\n(.*?)\n\};", page.read_text(encoding="utf-8"), re.DOTALL)
    assert listed
    embedded = {"toy", "digits", "text_classifier"}
    code = {"function"}  # never by HTTP
    assert set(re.findall(r"^  (\w+):", listed[1], re.MULTILINE)) == kinds(Network) - embedded - code
    assert all(kind in STARTER for kind in kinds(Network) - {"toy"})


def test_the_form_offers_every_runtime() -> None:
    page = Path(service.__file__).parent / "web" / "submit.js"
    listed = re.search(r"const RUNTIMES = (\[.*?\]);", page.read_text(encoding="utf-8"))
    assert listed
    assert tuple(json.loads(listed[1])) == RUNTIME_NAMES
