"""Problems by name, for research: nothing to download, and the same for everybody who names them.

| name | what |
| --- | --- |
| `toy5-v0`, `toy20-v0`, `toy50-v0` | so many layers, closed-form accuracy, known optimum |
| `toy20-interaction-v0`, `toy50-interaction-v0` | layers interact, the loss is not convex; known optimum |
| `toy20-staircase-v0` | costs rise by blocks of 4 channels; known optimum |
| `digits-v0` | a small residual network on scikit-learn's digits; evaluated really, in hundredths of a second |
| `resnet56-cifar10-v0` | recorded: a surrogate of ResNet-56 on CIFAR-10, fitted to real evaluations |
| `mobilenet-v2-imagenet-v0` | the same of MobileNet-V2 on 500 ImageNet images |

A version changes when the same policy would get another reward. All are limited to half their MACs unless told,
MobileNet-V2 to 70 %, as in the AMC paper: without fine-tuning little is left of it at half.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from amc_env.problem import PruningProblem
from amc_env.recorded import RecordedProblem, Recording, shipped_recording
from amc_env.toy import ToyProblem

Limits = Mapping[str, float | str]


def _digits(budget: Limits) -> PruningProblem:
    from amc_env.datasets import SplitSizes, load_splits
    from amc_env.evaluation import NetworkProblem
    from amc_env.settings import PruningSettings
    from amc_env.zoo import digits_network, digits_weights, load_weights

    network = digits_network()
    load_weights(network, digits_weights())
    data = load_splits("digits", SplitSizes(calibration=500, search=450, test=450, seed=0))
    return NetworkProblem(network, data, budget=budget, settings=PruningSettings(round_to=1))


def _recorded(name: str, budget: Limits) -> PruningProblem:
    return RecordedProblem(Recording.load(shipped_recording(name)), budget=budget)


def _toy(decisions: int, budget: Limits, **options: Any) -> PruningProblem:
    return ToyProblem(decisions, budget=budget, **options)


_RECORDED = ("resnet56-cifar10-v0", "mobilenet-v2-imagenet-v0")
_BUDGETS = {"mobilenet-v2-imagenet-v0": {"macs": "70%"}}
PROBLEMS: Mapping[str, Callable[[Limits], PruningProblem]] = {
    "toy5-v0": partial(_toy, 5),
    "toy20-v0": partial(_toy, 20),
    "toy50-v0": partial(_toy, 50),
    "toy20-interaction-v0": lambda budget: _toy(20, budget, interaction=2.0),
    "toy50-interaction-v0": lambda budget: _toy(50, budget, interaction=2.0),
    "toy20-staircase-v0": lambda budget: _toy(20, budget, staircase=4),
    "digits-v0": _digits,
    **{name: partial(_recorded, name) for name in _RECORDED},
}


def make_problem(
    name: str, *, budget: Limits | None = None, real: Mapping[str, str | Path] | None = None
) -> PruningProblem:
    """The problem of a name.

    Args:
        name: one of `PROBLEMS`.
        budget: as of `PruningProblem`; by default the problem's own, see above.
        real: of a recorded problem: evaluate the network itself instead, with these `weights` and these images under
            `path`, of ImageNet also the file of their `labels`, as it was evaluated for the recording.

    Raises:
        ValueError: there is no such problem, or none that was recorded.
        FileNotFoundError: weights or images are not there.
    """
    if name not in PROBLEMS:
        close = difflib.get_close_matches(name, PROBLEMS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"problem: unknown name {name!r}{hint} (known: {', '.join(PROBLEMS)})")
    limits = _BUDGETS.get(name, {"macs": "50%"}) if budget is None else budget
    if real is None:
        return PROBLEMS[name](limits)
    if name not in _RECORDED:
        raise ValueError(f"real: {name!r} is evaluated as it is; only {', '.join(_RECORDED)} were recorded")
    recording = Recording.load(shipped_recording(name))
    needed = ["weights", "path"] + ["labels"] * (recording.source["data"].get("labels") is not None)
    if set(real) != set(needed):
        raise ValueError(f"real: expected {', '.join(needed)}, got {', '.join(real) or 'nothing'}")
    return real_problem(recording, {key: Path(file) for key, file in real.items()}, limits)


def real_problem(
    recording: Recording, files: Mapping[str, Path], budget: Limits, objective: str = "top1"
) -> PruningProblem:
    """The problem that was recorded, evaluated really.

    Args:
        recording: of what.
        files: its network's `weights`, the `path` of its images, and their `labels` if they are in a file.
        budget: as of `PruningProblem`.
        objective: as of `EvaluationSettings`.
    """
    from amc_env.datasets import SplitSizes, load_splits
    from amc_env.evaluation import NetworkProblem
    from amc_env.settings import EvaluationSettings, PruningSettings
    from amc_env.splits import Preprocessing
    from amc_env.zoo import cifar_resnet, load_weights, torchvision_network

    source = recording.source
    kind, data = source["network"]["kind"], source["data"]
    network = (
        cifar_resnet(source["network"]["depth"])
        if kind == "cifar_resnet"
        else torchvision_network(source["network"]["name"])
    )
    load_weights(network, files["weights"])
    sizes = SplitSizes(data["calibration_images"], data["search_images"], data["test_images"], data["seed"])
    options = {name: data[name] for name in ("resize", "crop") if data.get(name) is not None}
    normalisation = data["preprocessing"]
    splits = load_splits(
        data["kind"], sizes, None if normalisation is None else Preprocessing(**_tuples(normalisation)),
        files["path"], files.get("labels"), **options,
    )  # fmt: skip
    evaluation = {key: source["evaluation"][key] for key in ("fidelity", "images", "rows")}
    pruning = {key: source["pruning"][key] for key in ("round_to", "max_ratio", "criterion", "keep")}
    return NetworkProblem(
        network, splits, budget=budget,
        settings=PruningSettings(**_tuples(pruning)), evaluation=EvaluationSettings(objective=objective, **evaluation),
    )  # fmt: skip


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
