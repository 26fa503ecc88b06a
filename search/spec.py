"""Specs as files: read YAML or JSON, apply overrides, resolve paths, and say what is wrong in words of the file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from search.spec_base import nearest
from search.spec_models import Spec, SpecError, spec_schema

__all__ = [
    "STARTER",
    "Spec",
    "SpecError",
    "check",
    "load_as",
    "load_raw",
    "load_spec",
    "save_spec",
    "schema_text",
    "spec_schema",
]

Model = TypeVar("Model", bound=BaseModel)
#: keys whose values are paths, wherever they stand
PATH_KEYS = frozenset({"weights", "path", "labels", "folder", "table"})

STARTER = """\
version: 1
name: digits-half-macs

# cifar_resnet (depth, classes, weights), lenet and torchvision (name, classes, weights), mobilenet_v1 (width, classes,
# weights), function (target: "module:function", weights), or embedded and trained on first use: text_classifier, or
network: {kind: digits}

# npz (path), cifar10, cifar100, mnist, fashion_mnist (path, download), image_folder (path, labels, resize, crop),
# npz_tokens (path): these need search_images and test_images; stdlib_docs has the sentences for text_classifier.
# Agents see the search split, only the report sees the test split.
data:
  kind: digits
  calibration_images: 500
  search_images: 450
  test_images: 450
  seed: 0
  # preprocessing: {mean: [0.5], std: [0.25], scale: 255}   # as the weights need it

# Upper limits: "50%" of the dense network's cost, or a number. Several may hold at once: macs, size (bytes of all
# parameters), activations (bytes of the largest input and output of a layer), latency_ms. For the last one a table of
# layer latencies is needed: `table: latency.json` made by `amc lut build`, or else the job builds it. Single weights
# have macs, size (as stored) and sparse_latency_ms (of sparse layers, by a table that the job builds).
budget: {macs: 50%}
# latency: {runtime: onnxruntime, threads: 1, batch: 1, refine: 1}   # or torch, torch.compile, cuda

pruning:
  round_to: 4          # channel counts are multiples of this
  max_ratio: 0.8       # no decision removes more than this fraction
  criterion: input_l1  # or l1, l2, energy, obs (greedily, what costs least to reconstruct; slow for large layers),
                       # bn_scale, apoz, random, obd; with labels gradient, snip, snip_momentum, taylor

evaluation:
  fidelity: sequential # fit each layer to the dense network; or prefix (each by itself), magnitude (no fit)
  images: 100          # of the calibration images, how many a fit in the search uses; the final network uses all
  rows: 2000           # samples of each layer in that fit
  objective: top1      # or top5, cross_entropy; agreement, jensen_shannon (with the dense network); "module:function"
  # hard_images: 200   # score plans on so many images of the search split: those on which plans differ
  stop_early: false    # stop scoring a plan as soon as it cannot become the best
  dtype: float32       # or bfloat16
  device: auto         # a GPU if there is one; or cpu, cuda
  block_epochs: 10     # train each block of the final networks for so long to give what the dense one gives; or 0
  # finetune: {steps: 10}   # train each network of the search for so many batches of calibration images

reward: error          # or error_macs, error_weights

agents:
  - kind: ddpg
  - kind: local_search
  - kind: reconstruction
  - kind: uniform      # the same ratio everywhere; global: one threshold over the criterion's scores of all layers
  - kind: random
  # - {kind: surrogate, measured: true}   # evaluates each layer alone before it searches
  # also: cma_es, netadapt, sensitivity, td3, sac, and plan (path: a policy of your own)
seeds: [0, 1, 2]       # each agent runs once per seed
evaluations: 70        # of each trial

# Train each agent's best policy when all trials are finished, on the training images, and compare before and after:
# finetune: {epochs: 10, learning_rate: 0.01}
# of weights (pruning.granularity) also from the dense network, with masks that tighten meanwhile; and with a penalty:
# finetune: {epochs: 10, sparsify: {decay: exp, end: 0.7, frequency: 50}, regularizer: {kind: l1, strength: 1e-5}}

resources:
  trials_in_parallel: null   # as many as there are CPUs for
  threads_per_trial: 1
  evaluations_in_parallel: 1 # of one trial, where its agent asks for several at once
  max_failures: 2            # how often a trial whose process died is started again
"""


def load_spec(path: Path | str, overrides: Sequence[str] = ()) -> Spec:
    """Read a spec. Relative paths in the file are taken from its folder, those of overrides from the current one.

    Args:
        path: a YAML file, or JSON.
        overrides: "key=value" with a dotted key ("agents.0.name=a") and a value in YAML.

    Raises:
        SpecError: the file is not there or not YAML, a key is unknown, or a value does not fit.
    """
    return load_as(Spec, path, overrides)


def load_as(model: type[Model], path: Path | str, overrides: Sequence[str] = ()) -> Model:
    """The same for another kind of spec. Arguments and errors as of `load_spec`."""
    file = Path(path)
    folder = file.resolve().parent
    raw = _with_absolute_paths(_read(file), folder)
    for override in overrides:
        _apply(raw, override)
    _fill_in_folders(raw, folder)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = (f"{key}: {message}" if key else message for key, message in _explain(error, model))
        raise SpecError("\n".join(f"{file}: {line}" for line in lines)) from None


def load_raw(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a spec's file says, unchecked and with its paths as they stand: for a server that knows them by other names.

    Raises:
        SpecError: the file is not there or not YAML, or an override does not fit.
    """
    raw = _read(path)
    for override in overrides:
        _apply(raw, override, absolute=False)
    return raw


def check(raw: Mapping[str, Any]) -> tuple[Spec | None, list[tuple[str, str]]]:
    """The spec that plain values make; or None, and every fault: its dotted key ("": the whole) and what is wrong."""
    try:
        return Spec.model_validate(raw), []
    except ValidationError as error:
        return None, _explain(error, Spec)


def save_spec(spec: Spec) -> str:
    """The spec as YAML, defaults filled in; `load_spec` reads the same spec again."""
    return yaml.safe_dump(spec.content(), sort_keys=False, allow_unicode=True)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpecError(f"{file}: cannot be read as a spec: {reason}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SpecError(f"{file}{where}: not YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(content, dict):
        raise SpecError(f"{file}: expected keys and values such as 'version: 1', got {type(content).__name__}")
    return content


def _with_absolute_paths(value: Any, folder: Path, key: object = None) -> Any:
    if isinstance(value, dict):
        return {name: _with_absolute_paths(entry, folder, name) for name, entry in value.items()}
    if isinstance(value, list):
        return [_with_absolute_paths(entry, folder) for entry in value]
    if key in PATH_KEYS and isinstance(value, str):
        return str((folder / Path(value).expanduser()).resolve())
    return value


def _fill_in_folders(raw: dict[str, Any], folder: Path) -> None:
    """A module of the user's is looked for beside the spec unless told."""
    network, evaluation = raw.get("network"), raw.get("evaluation")
    sections = [network] if isinstance(network, dict) and network.get("kind") == "function" else []
    if isinstance(evaluation, dict) and ":" in str(evaluation.get("objective")):
        sections.append(evaluation)
    for section in sections:
        if section.get("folder") is None:
            section["folder"] = str(folder)


def _apply(raw: dict[str, Any], override: str, *, absolute: bool = True) -> None:
    """Set one dotted key; mappings on the way are made, places in lists must exist."""
    dotted, equals, text = override.partition("=")
    if not (dotted and equals):
        raise SpecError(f"--set {override}: expected key=value, such as evaluations=10 or agents.0.name=a")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"--set {override}: the value is not YAML: {getattr(error, 'problem', error)}") from error
    *way, last = dotted.split(".")
    place: Any = raw
    for part in way:
        place = _child(place, part, override)
    key = _key(place, last, override)
    place[key] = _with_absolute_paths(value, Path.cwd(), last) if absolute else value


def _child(place: Any, part: str, override: str) -> Any:
    key = _key(place, part, override)
    if isinstance(place, dict) and place.get(key) is None:
        place[key] = {}
    return place[key]


def _key(place: Any, part: str, override: str) -> str | int:
    if isinstance(place, dict):
        return part
    if not isinstance(place, list):
        raise SpecError(f"--set {override}: nothing can be set under {part!r}: what holds it is {place!r}")
    if not part.isdecimal() or int(part) >= len(place):
        raise SpecError(f"--set {override}: expected an index of 0..{len(place) - 1} in a list, got {part!r}")
    return int(part)


def _explain(error: ValidationError, model: type[BaseModel]) -> list[tuple[str, str]]:
    """Of each fault the dotted key, and what is wrong, with the nearest known key."""
    faults = []
    for fault in error.errors():
        dotted, known = _place(fault["loc"], model.model_json_schema())
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            known_keys = ", ".join(known)
            message = f"unknown key{nearest(str(fault['loc'][-1]), known)} (known here: {known_keys})"
        elif fault["type"] == "missing":
            message = "is missing"
        elif fault["type"] == "union_tag_invalid":
            tags = [tag.strip("'") for tag in fault["ctx"]["expected_tags"].split(", ")]
            tag = fault["ctx"]["tag"]
            message = f"unknown kind {tag!r}{nearest(tag, tags)} (known: {', '.join(tags)})"
        elif fault["type"] == "union_tag_not_found":
            message = "expected a mapping with a kind, such as {kind: ...}"
        elif isinstance(fault["input"], str | int | float) and ", got " not in message:
            message = f"{message}, got {fault['input']!r}"
        faults.append((dotted, message))
    return faults


def _place(location: Sequence[str | int], root: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The dotted key of a fault in the file, and the keys known at that level.

    A location names the chosen member of a union as well, which the file does not: the schema tells them apart.
    """
    schema = root
    parts: list[str] = []
    known: list[str] = []
    for part in location:
        schema = _resolved(schema, root)
        mapping = schema.get("discriminator", {}).get("mapping", {})
        if part in mapping:
            schema = {"$ref": mapping[part]}
            continue
        known = list(schema.get("properties", {}))
        parts.append(str(part))
        schema = schema.get("items", {}) if isinstance(part, int) else schema.get("properties", {}).get(part, {})
    return ".".join(parts), known


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow references, and of "this or null" take this."""
    while True:
        if "$ref" in schema:
            schema = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
        elif "anyOf" in schema:
            schema = next(option for option in schema["anyOf"] if option.get("type") != "null")
        else:
            return schema


def schema_text() -> str:
    """The JSON schema of a spec, as text."""
    return json.dumps(spec_schema(), indent=2)
