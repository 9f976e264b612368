"""One scenario to one result: the only place where a question's numbers become an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from moesim.engine.critical_path import critical_path
from moesim.metrics.breakdown import evidence_shares, path_breakdown
from moesim.scenario.build import Built, build, routed_lanes
from moesim.scenario.crowd_view import crowd_view
from moesim.scenario.link_views import Stages, algorithms_view, links_view
from moesim.scenario.numbers import metrics_of
from moesim.scenario.offload import OffloadOutcome, run_offload
from moesim.scenario.offloading import Offloading, build_offload
from moesim.scenario.resolve import Resolved
from moesim.scenario.result import Metric, Result, Sensitivity
from moesim.scenario.sensitivity import sensitivities
from moesim.scenario.serve import ServingOutcome, run_serving
from moesim.scenario.serving import Serving, build_serving
from moesim.scenario.simulate import Simulated, simulate
from moesim.scenario.train import TrainOutcome, run_training
from moesim.scenario.training import Training, build_training
from moesim.scenario.views import inputs_of, memory_view, routing_views, sources_of
from moesim.units import fmt_quantity, fmt_seconds

HEADLINE = {"decode_step": "tpot_s", "prefill_step": "prefill_s"}


@dataclass(frozen=True)
class Outcome:
    """A result beside the objects behind it, for timelines."""

    result: Result
    built: Built
    simulated: Simulated


AnyOutcome: TypeAlias = Outcome | OffloadOutcome | ServingOutcome | TrainOutcome


def built_of(resolved: Resolved) -> Built | Offloading | Serving | Training:
    """Objects of a scenario, after all checks, without simulating."""
    if resolved.scenario.question == "serve":
        return build_serving(resolved)
    if resolved.scenario.question == "train_step":
        return build_training(resolved)
    return build_offload(resolved) if resolved.scenario.question == "offload" else build(resolved)


def run(
    resolved: Resolved, *, with_changes: bool = True, progress: Callable[[int], None] | None = None
) -> AnyOutcome:
    """Simulate a resolved scenario.

    ``with_changes=False`` leaves out what only a report needs and costs whole runs (offload).
    ``progress`` is called with the finished requests of a service now and then.

    Raises
    ------
    InputError
        Its parts contradict each other.
    InfeasibleError
        The model does not fit.
    """
    if resolved.scenario.question == "serve":
        return run_serving(resolved, progress=progress, with_changes=with_changes)
    if resolved.scenario.question == "train_step":
        return run_training(resolved, with_changes=with_changes)
    if resolved.scenario.question == "offload":
        return run_offload(resolved, with_changes=with_changes)
    return run_built(build(resolved))


def run_built(built: Built) -> Outcome:
    """Simulate a built scenario."""
    placement = built.solution.placement if built.solution else None
    num_batches = built.scenario.routing.num_batches if built.scenario.routing else 1
    batches = routed_lanes(built, placement, num_batches)
    simulated = simulate(built, batches)
    headline = HEADLINE[built.scenario.question]
    of_latency = headline == "prefill_s"
    metrics = metrics_of(built, simulated, batches)
    path = critical_path(simulated.program, simulated.recorded)
    breakdown = path_breakdown(simulated.program, path)
    nominal = simulated.nominal.latency_s if of_latency else simulated.nominal.period_s
    changes = sensitivities(
        built,
        batches[simulated.median],
        headline,
        float(nominal[0]),
        value_s=metrics[headline].value,
        of_latency=of_latency,
    )
    result = Result(
        command="run",
        scenario_tree=built.resolved.tree.data,
        title=built.scenario.description or built.scenario.name,
        answer=_answer(built, metrics, headline),
        limiter=_limiter(changes),
        headline=headline,
        metrics=metrics,
        breakdown=breakdown,
        evidence={str(grade): share for grade, share in evidence_shares(breakdown).items()},
        sensitivity=changes,
        memory=memory_view(built),
        views=_views(built, batches, simulated),
        sources=sources_of(built),
        inputs=inputs_of(_files(built)),
        warnings=_warnings(built),
    )
    return Outcome(result, built, simulated)


def _views(built: Built, batches: Sequence[Stages], simulated: Simulated) -> dict[str, Any]:
    network = {
        "links": links_view(built, batches),
        "crowd": crowd_view(built, simulated),
        "algorithms": algorithms_view(built, batches[simulated.median]),
    }
    return routing_views(built, batches) | {name: view for name, view in network.items() if view}


def _answer(built: Built, metrics: dict[str, Metric], headline: str) -> str:
    time = metrics[headline]
    rate = next(m for name, m in metrics.items() if name.endswith("_per_device"))
    batch = built.scenario.batch
    groups = f"in each of {built.plan.attention_dp} attention groups"
    what = (
        f"One token of {batch.tokens_per_rank} sequences {groups}"
        if headline == "tpot_s"
        else f"A prefill of {batch.tokens_per_rank} tokens {groups}"
    )
    band = f"80 % band {fmt_seconds(time.low or 0)} to {fmt_seconds(time.high or 0)}"
    return (
        f"{what} takes {fmt_seconds(time.value)} ({band}): {fmt_quantity(rate.value, rate.unit)} per device."
    )


def _limiter(changes: list[Sensitivity]) -> str:
    """What would help most, in words."""
    best = changes[0]
    if best.change_fraction > -0.005:
        return "no single property of the machine: doubling any of them gains less than 0.5 %"
    text = f"{best.label}: {100 * best.change_fraction:+.0f} %"
    if len(changes) > 1 and changes[1].change_fraction < -0.005:
        text += f"; then {changes[1].label}: {100 * changes[1].change_fraction:+.0f} %"
    return text


def _warnings(built: Built) -> list[str]:
    warnings = list(built.traffic.warnings) if built.traffic else []
    if built.solution:
        warnings += built.solution.notes
    return warnings


def _files(built: Built) -> list[str | Path]:
    """The scenario and what it names beside profiles and model: their lines are in the resolved tree."""
    files: list[str | Path] = [built.resolved.tree.source]
    if built.traffic is not None:
        files += built.traffic.files
    if built.scenario.placement.file is not None:
        files.append(built.scenario.placement.file)
    return files
