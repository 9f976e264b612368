"""A training scenario to its result: step time with bands, utilisation, bubbles, imbalance, memory, money."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import BAND_QUANTILES, GRADES
from moesim.metrics.breakdown import Share, evidence_shares
from moesim.scenario.resolve import Resolved
from moesim.scenario.result import Metric, Result, Sensitivity
from moesim.scenario.sensitivity import knobs_of, scaled
from moesim.scenario.training import Training, build_training
from moesim.scenario.training_memory import memory_view
from moesim.scenario.training_rates import Rates
from moesim.scenario.views import inputs_of, sources_of_cluster
from moesim.training.blocks import LaunchCost
from moesim.training.pipeline import PipelineRun, RecordedPipeline
from moesim.training.step import TrainStep, balanced_setup
from moesim.units import fmt_quantity, fmt_seconds

SECONDS_PER_HOUR = 3600.0
TRILLION = 10**12
EXPOSED = {
    "send": ("messages between stages, exposed", "send"),
    "gather": ("parameter gather, exposed", "all_gather"),
    "reduce": ("gradient reduction, exposed", "reduce_scatter"),
    "optimizer": ("optimizer", "compute"),
}
"""How the parts of a step around its passes are called in a breakdown, and their category."""


@dataclass(frozen=True, eq=False)
class TrainOutcome:
    """A result beside the objects behind it."""

    result: Result
    built: Training
    nominal: PipelineRun
    simulated: RecordedPipeline


def run_training(resolved: Resolved, *, with_changes: bool = True) -> TrainOutcome:
    """Simulate a training scenario.

    Parameters
    ----------
    with_changes : bool
        Also run it with single properties changed, for the sensitivity.

    Raises
    ------
    InputError, InfeasibleError
        As :func:`~moesim.scenario.training.build_training`.
    """
    built = build_training(resolved)
    scenario = built.scenario
    step = TrainStep(built.setup)
    nominal = step.run()
    recorded = step.record()
    drawn = step.run(step.draws(scenario.bands.samples, scenario.seed))
    metrics = _metrics(built, step, nominal, drawn)
    breakdown = breakdown_of(step, nominal)
    changes = _changes(built, float(nominal.makespan_s[0]), metrics) if with_changes else []
    result = Result(
        command="run",
        scenario_tree=resolved.tree.data,
        title=scenario.description or scenario.name,
        answer=_answer(built, metrics),
        limiter=_limiter(metrics, changes),
        headline="step_s",
        metrics=metrics,
        breakdown=breakdown,
        evidence={str(grade): share for grade, share in evidence_shares(breakdown).items()},
        sensitivity=changes,
        memory=memory_view(built.ledger, built.setup.work.plan.stage_size),
        views=_views(built, step, nominal, recorded),
        sources=[*sources_of_cluster(resolved.tree), *_framework_rows(built)],
        inputs=inputs_of([resolved.tree.source]),
        warnings=list(built.warnings),
    )
    return TrainOutcome(result, built, nominal, recorded)


def _metrics(built: Training, step: TrainStep, nominal: PipelineRun, drawn: PipelineRun) -> dict[str, Metric]:
    """All metrics, headline first."""
    setup, scenario = built.setup, built.scenario
    devices, tokens = setup.work.plan.num_devices, built.tokens_per_step
    rates = Rates.of(scenario, setup.model, devices)

    def timed(of: Callable[[NDArray[np.float64]], NDArray[np.float64]], unit: str) -> Metric:
        low, high = np.quantile(of(drawn.makespan_s), BAND_QUANTILES)
        return Metric(float(of(nominal.makespan_s)[0]), unit, float(low), float(high))

    device = scenario.cluster.node.device
    price = scenario.training.usd_per_device_hour or device.price_per_hour_usd
    metrics = {
        "step_s": timed(lambda s: s, "s"),
        "tokens_per_s": timed(lambda s: tokens / s, "tokens_per_s"),
        "tokens_per_s_per_device": timed(rates.tokens_per_s_per_device, "tokens_per_s"),
        "flops_per_s_per_device": timed(rates.flops_per_s_per_device, "flops_per_s"),
        "mfu_fraction": timed(rates.mfu_fraction, "fraction"),
        "bubble_fraction": Metric(float(nominal.bubble_fraction[0]), "fraction"),
        "device_hours_per_trillion_tokens": timed(
            lambda s: s * devices / SECONDS_PER_HOUR * TRILLION / tokens, "h"
        ),
        "peak_bytes": Metric(float(built.ledger.need_bytes.max()), "bytes"),
        "free_bytes": Metric(float(built.ledger.free_bytes.min()), "bytes"),
        "energy_per_step_j": timed(lambda s: s * devices * device.busy_w, "j"),
    }
    if price is not None:
        usd = devices * price / SECONDS_PER_HOUR * TRILLION / tokens
        metrics["cost_per_trillion_tokens_usd"] = timed(lambda s: s * usd, "usd")
    return metrics | _imbalance(step, nominal)


def _imbalance(step: TrainStep, nominal: PipelineRun) -> dict[str, Metric]:
    """What uneven experts cost: the same step with every expert alike."""
    work = step.setup.work
    if not work.model.num_experts:
        return {}
    moe = next(layer.moe for layer in work.model.layers if layer.moe is not None)
    load = work.load(moe)
    even_s = float(TrainStep(balanced_setup(step.setup)).run().makespan_s[0])
    found = {
        "imbalance_ratio": Metric(float(load.overload.mean()), "ratio"),
        "imbalance_cost_fraction": Metric(float(nominal.makespan_s[0]) / even_s - 1.0, "fraction"),
    }
    if work.options.capacity_factor is not None:
        found["dropped_fraction"] = Metric(float(load.dropped_fraction.mean()), "fraction")
    return found


def breakdown_of(step: TrainStep, nominal: PipelineRun) -> list[Share]:
    """Seconds of the busiest stage by operation, then its bubbles and what is exposed at the ends."""
    busiest = int(np.argmax(nominal.busy_s[0].mean(axis=0)))
    shares = step.seconds_by_operation(busiest)
    total = float(nominal.makespan_s[0])
    shares += [
        Share(*EXPOSED[name], float(seconds[0]), 0.0, "roofline", 0.0)
        for name, seconds in nominal.exposed_s.items()
        if seconds[0] > 0
    ]
    rest = total - sum(share.seconds for share in shares)
    shares.append(Share("bubbles", "idle", max(rest, 0.0), 0.0, _weakest(shares), 0.0))
    return sorted(
        (replace(share, fraction=share.seconds / total) for share in shares),
        key=lambda share: (-share.seconds, share.name),
    )


def _weakest(shares: list[Share]) -> Any:
    return max((s.evidence for s in shares), key=GRADES.index, default="assumed")


def _changes(built: Training, nominal_s: float, metrics: dict[str, Metric]) -> list[Sensitivity]:
    """Change of the step's time for every property of the machine, host and routing, largest gain first."""
    found = []
    for knob in knobs_of(built.scenario.cluster):
        cluster = scaled(built.scenario.cluster, knob.path.split("."), knob.factor)
        scenario = built.scenario.model_copy(update={"cluster": cluster})
        changed = build_training(replace(built.resolved, scenario=scenario), built)
        seconds = float(TrainStep(changed.setup).run().makespan_s[0])
        found.append(
            Sensitivity(f"cluster.{knob.path}", knob.label, "step_s", seconds, seconds / nominal_s - 1.0)
        )
    captured_s = float(TrainStep(replace(built.setup, host=LaunchCost(0.0))).run().makespan_s[0])
    changed_s = [("training.graphs", "the whole step in one captured graph", captured_s)]
    if "imbalance_cost_fraction" in metrics:
        even_s = nominal_s / (1.0 + metrics["imbalance_cost_fraction"].value)
        changed_s.append(("routing", "every expert alike", even_s))
    found += [Sensitivity(path, label, "step_s", s, s / nominal_s - 1.0) for path, label, s in changed_s]
    return sorted(found, key=lambda change: change.change_fraction)


def _answer(built: Training, metrics: dict[str, Metric]) -> str:
    time, rate, mfu = (metrics[n] for n in ("step_s", "tokens_per_s_per_device", "mfu_fraction"))
    section = built.scenario.training
    return (
        f"A step of {section.global_batch_size} sequences of {section.sequence_length} tokens on "
        f"{built.setup.work.plan.num_devices} devices takes {fmt_seconds(time.value)} (80 % band "
        f"{fmt_seconds(time.low or 0)} to {fmt_seconds(time.high or 0)}): "
        f"{fmt_quantity(rate.value, rate.unit)} per device, MFU {100 * mfu.value:.1f} %."
    )


def _limiter(metrics: dict[str, Metric], changes: list[Sensitivity]) -> str:
    texts = []
    if changes and changes[0].change_fraction < -0.005:
        texts.append(f"{changes[0].label}: {100 * changes[0].change_fraction:+.0f} %")
    bubble = metrics["bubble_fraction"].value
    texts.append(f"pipeline bubbles are {100 * bubble:.0f} % of the stages' time")
    cost = metrics.get("imbalance_cost_fraction")
    if cost is not None and cost.value > 0.005:
        texts.append(f"uneven experts cost {100 * cost.value:.0f} %")
    return "; ".join(texts)


def _views(
    built: Training, step: TrainStep, nominal: PipelineRun, recorded: RecordedPipeline
) -> dict[str, Any]:
    """Layers and parameters of each part, the picture of the pipeline, busy time of each stage."""
    parts = [
        {
            "part": index,
            "layers": list(layers),
            "dense_parameters": own.dense,
            "expert_parameters": own.experts,
        }
        for index, (layers, own) in enumerate(zip(built.setup.layout, step.parameters, strict=True))
    ]
    busy_s = nominal.busy_s[0].mean(axis=0).tolist()
    return {"training": {"parts": parts, "stage_busy_s": busy_s}, "pipeline": recorded.view}


def _framework_rows(built: Training) -> list[dict[str, Any]]:
    framework = built.framework
    rows = []
    for name, text in framework.sources.items():
        grade, _, said = text.partition(":")
        rows.append(
            {
                "path": f"calibration.training.{framework.name}.{name}",
                "value": getattr(framework, name),
                "unit": "",
                "grade": grade,
                "source": said.strip(),
            }
        )
    return rows
