"""One scenario to one result: the only place where a question's numbers become an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.engine.critical_path import critical_path
from moesim.evidence import BAND_QUANTILES
from moesim.metrics.breakdown import activity, evidence_shares, path_breakdown
from moesim.metrics.step import imbalance_ratio, mfu_fraction, tokens_per_s
from moesim.model.layer_ops import forward_flops_per_token
from moesim.scenario.build import Built, build, routed_lanes
from moesim.scenario.resolve import Resolved
from moesim.scenario.result import Metric, Result, Sensitivity
from moesim.scenario.schema import Scenario
from moesim.scenario.sensitivity import sensitivities
from moesim.scenario.simulate import Simulated, simulate
from moesim.scenario.views import Batches, inputs_of, routing_views, sources_of
from moesim.steps.block import COMM, COMPUTE
from moesim.units import fmt_quantity, fmt_seconds

HEADLINE = {"decode_step": "tpot_s", "prefill_step": "prefill_s"}


@dataclass(frozen=True)
class Outcome:
    """A result beside the objects behind it, for timelines."""

    result: Result
    built: Built
    simulated: Simulated


def run(resolved: Resolved) -> Outcome:
    """Simulate a resolved scenario.

    Raises
    ------
    InputError
        Its parts contradict each other.
    InfeasibleError
        The model does not fit.
    """
    built = build(resolved)
    placement = built.solution.placement if built.solution else None
    num_batches = built.scenario.routing.num_batches if built.scenario.routing else 1
    batches = routed_lanes(built, placement, num_batches)
    simulated = simulate(built, batches)
    headline = HEADLINE[built.scenario.question]
    of_latency = headline == "prefill_s"
    metrics = _metrics(built, simulated, batches)
    path = critical_path(simulated.program, simulated.recorded)
    breakdown = path_breakdown(simulated.program, path)
    nominal = simulated.nominal.latency_s if of_latency else simulated.nominal.period_s
    changes = sensitivities(
        built, batches[simulated.median], headline, float(nominal[0]), of_latency=of_latency
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
        views=routing_views(built, batches),
        sources=sources_of(built),
        inputs=inputs_of(_files(built)),
        warnings=_warnings(built),
    )
    return Outcome(result, built, simulated)


def _metrics(built: Built, simulated: Simulated, batches: Batches) -> dict[str, Metric]:
    plan, scenario = built.plan, built.scenario
    tokens = scenario.batch.tokens_per_rank * plan.attention_dp * plan.pp
    makers = _Makers(simulated)
    metrics: dict[str, Metric] = {}
    if scenario.question == "decode_step":
        metrics["tpot_s"] = makers.metric(lambda t: t.period_s, "s")
        rate = "output_tokens_per_s"
    else:
        metrics["prefill_s"] = makers.metric(lambda t: t.latency_s, "s")
        rate = "input_tokens_per_s"
    metrics[rate] = makers.metric(lambda t: tokens_per_s(tokens, t.period_s), "tokens_per_s")
    per_device = tokens / plan.num_devices
    metrics[f"{rate}_per_device"] = makers.metric(
        lambda t: tokens_per_s(per_device, t.period_s), "tokens_per_s"
    )
    device = scenario.cluster.node.device
    peak = device.dense_peak_flops_per_s(built.dtypes.activations)
    flops = forward_flops_per_token(built.model, _mean_sequence_tokens(scenario))
    metrics["mfu_fraction"] = makers.metric(
        lambda t: mfu_fraction(flops, tokens, t.period_s, peak, plan.num_devices), "fraction"
    )
    makespan_s = float(simulated.nominal.latency_s[0])
    spent = activity(simulated.program, simulated.recorded, COMPUTE, COMM, makespan_s)
    metrics["exposed_comm_s"] = Metric(float(spent.exposed_comm_s.mean()), "s")
    metrics["idle_s"] = Metric(float(spent.idle_s.mean()), "s")
    loads = [
        lane.routed for stages in batches for stage in stages for lane in stage if lane.routed is not None
    ]
    if loads:
        imbalance = [imbalance_ratio(routed.load.rows) for routed in loads]
        touched = [float(routed.load.touched.mean()) for routed in loads]
        hottest = [imbalance_ratio(routed.expert_counts.astype(np.float64)) for routed in loads]
        metrics["imbalance_ratio"] = _scattered(imbalance, "ratio")
        metrics["expert_imbalance_ratio"] = _scattered(hottest, "ratio")
        metrics["touched_experts_per_rank"] = _scattered(touched, "count")
    return metrics


def _mean_sequence_tokens(scenario: Scenario) -> int:
    """Sequence whose average position sees as many tokens as those of the step do. [tokens]"""
    batch = scenario.batch
    if scenario.question == "decode_step":
        return 2 * batch.context_tokens + 1
    return 2 * batch.context_tokens + batch.tokens_per_rank // (batch.sequences_per_rank or 1)


class _Makers:
    """Metrics derived from step times, with band and scatter."""

    def __init__(self, simulated: Simulated) -> None:
        self.simulated = simulated

    def metric(self, of: Any, unit: str) -> Metric:
        """Metric ``of(StepTimes) -> (sample,)``: mean and scatter over batches, band from errors."""
        over_batches = np.asarray(of(self.simulated.batches))
        errors = np.asarray(of(self.simulated.errors))
        nominal = float(np.asarray(of(self.simulated.nominal))[0])
        value = float(over_batches.mean())
        low, high = np.quantile(errors, BAND_QUANTILES) / nominal * value
        scatter = np.quantile(over_batches, BAND_QUANTILES)
        return Metric(value, unit, float(low), float(high), *map(float, scatter))


def _scattered(values: list[float], unit: str) -> Metric:
    low, high = np.quantile(values, BAND_QUANTILES)
    return Metric(float(np.mean(values)), unit, None, None, float(low), float(high))


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


def _files(built: Built) -> list[str]:
    """Files whose lines are behind the resolved tree, and the trace."""
    files = [built.resolved.tree.source]
    if built.scenario.routing and built.scenario.routing.trace:
        files.append(built.scenario.routing.trace)
    return files
