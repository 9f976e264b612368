"""What ``moesim place`` prints: its document, and tables that an engineer can act on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from moesim.cli.output import envelope, metric_rows, note, table
from moesim.units import fmt_quantity, fmt_seconds

if TYPE_CHECKING:
    from moesim.cli.place_inputs import Judging, Sizes
    from moesim.placement import Problem as PlacementProblem
    from moesim.placement.compare import Comparison, Judged
    from moesim.traces import RoutingTrace

WORST_LAYERS = 5
STEP_METRICS = ("tpot_s", "prefill_s")
BYTES = ("rank_expert_bytes", "cross_rank_bytes", "cross_node_bytes", "moved_bytes")
"""Experts on the fullest rank; dispatch of one token through all layers; weights to load."""
PARTS = ("fit", "held_out", "batch")


def document_of(
    judged: Comparison,
    trace: RoutingTrace,
    problem: PlacementProblem,
    judging: Judging,
    steps: dict[str, dict[str, Any]] | None,
    start: str,
    sizes: Sizes | None,
) -> dict[str, Any]:
    """The command's part of the output contract."""
    best = judged.best
    after, before = judged.summary(judged.methods[best]), judged.summary(judged.before)
    after |= _bytes(judged.methods[best], sizes)
    before |= _bytes(judged.before, sizes)
    metrics: dict[str, dict[str, Any]] = {
        "objective": {"value": after["objective"], "unit": "tokens"},
        "lower_bound": {"value": float(judged.bound_of(judged.methods[best]).sum()), "unit": "tokens"},
        "gap_fraction": {"value": after["gap_fraction"], "unit": "fraction"},
    }
    for part in PARTS:
        for when, numbers in (("before", before), ("after", after)):
            metrics[f"imbalance_ratio_{part}_{when}"] = _with_interval(numbers, part)
    for name in ("ranks_per_token", "nodes_per_token", "cross_rank_sends_per_token", "same_rank_share"):
        for when, numbers in (("before", before), ("after", after)):
            unit = {"same_rank_share": "fraction", "nodes_per_token": "nodes"}.get(name, "ranks")
            metrics[f"{name}_{when}"] = {"value": numbers[name], "unit": unit}
    for name in BYTES if sizes is not None else ():
        for when, numbers in (("before", before), ("after", after)):
            metrics[f"{name}_{when}"] = {"value": numbers[name], "unit": "bytes"}
    metrics["regret_fraction"] = {"value": after["regret_fraction"], "unit": "fraction"}
    metrics["moved_experts"] = {"value": after["moved_experts"], "unit": "count"}
    methods = [
        {"method": name} | judged.summary(one) | _bytes(one, sizes) for name, one in judged.methods.items()
    ]
    if steps is not None:
        for one in methods:
            one["step"] = steps[one["method"]]
        metrics |= {f"step_{name}_before": steps["before"][name] for name in _step_metrics(steps)}
        metrics |= {f"step_{name}_after": steps[best][name] for name in _step_metrics(steps)}
    described = {
        "model": trace.info.model,
        "num_layers": problem.num_layers,
        "num_experts": problem.num_experts,
        "num_ranks": problem.num_ranks,
        "slots_per_rank": problem.slots_per_rank,
        "redundant_experts": problem.num_replicas,
        "batch_tokens": judging.batch_tokens,
        "batch_sampling": judging.sampling,
        "before": start,
    }
    layers = [
        {"layer": number} | numbers
        for number, numbers in zip(trace.info.layer_indices, judged.layers(best), strict=True)
    ]
    return envelope(
        "place",
        method=best,
        problem=described,
        metrics=metrics,
        before=before,
        methods=methods,
        layers=layers,
        views=_views(judged, trace),
    )


def _bytes(judged: Judged, sizes: Sizes | None) -> dict[str, float]:
    """What the counts of a method weigh; nothing where no sizes are known."""
    if sizes is None:
        return {}
    placed, sent = judged.solution.placement, judged.dispatched
    held = int(placed.rank_slots.sum(axis=0).max())
    sends = (placed.num_layers * count for count in (sent.cross_rank_tokens, sent.cross_node_tokens))
    values = [held * sizes.expert_bytes, *(sizes.token_bytes * count for count in sends)]
    return dict(zip(BYTES, [*values, judged.moved_experts * sizes.expert_bytes], strict=True))


def _with_interval(numbers: dict[str, Any], part: str) -> dict[str, Any]:
    metric = {"value": numbers[f"imbalance_ratio_{part}"], "unit": "ratio"}
    low_high = numbers.get(f"imbalance_ratio_{part}_interval")
    return metric if low_high is None else metric | {"low": low_high[0], "high": low_high[1]}


def _step_metrics(steps: dict[str, dict[str, Any]]) -> list[str]:
    return [name for name in STEP_METRICS if name in steps["before"]]


def _views(judged: Comparison, trace: RoutingTrace) -> dict[str, Any]:
    """Numbers behind the pictures: rank loads, traffic between ranks, what moved; before and after."""
    after = judged.methods[judged.best]
    moved = after.solution.placement.resident & ~judged.before.solution.placement.resident
    return {
        "layers": list(trace.info.layer_indices),
        "rank_loads": {"before": _loads(judged.before), "after": _loads(after)},
        "pairs": {
            "before": judged.before.dispatched.pairs.tolist(),
            "after": after.dispatched.pairs.tolist(),
        },
        "moved": moved.sum(axis=1).tolist(),
    }


def _loads(judged: Judged) -> list[list[float]]:
    return [[float(x) for x in layer] for layer in np.round(judged.held_out.rank_loads, 3)]


def show(document: dict[str, Any], seconds: dict[str, float]) -> None:
    """Tables: methods beside each other, the best in full, the layers that are left."""
    about = document["problem"]
    typer.echo(
        f"{about['model']}: {about['num_layers']} layers of {about['num_experts']} experts on "
        f"{about['num_ranks']} ranks with {about['slots_per_rank']} slots "
        f"({about['redundant_experts']} replicas a layer)"
    )
    _show_methods(document, seconds)
    best = document["method"]
    title = f"Best on the fit part: {best}; before = {about['before']} with the same slots"
    table(title, ["metric", "value", "80 % interval"], metric_rows(document["metrics"]), right=[1, 2])
    _show_layers(document)
    typer.echo(_answer(document))
    for one in document["methods"]:
        own = one["own_objective"]
        if own is not None:
            note(f"{one['method']}: {_own(own)}")
        for remark in one["notes"] if one["method"] == best or own is not None else ():
            note(f"{one['method']}: {remark}")


def _answer(document: dict[str, Any]) -> str:
    """What to do, in a sentence or two."""
    after = next(one for one in document["methods"] if one["method"] == document["method"])
    before = document["before"]
    part = "imbalance_ratio_held_out"
    text = (
        f"{after['method']} instead of {document['problem']['before']}: the busiest rank of unseen traffic "
        f"falls from {before[part]:.2f} to {after[part]:.2f} times the mean; "
        f"{after['moved_experts']} experts are loaded."
    )
    calmest = min(document["methods"], key=lambda one: float(one["imbalance_ratio_batch"]))
    if calmest["method"] != after["method"]:
        text += (
            f" In single batches {calmest['method']} is calmer: {calmest['imbalance_ratio_batch']:.2f} "
            f"against {after['imbalance_ratio_batch']:.2f}."
        )
    return text


def _show_methods(document: dict[str, Any], seconds: dict[str, float]) -> None:
    before = {"method": "before", **document["before"]}
    methods = [before, *sorted(document["methods"], key=lambda one: float(one["objective"]))]
    domains = list(before["imbalance_ratio_domains"])
    has_nodes = before["nodes_per_token"] > 1
    rows = [
        [
            one["method"],
            _percent(one["gap_fraction"]),
            *(f"{one[f'imbalance_ratio_{part}']:.3f}" for part in PARTS),
            f"{one['imbalance_ratio_batch_p95']:.2f}",
            *(f"{one['imbalance_ratio_domains'][name]:.3f}" for name in domains),
            f"{100 * one['regret_fraction']:.1f} %",
            f"{one['ranks_per_token']:.2f}",
            *([f"{one['cross_node_sends_per_token']:.2f}"] if has_nodes else []),
            f"{100 * one['same_rank_share']:.1f} %",
            one["moved_experts"],
            fmt_seconds(seconds[one["method"]]) if one["method"] in seconds else "",
            *_step_cells(one, document),
        ]
        for one in methods
    ]
    columns = ["method", "gap", "max/mean fit", "held out", f"batch of {document['problem']['batch_tokens']}"]
    columns += ["p95", *domains, "regret", "ranks/token"]
    columns += ["nodes crossed"] if has_nodes else []
    columns += ["same rank", "moved", "time"]
    columns += ["step"] if "step" in document["methods"][0] else []
    table("Methods, smallest largest rank load first", columns, rows, right=range(1, len(columns)))


def _step_cells(one: dict[str, Any], document: dict[str, Any]) -> list[str]:
    if "step" not in document["methods"][0]:
        return []
    name = next(n for n in STEP_METRICS if n in document["methods"][0]["step"])
    metric = one["step"][name] if "step" in one else document["metrics"][f"step_{name}_before"]
    return [fmt_seconds(metric["value"])]


def _show_layers(document: dict[str, Any]) -> None:
    worst = sorted(document["layers"], key=lambda one: -float(one["gap_fraction"]))[:WORST_LAYERS]
    cells = [
        [
            one["layer"],
            fmt_quantity(one["objective"], "tokens"),
            fmt_quantity(one["lower_bound"], "tokens"),
            _percent(one["gap_fraction"]),
            f"{one['imbalance_ratio_fit_before']:.3f}",
            f"{one['imbalance_ratio_fit_after']:.3f}",
            f"{one['imbalance_ratio_held_out_after']:.3f}",
        ]
        for one in worst
    ]
    columns = ["layer", "largest rank", "bound", "gap", "max/mean before", "after", "held out"]
    table(f"The {len(worst)} layers farthest from their bound", columns, cells, right=range(7))


def _own(own: dict[str, Any]) -> str:
    """Own objective of a method beside its bound, in words."""
    text = f"{own['name'].replace('_', ' ')} {fmt_quantity(own['value'], own['unit'])}"
    if own["bound"] is None:
        return text + ", no bound known"
    bound = fmt_quantity(own["bound"], own["unit"])
    return f"{text}; none is better than {bound} ({own['bound_name']}), gap {_percent(own['gap_fraction'])}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3f} %"
