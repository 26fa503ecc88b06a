"""Hand back the winner, or a network of a series: policy, plan, weights, ONNX and a run card, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc_env.fine_grained import WeightProblem
from amc_env.image_problem import ImageProblem
from amc_env.policy import PruningPolicy
from amc_env.problem import Widths
from amc_env.pruning.surgery import apply_plan
from amc_env.storage import save_compressed
from hw.files import write_npz
from hw.runtimes.onnx_runtime import exporting_quietly
from search.build import build_problem, build_untrained
from search.chosen import Chosen, choose_step, choose_winner, load_winner
from search.finetune_job import fine_tuned
from search.job import load_results
from search.latency_job import job_table
from search.results import Results
from search.spec_models import Spec

Masks = dict[str, NDArray[np.bool_]]
#: largest difference allowed between the ONNX network's and the network's outputs, relative to the largest output
ONNX_TOLERANCE = 1e-4


class ExportError(ValueError):
    """The exported network is not the one that was scored, or cannot be written."""


def export_job(
    job: Path, out: Path, agent: str | None = None, seed: int | None = None, step: int | None = None
) -> Chosen:
    """Write the best policy of a job, or of one agent or seed of it, and its network, to the new folder `out`.

    policy.json: ratio per decision. plan.json: the indices that stay, by which `load_exported` rebuilds the network; of
    single weights how many stay, and which in masks.npz, with the network as it is stored in compressed/
    (`amc_env.storage.load_compressed`).
    weights.pt: its state_dict. model.onnx: float32, any batch size, checked in onnxruntime against the network.
    card.json: spec, seeds, versions, digests, costs, accuracies on both splits.

    A policy that the job fine-tuned is exported with the fine-tuned weights, and `fine_tuned` of the card says so.

    Args:
        job: the job's folder.
        out: a folder that is not there or empty.
        agent, seed: of which trials; None for all.
        step: network of the one series among them, from 1; it may be over the budget. None for the best policy.

    Raises:
        ChoiceError: no such winner or network.
        ExportError: `out` exists, or a check failed; then nothing is written.
    """
    results = load_results(job)
    chosen = choose_winner(results, agent, seed) if step is None else choose_step(results, agent, seed, step)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists and is not an empty folder; give another --out")
    table = job_table(job)
    try:
        problem = build_problem(Spec.model_validate(results.spec), table=table)
    except (ValueError, OSError) as error:  # weights or data are no longer where they were
        raise ExportError(str(error)) from error
    if not isinstance(problem, ImageProblem):
        raise ExportError("the job searched the toy problem, which has no network to export")
    widths = chosen.network.widths
    costs = problem.costs(widths)
    if costs != chosen.network.costs:
        raise ExportError(
            f"the network now costs {costs}, but was scored at {chosen.network.costs}; was its code changed?"
        )
    tuned = fine_tuned(results, widths)
    network = load_winner(job, problem, results, widths)
    test = problem.measure_network(network, "test")
    network.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    out.parent.mkdir(parents=True, exist_ok=True)
    with _whole_or_not(out) as folder:
        policy = problem.policy(problem.ratios(widths))
        policy.save(folder / "policy.json")
        (folder / "plan.json").write_text(json.dumps(problem.plan(widths)))
        torch.save(network.state_dict(), folder / "weights.pt")
        example = problem.data.preprocessing(problem.data.test.images[:8])
        difference = export_onnx(network, example, folder / "model.onnx")
        card = make_card(results, chosen, policy) | {
            "test_error_at_export": test.error,
            "test_accuracy_at_export": test.accuracy,
            "fine_tuned": None if tuned is None else tuned.model_dump(mode="json"),
            "onnx": {"largest_relative_difference": difference, "images_compared": len(example)},
        }
        if isinstance(problem, WeightProblem):
            removed_in_training = tuned is not None and bool(tuned.sparsity)
            masks = _nonzero(network, problem.masks(widths)) if removed_in_training else problem.masks(widths)
            card["compression"] = _export_weights(problem, network, masks, widths, folder)
        (folder / "card.json").write_text(json.dumps(card, indent=1, allow_nan=False))
    return chosen


def _export_weights(
    problem: WeightProblem, network: nn.Module, masks: Masks, widths: Widths, folder: Path
) -> list[dict[str, Any]]:
    """Write which weights stay and the network as it is stored; returns what each stage of compression takes."""
    write_npz(folder / "masks.npz", masks, compressed=True)
    save_compressed(network, list(masks), problem.storage, folder / "compressed", problem.settings.pattern)
    return problem.compression(network, widths)


def _nonzero(network: nn.Module, layers: Iterable[str]) -> Masks:
    return {name: network.get_parameter(f"{name}.weight").detach().cpu().numpy() != 0 for name in layers}


def load_exported(folder: Path) -> nn.Module:
    """The pruned network of an exported folder, in evaluation mode, on the CPU: a fresh network, the plan, the weights.

    Needs the network's code (torchvision, this package, or the user's function) but not its dense weights.
    """
    card = json.loads((folder / "card.json").read_text())
    plan = json.loads((folder / "plan.json").read_text())
    network = build_untrained(Spec.model_validate(card["spec"]))
    if "granularity" not in plan:  # of channels
        network = apply_plan(network, plan)
    network.load_state_dict(torch.load(folder / "weights.pt", map_location="cpu", weights_only=True))
    return network.eval()


def export_onnx(network: nn.Module, example: torch.Tensor, path: Path) -> float:
    """Export to one ONNX file with a free batch size; returns the largest difference from onnxruntime's outputs.

    Args:
        network: on the CPU, in evaluation mode.
        example: its input, float32 (at least 2 images, channels, height, width) on the CPU.
        path: of the file.

    Raises:
        ExportError: the outputs differ by more than `ONNX_TOLERANCE` of the largest output.
    """
    with exporting_quietly():
        torch.onnx.export(
            network, (example,), path, dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"], output_names=["logits"], external_data=False, verbose=False,
        )  # fmt: skip
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in (example, example[:1]):
        with torch.inference_mode():
            expected = network(batch).numpy()
        actual = session.run(None, {"images": batch.numpy()})[0]
        worst = max(worst, float(np.abs(actual - expected).max() / np.abs(expected).max()))
    if not worst <= ONNX_TOLERANCE:
        raise ExportError(
            f"onnxruntime's outputs differ by {worst:.1e} of the largest output (allowed {ONNX_TOLERANCE:.0e})"
        )
    return worst


def make_card(results: Results, chosen: Chosen, policy: PruningPolicy) -> dict[str, Any]:
    """The run card: all that is needed to say where the network comes from, and to get it again."""
    trial, step = chosen.trial, chosen.step
    return {
        "version": 1,
        "job": results.name,
        "created": results.created,
        "agent": trial.agent,
        "seed": trial.seed,
        "evaluations": trial.evaluations,
        "series": None if step is None else {"step": step, "of": len(trial.series)},
        "within_budget": chosen.feasible,
        "dense": results.dense.model_dump(),
        "pruned": {"ratios": dict(policy)} | chosen.network.model_dump(mode="json"),
        "budgets": [budget.model_dump() for budget in results.budgets],
        "splits": {name: split.model_dump() for name, split in results.splits.items()},
        "data_digest": results.data_digest,
        "weights_digest": results.weights_digest,
        "versions": results.versions,
        "spec_id": results.spec_id,
        "spec": results.spec,
    }


@contextlib.contextmanager
def _whole_or_not(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name at the end, or goes if anything failed."""
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield folder
        folder.chmod(0o755)
        folder.replace(out)
    except BaseException:
        shutil.rmtree(folder)
        raise
