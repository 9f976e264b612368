"""``moesim place``: the experts of a routing trace on ranks, with a proven bound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, metric_rows, note, table
from moesim.errors import InputError, Problem
from moesim.units import fmt_quantity, fmt_seconds

if TYPE_CHECKING:
    from moesim.placement import Problem as PlacementProblem
    from moesim.placement import Solution
    from moesim.placement.compare import Comparison
    from moesim.traces import RoutingTrace

WORST_LAYERS = 5
NUM_BATCHES = 64
"""Batches of held-out traffic behind the imbalance per batch."""
START = "linear"
"""Where engines put experts by themselves."""


def command(
    trace: Annotated[str, typer.Argument(help="Trace file, or the name of a bundled one.")],
    *,
    ranks: Annotated[int, typer.Option(min=1, help="Expert-parallel ranks.")],
    ranks_per_node: Annotated[int | None, typer.Option(min=1, help="Ranks that share a node.")] = None,
    groups: Annotated[int | None, typer.Option(min=1, help="Expert groups of the router.")] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Experts a rank holds in a layer.")] = None,
    redundant: Annotated[int | None, typer.Option(min=0, help="Replicas a layer, over all ranks.")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Placement method, or 'all'; repeats. Default: ilp.")
    ] = None,
    param: Annotated[list[str] | None, typer.Option(help="Parameter NAME=VALUE of the one method.")] = None,
    fit_fraction: Annotated[float, typer.Option(help="Share of the requests that methods may see.")] = 0.5,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Batch for the imbalance per batch.")] = 64,
    out: Annotated[Path | None, typer.Option(help="Write the best placement here.")] = None,
    format_name: Annotated[
        str, typer.Option("--format", help="moesim, sglang, vllm, trtllm or vllm-ascend.")
    ] = "moesim",
    num_layers: Annotated[
        int | None, typer.Option(min=1, help="Layers of the model, dense ones too, for --format sglang.")
    ] = None,
    json: bool = JSON_OPTION,
    no_timing: Annotated[
        bool, typer.Option("--no-timing", help="Leave solve times out of the JSON.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite --out.")] = False,
) -> None:
    """Place the experts of a routing trace on ranks, with a proven bound."""
    _check(out, force, format_name)
    from moesim.evidence import rng_for  # noqa: PLC0415
    from moesim.files import find  # noqa: PLC0415
    from moesim.placement import placement_methods  # noqa: PLC0415
    from moesim.placement.compare import compare  # noqa: PLC0415
    from moesim.placement.renumber import renumbered  # noqa: PLC0415
    from moesim.traces import read_trace  # noqa: PLC0415

    loaded = read_trace(find(trace, "traces", field="trace", suffixes=(".safetensors",)))
    fit, held_out = loaded.split(fit_fraction)
    problem = _problem(fit, ranks, slots, redundant, ranks_per_node=ranks_per_node, num_groups=groups)
    start = placement_methods.build(START).solve(problem, rng_for(seed, f"place/{START}"))
    solutions, seconds = _solved(problem, method or ["ilp"], param or [], seed)
    solutions = {
        name: replace(one, placement=renumbered(one.placement, start.placement, ranks_per_node))
        for name, one in solutions.items()
    }
    batches = held_out.batches(batch_tokens, NUM_BATCHES, rng_for(seed, "place/batches"))
    judged = compare(problem, held_out.counts().astype(float), batches.astype(float), start, solutions)
    document = _document(judged, loaded, problem, batch_tokens)
    if not no_timing:
        document["timing"] = {"solve_s": seconds[judged.best], "methods": seconds}
    if json:
        emit_json(document)
    else:
        _show(document, seconds)
    if out is not None:
        _write(out, format_name, judged, loaded, num_layers)
    elif not json:
        note("add --out FILE to keep the placement, --format for an engine's own file")


def _check(out: Path | None, force: bool, format_name: str) -> None:
    from moesim.placement.engines import FORMATS  # noqa: PLC0415

    problems = []
    if format_name not in FORMATS:
        problems.append(Problem("--format", f"got {format_name!r}; accepted: {', '.join(FORMATS)}"))
    if out is not None and out.exists() and not force:
        problems.append(Problem("--out", "exists; choose another name or give --force", str(out)))
    if problems:
        raise InputError(problems)


def _problem(
    fit: RoutingTrace, ranks: int, slots: int | None, redundant: int | None, **more: Any
) -> PlacementProblem:
    """Problem of the fit part; without slots or replicas, the fewest slots that hold every expert."""
    from moesim.placement import Problem as PlacementProblem  # noqa: PLC0415

    if slots is not None and redundant is not None:
        raise InputError([Problem("--slots", "says the same as --redundant; accepted: one of them")])
    loads = fit.counts()
    if redundant is not None:
        return PlacementProblem.with_redundancy(loads, ranks, redundant, **more)
    return PlacementProblem(loads.astype(float), ranks, slots or -(-fit.num_experts // ranks), **more)


def _solved(
    problem: PlacementProblem, names: list[str], params: list[str], seed: int
) -> tuple[dict[str, Solution], dict[str, float]]:
    """Solution and seconds of every method, in the order given."""
    from time import perf_counter  # noqa: PLC0415

    from moesim.evidence import rng_for  # noqa: PLC0415
    from moesim.placement import placement_methods  # noqa: PLC0415

    if "all" in names:
        names = placement_methods.names()
    names = list(dict.fromkeys(names))
    if params and len(names) != 1:
        raise InputError([Problem("--param", f"goes with one --method; got {', '.join(names)}")])
    built = {
        name: placement_methods.build(name, dict(map(_assignment, params)), field="--method")
        for name in names
    }
    solutions, seconds = {}, {}
    for name, chosen in built.items():
        started = perf_counter()
        solutions[name] = chosen.solve(problem, rng_for(seed, f"place/{name}"))
        seconds[name] = round(perf_counter() - started, 4)
    return solutions, seconds


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError([Problem("--param", f"got {text!r}; accepted: NAME=VALUE")])
    return name, value


def _document(
    judged: Comparison, trace: RoutingTrace, problem: PlacementProblem, batch_tokens: int
) -> dict[str, Any]:
    """The command's part of the output contract."""
    best = judged.best
    after, before = judged.summary(judged.methods[best]), judged.summary(judged.before)
    metrics: dict[str, dict[str, Any]] = {
        "objective": {"value": after["objective"], "unit": "tokens"},
        "lower_bound": {"value": float(judged.bound.sum()), "unit": "tokens"},
        "gap_fraction": {"value": after["gap_fraction"], "unit": "fraction"},
    }
    for part in ("fit", "held_out", "batch"):
        for when, numbers in (("before", before), ("after", after)):
            name = f"imbalance_ratio_{part}"
            metrics[f"{name}_{when}"] = {"value": numbers[name], "unit": "ratio"}
    metrics["moved_experts"] = {"value": after["moved_experts"], "unit": "count"}
    described = {
        "model": trace.info.model,
        "num_layers": problem.num_layers,
        "num_experts": problem.num_experts,
        "num_ranks": problem.num_ranks,
        "slots_per_rank": problem.slots_per_rank,
        "redundant_experts": problem.num_replicas,
        "batch_tokens": batch_tokens,
    }
    layers = [
        {"layer": number} | numbers
        for number, numbers in zip(trace.info.layer_indices, judged.layers(best), strict=True)
    ]
    methods = [{"method": name} | judged.summary(one) for name, one in judged.methods.items()]
    return envelope("place", method=best, problem=described, metrics=metrics, methods=methods, layers=layers)


def _show(document: dict[str, Any], seconds: dict[str, float]) -> None:
    about = document["problem"]
    typer.echo(
        f"{about['model']}: {about['num_layers']} layers of {about['num_experts']} experts on "
        f"{about['num_ranks']} ranks with {about['slots_per_rank']} slots "
        f"({about['redundant_experts']} replicas a layer)"
    )
    rows = [
        [
            one["method"],
            fmt_quantity(one["objective"], "tokens"),
            _percent(one["gap_fraction"]),
            *(f"{one[f'imbalance_ratio_{part}']:.4f}" for part in ("fit", "held_out", "batch")),
            one["moved_experts"],
            one["split"],
            fmt_seconds(seconds[one["method"]]),
        ]
        for one in sorted(document["methods"], key=lambda m: float(m["objective"]))
    ]
    columns = ["method", "objective", "gap", "max/mean fit", "held out"]
    columns += [f"batch of {about['batch_tokens']}", "moved", "split", "time"]
    table("Methods, best first", columns, rows, right=range(1, 7))
    best = document["method"]
    shown = [row[:2] for row in metric_rows(document["metrics"])]
    table(f"Best: {best}; before = {START} with the same slots", ["metric", "value"], shown, right=[1])
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
    for one in document["methods"]:
        if one["method"] == best:
            for remark in one["notes"]:
                note(f"{best}: {remark}")


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3f} %"


def _write(
    out: Path, format_name: str, judged: Comparison, trace: RoutingTrace, num_layers: int | None
) -> None:
    from moesim.files import write_text  # noqa: PLC0415
    from moesim.placement.engines import write_as  # noqa: PLC0415
    from moesim.placement.store import StoredPlacement  # noqa: PLC0415

    info = trace.info
    placement = judged.methods[judged.best].solution.placement
    stored = StoredPlacement(placement, info.model, info.layer_indices, judged.best, info.source)
    made = write_as(format_name, stored, num_layers)
    write_text(out, made.text)
    note(f"wrote {out} ({format_name})")
    for remark in made.notes:
        note(f"note: {remark}")
