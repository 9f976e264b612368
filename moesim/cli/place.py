"""``moesim place``: the experts of a routing trace on ranks, with a proven bound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moesim.cli.output import JSON_OPTION, emit_json, note
from moesim.cli.place_inputs import (
    Judging,
    Slots,
    Traffic,
    about_of,
    methods_of,
    problem_of,
    sizes_of,
    traffic_of,
    unseen_of,
)
from moesim.cli.place_views import document_of, show
from moesim.errors import InputError, Problem

if TYPE_CHECKING:
    from moesim.placement import Placement, Solution
    from moesim.placement import Problem as PlacementProblem
    from moesim.placement.compare import Comparison
    from moesim.scenario.build import Built

START = "linear"
"""Where engines put experts by themselves."""
FILE = "file"
"""Name of a scored file among the methods."""

Trace = Annotated[str, typer.Argument(help="Trace file, or the name of a bundled one.")]
Ranks = Annotated[int, typer.Option(min=1, help="Expert-parallel ranks.")]
PerNode = Annotated[int | None, typer.Option(min=1, help="Ranks that share a node.")]
Groups = Annotated[int | None, typer.Option(min=1, help="Expert groups of the router.")]
SlotsOption = Annotated[int | None, typer.Option(min=1, help="Experts a rank holds in a layer.")]
Redundant = Annotated[int | None, typer.Option(min=0, help="Replicas a layer, over all ranks.")]
RankSlots = Annotated[str | None, typer.Option(help="Slots of each rank, such as 8,8,4,4.")]
Speeds = Annotated[str | None, typer.Option(help="Speed of each rank, such as 1,1,0.5,0.5.")]
Hosts = Annotated[str | None, typer.Option(help="Share of tokens that each rank holds; default even.")]
MethodOption = Annotated[
    list[str] | None, typer.Option(help="Placement method, or 'all'; repeats. Default: ilp.")
]
Param = Annotated[list[str] | None, typer.Option(help="Parameter NAME=VALUE of the one method.")]
FitFraction = Annotated[float, typer.Option(help="Share of the requests that methods may see.")]
FitDomain = Annotated[str | None, typer.Option(help="Fit on this domain of the trace; others only judge.")]
JudgeOn = Annotated[list[str] | None, typer.Option(help="Trace of another domain to judge on; repeats.")]
BatchTokens = Annotated[int, typer.Option(min=1, help="Batch for the imbalance per batch.")]
Batches = Annotated[int, typer.Option(min=1, help="Batches of the fit part that methods may see.")]
SamplingOption = Annotated[
    Literal["scattered", "contiguous"], typer.Option(help="Tokens of a batch: unrelated, or consecutive.")
]
Model = Annotated[
    str | None,
    typer.Option(help="Model whose sizes turn counts into bytes; default the trace's, if bundled."),
]
ExpertDtype = Annotated[str, typer.Option(help="Format of expert weights, for bytes.")]
Score = Annotated[str | None, typer.Option(help="Judge the placement of this file, beside the methods.")]
Present = Annotated[str | None, typer.Option(help="Placement now in use; what moves is counted from it.")]
FormatOption = Annotated[
    str, typer.Option("--format", help="Of --out, --score and --present; 'moesim policies' lists them.")
]
Scenario = Annotated[str | None, typer.Option(help="Scenario whose step is simulated under every placement.")]
Out = Annotated[Path | None, typer.Option(help="Write the best placement here.")]
Report = Annotated[Path | None, typer.Option(help="Write a page with pictures here.")]
NumLayers = Annotated[
    int | None, typer.Option(min=1, help="Layers of the model, dense ones too, for --format sglang.")
]
NoTiming = Annotated[bool, typer.Option("--no-timing", help="Leave solve times out of the JSON.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite --out and --report.")]


def command(
    trace: Trace,
    *,
    ranks: Ranks,
    ranks_per_node: PerNode = None,
    groups: Groups = None,
    slots: SlotsOption = None,
    redundant: Redundant = None,
    rank_slots: RankSlots = None,
    speeds: Speeds = None,
    hosts: Hosts = None,
    method: MethodOption = None,
    param: Param = None,
    fit_fraction: FitFraction = 0.5,
    fit_domain: FitDomain = None,
    judge_on: JudgeOn = None,
    batch_tokens: BatchTokens = 64,
    num_batches: Batches = 16,
    batch_sampling: SamplingOption = "scattered",
    model: Model = None,
    expert_dtype: ExpertDtype = "bf16",
    score: Score = None,
    present: Present = None,
    scenario: Scenario = None,
    out: Out = None,
    format_name: FormatOption = "moesim",
    report: Report = None,
    num_layers: NumLayers = None,
    json: bool = JSON_OPTION,
    no_timing: NoTiming = False,
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Place the experts of a routing trace on ranks, with a proven bound."""
    _check({"--out": out, "--report": report}, force, format_name)
    asked = Slots(ranks, ranks_per_node, groups, slots, redundant, rank_slots, speeds, hosts)
    judging = Judging(fit_fraction, fit_domain, judge_on or [], batch_tokens, num_batches, batch_sampling)
    chosen = methods_of(method or ([] if score else ["ilp"]), param or [])
    traffic = traffic_of(trace, judging)
    built = None if scenario is None else _scenario(scenario, trace)
    scored = None if score is None else _scored(score, format_name, traffic, ranks)
    if scored is not None:
        asked = replace(asked, as_placed=scored.placement.rank_slots)
    problem, start = _problem(traffic, asked, judging, seed, chosen, (present, format_name), built)
    solutions, seconds = _solved(problem, chosen, start.placement, seed)
    if scored is not None:
        solutions[FILE], seconds[FILE] = scored, 0.0
    judged = _compare(problem, traffic, judging, start, solutions, seed)
    steps = None if built is None else _steps(built, judged)
    sizes = sizes_of(traffic, model, expert_dtype)
    document = document_of(judged, traffic.trace, problem, judging, steps, start_name(present), sizes)
    if not no_timing:
        document["timing"] = {"solve_s": seconds[judged.best], "methods": seconds}
    if json:
        emit_json(document)
    else:
        show(document, seconds)
    _keep(document, judged, traffic, (report, out), (format_name, num_layers))
    if out is None and score is None and not json:
        note("add --out FILE to keep the placement, --format for an engine's own file")


def start_name(present: str | None) -> str:
    """What ``before`` means in a table."""
    return START if present is None else "the present placement"


def _check(outputs: dict[str, Path | None], force: bool, format_name: str) -> None:
    from moesim.placement.engine_files import formats  # noqa: PLC0415

    formats.build(format_name, field="--format")
    problems = [
        Problem(option, "exists; choose another name or give --force", str(path))
        for option, path in outputs.items()
        if path is not None and path.exists() and not force
    ]
    if problems:
        raise InputError(problems)


def _scenario(name: str, trace: str) -> Built:
    from moesim.scenario.placing import scenario_on_trace  # noqa: PLC0415

    return scenario_on_trace(name, trace)


def _problem(
    traffic: Traffic,
    asked: Slots,
    judging: Judging,
    seed: int,
    methods: dict[str, Any],
    present: tuple[str | None, str],
    built: Built | None,
) -> tuple[PlacementProblem, Solution]:
    """The problem with what the methods need, and the placement that ``before`` means (file, format)."""
    from moesim.evidence import rng_for  # noqa: PLC0415
    from moesim.placement import Solution, placement_methods  # noqa: PLC0415
    from moesim.placement.engine_files import read_as  # noqa: PLC0415
    from moesim.placement.registry import needs_of  # noqa: PLC0415

    file, format_name = present
    needs = [part for method in methods.values() for part in needs_of(method)]
    more: dict[str, Any] = {}
    if built is not None:
        from moesim.scenario.placing import step_score  # noqa: PLC0415

        more["score"] = step_score(built)
    problem = problem_of(traffic, asked, judging, seed, needs, **more)
    if file is not None:
        start = Solution(read_as(format_name, file, about_of(traffic, asked.ranks)).placement)
    else:
        start = placement_methods.build(START).solve(problem, rng_for(seed, f"place/{START}"))
    return replace(problem, start=start.placement), start


def _solved(
    problem: PlacementProblem, methods: dict[str, Any], before: Placement, seed: int
) -> tuple[dict[str, Solution], dict[str, float]]:
    """Solution and seconds of every method, in the order given; ranks numbered so that few experts move."""
    from time import perf_counter  # noqa: PLC0415

    from moesim.cli.progress import progress  # noqa: PLC0415
    from moesim.evidence import rng_for  # noqa: PLC0415
    from moesim.placement.renumber import renumbered_solution  # noqa: PLC0415

    solutions, seconds = {}, {}
    with progress("placing", len(methods)) as tick:
        for name, chosen in methods.items():
            started = perf_counter()
            found = chosen.solve(problem, rng_for(seed, f"place/{name}"))
            seconds[name] = round(perf_counter() - started, 4)
            solutions[name] = renumbered_solution(found, before, problem)
            tick(name)
    return solutions, seconds


def _scored(name: str, format_name: str, traffic: Traffic, ranks: int) -> Solution:
    from moesim.placement import Solution  # noqa: PLC0415
    from moesim.placement.engine_files import read_as  # noqa: PLC0415

    return Solution(
        read_as(format_name, name, about_of(traffic, ranks)).placement, notes=(f"read from {name}",)
    )


def _compare(
    problem: PlacementProblem,
    traffic: Traffic,
    judging: Judging,
    start: Solution,
    solutions: dict[str, Solution],
    seed: int,
) -> Comparison:
    from moesim.placement.compare import compare  # noqa: PLC0415

    return compare(problem, unseen_of(traffic, judging, seed), start, solutions, seed=seed)


def _steps(built: Built, judged: Comparison) -> dict[str, dict[str, Any]]:
    """Metrics of the simulated step under every placement, ``before`` among them."""
    from moesim.scenario.placing import step_result  # noqa: PLC0415

    placements = {"before": judged.before, **judged.methods}
    return {
        name: step_result(built, one.solution.placement).document()["metrics"]
        for name, one in placements.items()
    }


def _keep(
    document: dict[str, Any],
    judged: Comparison,
    traffic: Traffic,
    paths: tuple[Path | None, Path | None],
    form: tuple[str, int | None],
) -> None:
    """Write the page and the placement (format, layers of the model), where they are asked for."""
    report, out = paths
    if report is not None:
        _write_report(document, report)
    if out is not None:
        _write(out, form[0], judged, traffic, form[1])


def _write_report(document: dict[str, Any], path: Path) -> None:
    from moesim.report.placement_page import write_placement_page  # noqa: PLC0415

    write_placement_page(document, path)
    note(f"wrote {path}")


def _write(out: Path, format_name: str, judged: Comparison, traffic: Traffic, num_layers: int | None) -> None:
    from moesim.files import write_bytes  # noqa: PLC0415
    from moesim.placement.engine_files import write_as  # noqa: PLC0415
    from moesim.placement.store import StoredPlacement  # noqa: PLC0415

    info = traffic.trace.info
    placement = judged.methods[judged.best].solution.placement
    stored = StoredPlacement(placement, info.model, info.layer_indices, judged.best, info.source)
    made = write_as(format_name, stored, num_layers)
    write_bytes(out, made.content)
    note(f"wrote {out} ({format_name})")
    for remark in made.notes:
        note(f"note: {remark}")
