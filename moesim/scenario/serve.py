"""A serving scenario to its result: latencies with bands, rates, and what the iterations are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.evidence import BAND_QUANTILES, GRADES, Grade, draw_errors
from moesim.memory.ledger import Occupancy, ledger
from moesim.metrics.breakdown import Share
from moesim.scenario.resolve import Resolved
from moesim.scenario.result import Metric, Result, Sensitivity
from moesim.scenario.serve_changes import changes_of
from moesim.scenario.serving import Serving, build_serving
from moesim.scenario.serving_experts import expert_numbers, expert_view
from moesim.scenario.serving_pools import Pool
from moesim.scenario.views import inputs_of, sources_of_cluster
from moesim.serving.deployment import ROUTED
from moesim.serving.measures import Measures
from moesim.serving.memo import Memo, MemoError
from moesim.serving.step_times import StepShape
from moesim.serving.summary import Objectives, duration_s, latencies, numbers, vllm_document
from moesim.units import PS_PER_S, fmt_quantity, fmt_seconds

WITH_OBJECTIVES, WITHOUT = "goodput_requests_per_s", "output_tokens_per_s"
"""Metric that answers the question: requests that are good, or tokens where nothing says what is good."""
CURVE_POINTS = 101
SECONDS_PER_HOUR = 3600.0
MILLION = 10**6


@dataclass(frozen=True, eq=False)
class ServingOutcome:
    """A result beside the objects behind it; there is no program, so no timeline."""

    result: Result
    built: Serving
    measures: Measures
    num_events: int
    simulated: None = None

    def vllm(self) -> dict[str, Any]:
        """The run in the fields of ``vllm bench serve``."""
        built = self.built
        name = built.pools[0].deployment.model.name
        return vllm_document(built.workload, self.measures, _objectives(built), model=name)


def run_serving(
    resolved: Resolved, *, progress: Callable[[int], None] | None = None, with_changes: bool = True
) -> ServingOutcome:
    """Play a serving scenario.

    Parameters
    ----------
    resolved : Resolved
    progress : callable, optional
        Called with the finished requests now and then.
    with_changes : bool
        Also play it with single properties changed, for the sensitivity.

    Raises
    ------
    InputError, InfeasibleError
        As :func:`~moesim.scenario.serving.build_serving`, or a request could never be admitted.
    """
    built = build_serving(resolved)
    iterations = built.iterations()
    service = built.service(iterations, progress)
    measures = service.run()
    errors = [prices.error() for prices in iterations if isinstance(prices, Memo)]
    objectives = _objectives(built)
    found = numbers(built.workload, measures, objectives, built.num_devices)
    found |= _costs(built, measures, found)
    experts = [made.experts for made in service.instances if made.experts is not None]
    if errors:
        found["look_up_error_p90"] = max(error.p90 for error in errors), "fraction"
    found |= expert_numbers(experts) | _away_numbers(built, measures)
    parts = [_share_rows(built, pool, measures) for pool in built.pools]
    sigma = _sigma(built, parts, errors)
    bands = _bands(built, sigma)
    metrics = {name: Metric(value, unit, *bands.get(name, ())) for name, (value, unit) in found.items()}
    breakdown = parts[-1]
    headline = WITHOUT if objectives == Objectives() else WITH_OBJECTIVES
    changes = changes_of(built) if with_changes else []
    result = Result(
        command="run",
        scenario_tree=resolved.tree.data,
        title=built.scenario.description or built.scenario.name,
        answer=_answer(built, metrics),
        limiter=_limiter(built, measures, breakdown, changes),
        headline=headline,
        metrics={headline: metrics[headline]} | metrics,
        breakdown=breakdown,
        evidence=_evidence(breakdown),
        sensitivity=changes,
        memory=_memory(built),
        views={"serving": _view(built, measures, errors) | expert_view(experts, measures.total().width_ps)},
        sources=[*sources_of_cluster(resolved.tree), *_engine_sources(built)],
        inputs=inputs_of([resolved.tree.source]),
        warnings=list(built.warnings),
    )
    return ServingOutcome(result, built, measures, service.agenda.num_events)


def _objectives(built: Serving) -> Objectives:
    slo = built.scenario.serving.slo
    return Objectives(slo.ttft_s, slo.tpot_s, slo.e2e_latency_s)


def _costs(
    built: Serving, measures: Measures, found: dict[str, tuple[float, str]]
) -> dict[str, tuple[float, str]]:
    """KV use, energy and money."""
    total = measures.total()
    length_ps = max(measures.finish_ps)
    blocks = sum(pool.count * pool.deployment.num_ranks * pool.engine.num_blocks for pool in built.pools)
    device = built.scenario.cluster.node.device
    busy = sum(min(_busy_fraction(series.column("steps"), series.rows), 1.0) for series in measures.series)
    share = busy / len(measures.series)
    watts = built.num_devices * (device.idle_w + (device.busy_w - device.idle_w) * share)
    outputs = found["output_tokens_per_s"][0]
    costs = {
        "mean_kv_use_fraction": (float(total.column("kv_blocks").sum()) / length_ps / blocks, "fraction"),
        "mean_running": (float(total.column("running").sum()) / length_ps, "count"),
        "mean_waiting": (float(total.column("waiting").sum()) / length_ps, "count"),
        "energy_per_million_tokens_j": (watts / outputs * MILLION, "j"),
    }
    price = built.scenario.serving.usd_per_device_hour
    price = device.price_per_hour_usd if price is None else price
    if price is not None:
        usd = built.num_devices * price / SECONDS_PER_HOUR / outputs * MILLION
        costs["cost_per_million_tokens_usd"] = usd, "usd"
    return costs


def _away_numbers(built: Serving, measures: Measures) -> dict[str, tuple[float, str]]:
    """Where some experts are not on the device: look-ups of a typical decode iteration that find theirs."""
    pool = built.pools[-1]
    away = pool.deployment.away
    if away is None:
        return {}
    tokens = _typical(pool, measures, built).new_tokens.sum(axis=1)
    hits = float(np.interp(tokens, away.tokens, away.hit_fraction)[0])
    slots = built.scenario.memory.cache.slots_per_layer or 0
    return {"expert_hit_fraction": (hits, "fraction"), "experts_held_per_layer": (float(slots), "count")}


def _busy_fraction(steps: Any, rows: list[list[float]]) -> float:
    """Share of bins with any iteration: an idle instance draws idle power."""
    return float(np.count_nonzero(steps) / len(rows)) if rows else 0.0


def _typical(pool: Pool, measures: Measures, built: Serving) -> StepShape:
    """Decode iteration of a mean batch at the mean context of a sequence."""
    own = [measures.series[i] for i in _members(built, pool)]
    steps = sum(float(series.column("steps").sum()) for series in own)
    tokens = sum(float(series.column("output_tokens").sum()) for series in own)
    ranks = pool.deployment.num_ranks
    batch = max(tokens / max(steps, 1.0) / ranks / pool.deployment.tokens_per_step, 1.0)
    context = float(np.mean(built.workload.input_tokens + built.workload.output_tokens / 2))
    ones = np.ones((1, ranks))
    return StepShape.of(
        num_decodes=ones * round(batch),
        decode_context_tokens=ones * round(batch) * context,
        tokens_per_decode=1.0 + pool.deployment.drafts,
    )


def _members(built: Serving, pool: Pool) -> range:
    """Instances of a pool."""
    first = 0
    for other in built.pools:
        if other is pool:
            break
        first += other.count
    return range(first, first + pool.count)


def _share_rows(built: Serving, pool: Pool, measures: Measures) -> list[Share]:
    """What a typical decode iteration of a pool is made of, longest first."""
    shape = _typical(pool, measures, built)
    times = pool.deployment.step_times("exact")
    grouped: dict[str, list[Any]] = {}
    for term in times.terms(shape):
        row = grouped.setdefault(term.label, [0.0, term.family, term.grade, 0.0])
        row[0] += float(np.max(term.seconds))
        row[2] = max(row[2], term.grade, key=GRADES.index)
        row[3] = max(row[3], term.sigma)
    whole = sum(row[0] for row in grouped.values()) or 1.0
    shares = [
        Share(label, _kind(family), seconds, seconds / whole, grade, sigma)
        for label, (seconds, family, grade, sigma) in grouped.items()
        if seconds > 0
    ]
    return sorted(shares, key=lambda share: -share.seconds)


def _kind(family: str) -> str:
    return family if family in {"all_to_all", "all_reduce", "all_gather", "reduce_scatter"} else "compute"


def _evidence(breakdown: list[Share]) -> dict[str, float]:
    shares: dict[Grade, float] = {}
    for share in breakdown:
        shares[share.evidence] = shares.get(share.evidence, 0.0) + share.fraction
    return {str(grade): shares[grade] for grade in GRADES if grade in shares}


def _sigma(built: Serving, parts: list[list[Share]], errors: list[MemoError]) -> float:
    """Spread of ln(true / simulated) of an iteration: of its operations, its engine, and of the memo."""
    operations = max(sum((s.fraction * s.sigma) ** 2 for s in shares) ** 0.5 for shares in parts)
    memo = max((error.p90 for error in errors), default=0.0)
    return float((operations**2 + built.profile.step_sigma**2 + memo**2) ** 0.5)


def _bands(built: Serving, sigma: float) -> dict[str, tuple[float, float]]:
    """80 % range of every number over whole runs, each with step times that are off by one draw."""
    runs = built.scenario.serving.band_runs
    draws = draw_errors(["serving/iteration"], runs, built.scenario.seed)["serving/iteration"]
    found: dict[str, list[float]] = {}
    for draw in np.sort(draws).tolist():
        scale = float(np.exp(sigma * draw))
        measures = built.service(built.iterations(scale, compared=True), scale=scale).run()
        drawn = numbers(built.workload, measures, _objectives(built), built.num_devices)
        for name, (value, _) in drawn.items():
            found.setdefault(name, []).append(value)
    return {
        name: (float(np.quantile(values, BAND_QUANTILES[0])), float(np.quantile(values, BAND_QUANTILES[1])))
        for name, values in found.items()
    }


def _answer(built: Serving, metrics: dict[str, Metric]) -> str:
    def told(name: str) -> str:
        metric = metrics[name]
        text = fmt_quantity(metric.value, metric.unit)
        if metric.low is None or metric.high is None or metric.unit != "s":
            return text
        return f"{text} ({fmt_seconds(metric.low)} to {fmt_seconds(metric.high)})"

    rate = metrics["output_tokens_per_s_per_device"].value
    text = f"Half of the requests see their first token within {told('p50_ttft_s')}"
    if "p50_tpot_s" in metrics:
        text += f" and each further one within {told('p50_tpot_s')}"
    text += f"; {rate:,.0f} output tokens a second and device on {built.num_devices}"
    slo = built.scenario.serving.slo
    if slo.ttft_s or slo.tpot_s or slo.e2e_latency_s:
        good = metrics["good_fraction"].value
        text += f"; {100 * good:.1f} % of requests meet the objectives"
    return text + "."


def _limiter(built: Serving, measures: Measures, breakdown: list[Share], changes: list[Sensitivity]) -> str:
    """What would help most and what requests wait for, in words."""
    waits = _waits(built, measures, breakdown)
    if not changes or changes[0].change_fraction > -0.005:
        return waits
    best = changes[0]
    return f"{best.label}: {100 * best.change_fraction:+.0f} % latency ({waits})"


def _waits(built: Serving, measures: Measures, breakdown: list[Share]) -> str:
    total = measures.total()
    length_ps = max(measures.finish_ps)
    waiting = float(total.column("waiting").sum()) / length_ps
    first = breakdown[0]
    text = f"{first.name}: {100 * first.fraction:.0f} % of a decode iteration"
    if sum(measures.preemptions):
        return f"KV blocks: {sum(measures.preemptions)} preemptions; then {text}"
    if waiting >= 1:
        found = latencies(built.workload, measures)
        share = float(found.queue_s.mean() / max(found.e2e_latency_s.mean(), 1e-300))
        return (
            f"queueing: {waiting:.0f} requests wait on average, {100 * share:.0f} % of latency; then {text}"
        )
    return text


def _memory(built: Serving) -> dict[str, Any]:
    """What fills a device of each pool when its cache is full."""
    rows, first = [], 0
    for pool in built.pools:
        deployment, engine = pool.deployment, pool.engine
        tokens = float(engine.num_blocks * engine.block_tokens)
        capacity = deployment.cluster.node.device.main_memory.capacity_bytes
        book = ledger(
            deployment.model,
            deployment.plan,
            deployment.dtypes,
            Occupancy(1.0, tokens, deployment.token_budget),
            capacity_bytes=capacity,
            reserved_fraction=0.0,
        )
        parts = {name: float(size.max()) for name, size in book.parts.items() if size.max() > 0}
        if deployment.away is not None:
            parts[ROUTED] = deployment.away.device_bytes
        free = max(capacity - sum(parts.values()), 0.0)
        last = first + pool.count * deployment.plan.num_devices - 1
        ranks = f"{first}-{last}" if last > first else str(first)
        first = last + 1
        rows.append({"ranks": ranks, "parts": parts, "free_bytes": free})
    return {"capacity_bytes": built.scenario.cluster.node.device.main_memory.capacity_bytes, "per_rank": rows}


def _view(built: Serving, measures: Measures, errors: list[MemoError]) -> dict[str, Any]:
    """Curves of the figures: latencies, numbers over time, batches of instances."""
    found = latencies(built.workload, measures)
    percents = np.linspace(0, 100, CURVE_POINTS)
    curves = {}
    for name in ("ttft_s", "tpot_s", "e2e_latency_s"):
        values = getattr(found, name)
        values = values[~np.isnan(values)]
        if len(values):
            curves[name] = [round(float(v), 6) for v in np.percentile(values, percents)]
    total = measures.total()
    width_s = total.width_ps / PS_PER_S
    blocks = sum(pool.count * pool.deployment.num_ranks * pool.engine.num_blocks for pool in built.pools)
    slo = built.scenario.serving.slo
    return {
        "latency_curves": curves,
        "objectives": {k: v for k, v in slo.model_dump().items() if v is not None},
        "bin_s": width_s,
        "output_tokens_per_s": _listed(total.column("output_tokens") / width_s),
        "prompt_tokens_per_s": _listed(total.column("prompt_tokens") / width_s),
        "running": _listed(total.column("running") / total.width_ps),
        "waiting": _listed(total.column("waiting") / total.width_ps),
        "kv_use_fraction": _listed(total.column("kv_blocks") / total.width_ps / blocks),
        "preemptions": _listed(total.column("preemptions")),
        "instances": [
            {"role": pool.role, "running": _listed(measures.series[i].column("running") / total.width_ps)}
            for pool in built.pools
            for i in _members(built, pool)
        ],
        "changes": built.told_changes(),
        "memo": [
            {"median": e.median, "p90": e.p90, "bias": e.bias, "shapes": e.num_shapes, "priced": e.num_priced}
            for e in errors
        ],
        "duration_s": duration_s(built.workload, measures),
    }


def _listed(values: Any) -> list[float]:
    return [round(float(v), 4) for v in values]


def _engine_sources(built: Serving) -> list[dict[str, Any]]:
    profile = built.profile
    name = f"engines/{profile.engine}.yaml"
    rows = [("host.iteration_s", profile.host.iteration_s), ("host.request_s", profile.host.request_s)]
    rows.append(("sigma", profile.step_sigma))
    return [
        {"path": f"engine.{path}", "value": value, "unit": "", "grade": "fitted", "source": name}
        for path, value in rows
    ]
