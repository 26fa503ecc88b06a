"""What is said of fine-tuning: each winner before and after, and how far the two orders agree."""

from __future__ import annotations

import math
from collections.abc import Sequence

from search.figures import NONE, duration, error_text, percent
from search.rank_correlation import spearman
from search.results import FineTunedRecord, FineTuneRecord, Results, SplitScores
from search.svg import Frame, Scale, colour, drawing, number, padded, path, tick_step, ticks, x_axis, y_axis
from search.svg import steps as staircase
from search.tables import agents_of, objective_of

_FEWEST = 3  # networks between which a correlation means something


def fine_tuning_table(results: Results, record: FineTuneRecord) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: the dense network first, if it was trained, then the winners; figures of the test split."""
    headings = ["agent", "seed", "search before", "search after", "test before", "test after", "change", "loss", "time"]
    trained = [*([record.dense] if record.dense else []), *record.winners]
    return headings, [_cells(results, network) for network in trained]


def fine_tuning_caption(results: Results, record: FineTuneRecord) -> str:
    """The recipe, in words."""
    recipe = results.spec["finetune"]
    length = f"{recipe['epochs']} epochs" if recipe["epochs"] is not None else f"{recipe['steps']} steps"
    parts = [f"SGD for {length} on {record.images:,} {results.samples} ({record.source})"]
    parts.append(f"batch {recipe['batch']}, learning rate {recipe['learning_rate']:g}, schedule {recipe['schedule']}")
    parts += [f"shifts of up to {record.crop_padding} pixels"] if record.crop_padding else []
    parts += ["mirrored images"] if record.flip else []
    if recipe["distillation"]:
        parts.append(f"distillation from the dense network with weight {recipe['distillation']:g}")
    if hints := recipe.get("hints"):
        parts.append(f"hints from the dense network's blocks with weight {hints:g}")
    if mixup := recipe.get("mixup"):
        parts.append(f"mixup with shares from Beta({mixup:g}, {mixup:g})")
    if penalty := recipe.get("regularizer"):
        parts.append(f"regularizer {penalty['kind']} of strength {penalty['strength']:g}")
    if recipe.get("precision", "float32") != "float32":
        parts.append(f"layers computed in {recipe['precision']}")
    if sparsify := recipe.get("sparsify"):
        how = sparsify["schedule"] if sparsify["schedule"] == "one_shot" else f"{sparsify['decay']}, {sparsify['type']}"
        parts.append(
            f"from the dense network, from which weights were removed on the way ({how}, by {sparsify['criterion']}) "
            f"until each layer kept as many as the policy says"
        )
    return f"{', '.join(parts)}. The same for every network; the search split chose the policies before it."


def fine_tuning_verdict(results: Results, record: FineTuneRecord) -> list[str]:
    """Sentences: what the job's dense network has, how the two orders correlate, and what diverged."""
    lines = [f"The dense network has {_figure(results, _dense(results))} on the test split before any fine-tuning."]
    lines += [said] if (said := order_kept(record)) else []
    lines += [_stored(results, network) for network in record.winners if network.size_bytes is not None]
    lines += [f"{network.agent}, seed {network.seed}: {network.error}." for network in record.winners if network.error]
    if record.dense is not None and record.dense.error is not None:
        lines.append(f"The dense network: {record.dense.error}.")
    return lines


def order_kept(record: FineTuneRecord) -> str:
    """How the order of the policies before fine-tuning and that after it correlate; "" of too few."""
    pairs = {
        network.widths: (_quality(network.before), _quality(network.after))
        for network in record.winners
        if network.after is not None
    }
    correlation = math.nan if len(pairs) < _FEWEST else spearman(*zip(*pairs.values(), strict=True))
    if math.isnan(correlation):
        return ""
    said = "keeps" if correlation > 0.9 else "mostly keeps" if correlation > 0.5 else "does not keep"
    return (
        f"Over {len(pairs)} different policies, Spearman's rank correlation of the test figures before and after "
        f"fine-tuning is {correlation:.2f}: it {said} their order."
    )


def training_plot(results: Results, record: FineTuneRecord, width: int = 960) -> str:
    """The mean loss of each epoch over the steps; below it the share of weights removed, if there were any."""
    networks = [*record.winners, *([record.dense] if record.dense else [])]
    trained = [network for network in networks if len(network.losses) > 1]
    if not trained:
        return ""
    agents = agents_of(results)
    removed = [network for network in trained if network.sparsity]
    steps = max(network.steps for network in trained)
    height = 260.0 if width > 500 else 210.0
    upper = Frame(width, height, left=64, bottom=14 if removed else 46)
    x, y = upper.x(0, steps), upper.y(*padded([loss for network in trained for loss in network.losses]))
    parts = _loss_axis(upper, y)
    for network in trained:
        ends = [network.steps * (epoch + 1) / len(network.losses) for epoch in range(len(network.losses))]
        places = [(x(end), y(loss)) for end, loss in zip(ends, network.losses, strict=True)]
        parts.append(path(places, f"curve thin {_css(agents, network)}"))
    lower = upper
    if removed:
        lower = Frame(width, 2 * height, left=64, top=height + 14)
        share = lower.y(0.0, 1.0)
        parts += y_axis(
            lower, share, [0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"], "weights removed"
        )
        for network in removed:
            points = [(x(0), share(0.0)), *((x(step), share(gone)) for step, gone in network.sparsity)]
            corners = [*staircase(points), (x(network.steps), points[-1][1])]
            parts.append(path(corners, f"curve thin {_css(agents, network)}"))
    levels = ticks(0, steps, width // 100)
    names = [number(level, tick_step(0, steps, width // 100)) for level in levels]
    parts += x_axis(lower, x, levels, names, "steps")
    said = "Loss, and share of weights removed, over the steps" if removed else "Loss over the steps"
    return drawing(width, lower.height, f"{said} of fine-tuning", parts)


def _loss_axis(frame: Frame, y: Scale) -> list[str]:
    levels, step = ticks(y.low, y.high, 5), tick_step(y.low, y.high, 5)
    return y_axis(frame, y, levels, [number(level, step) for level in levels], "loss")


def _css(agents: Sequence[str], network: FineTunedRecord) -> str:
    return colour(agents.index(network.agent)) if network.agent in agents else colour(len(agents))


def _stored(results: Results, network: FineTunedRecord) -> str:
    """What a network from which weights were removed in the training takes, with zeros of its own."""
    size, dense = network.size_bytes or 0.0, results.dense.costs["size"]
    limit = next((budget.limit for budget in results.budgets if budget.cost == "size"), None)
    over = " This is over the budget, which the winner meets with its own zeros." if limit and size > limit else ""
    return (
        f"{network.agent}, seed {network.seed}: {percent(network.sparsity[-1][1], 1)} of the weights of the layers it "
        f"prunes were removed in the training; stored, the network takes {percent(size / dense, 1)} of the dense one's "
        f"bytes.{over}"
    )


def _cells(results: Results, network: FineTunedRecord) -> list[str]:
    before, after = network.before, network.after
    loss = f"{network.losses[0]:.4g} → {network.losses[-1]:.4g}" if network.losses else NONE
    return [
        network.agent,
        str(network.seed),
        _figure(results, before, "search"),
        _figure(results, after, "search"),
        _figure(results, before),
        _figure(results, after),
        _change(results, before, after),
        loss,
        duration(network.seconds),
    ]


def _figure(results: Results, scores: SplitScores | None, split: str = "test") -> str:
    if scores is None:
        return "diverged"
    accuracy, error = getattr(scores, f"{split}_accuracy"), getattr(scores, f"{split}_error")
    return error_text(objective_of(results), error) if accuracy is None else percent(accuracy)


def _change(results: Results, before: SplitScores, after: SplitScores | None) -> str:
    """Of the test figure: in points of accuracy, or of the error in its own unit."""
    if after is None:
        return NONE
    if before.test_accuracy is None or after.test_accuracy is None:
        return f"{after.test_error - before.test_error:+.4g}"
    return f"{100 * (after.test_accuracy - before.test_accuracy):+.2f} points"


def _quality(scores: SplitScores | None) -> float:
    """The test figure, such that more is better."""
    if scores is None:
        raise ValueError("a network that diverged has no figures")
    return -scores.test_error if scores.test_accuracy is None else scores.test_accuracy


def _dense(results: Results) -> SplitScores:
    return SplitScores(**results.dense.model_dump(exclude={"costs"}))
