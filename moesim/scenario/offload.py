"""An offload scenario to its result: tokens a second, hit rates, links, and what to change first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.engine import events, vector
from moesim.engine.critical_path import critical_path
from moesim.engine.durations import durations_ps
from moesim.engine.program import Program
from moesim.engine.spans import Recorded
from moesim.errors import MoesimError
from moesim.evidence import BAND_QUANTILES, draw_errors
from moesim.hardware.load import load_device
from moesim.metrics.breakdown import evidence_shares, path_breakdown
from moesim.offload import OffloadRun, simulate
from moesim.offload.lanes import CPU, CXL, DEVICE, DISK, LINK, PIM
from moesim.offload.rates import hybrid_rates
from moesim.scenario.offloading import Offloading, build_offload
from moesim.scenario.resolve import Resolved
from moesim.scenario.result import Metric, Result, Sensitivity
from moesim.scenario.sensitivity import scaled
from moesim.scenario.views import inputs_of, sources_of_cluster
from moesim.units import PS_PER_S, fmt_quantity, fmt_seconds

RECORDED_PASSES = 1
"""Passes at the end that the event interpreter runs again for timeline, bands and breakdown."""
CURVE_POINTS = 6
NEAR_MEMORY = "cxl_pnm"
"""Near-memory device that a change adds to a node without one."""


@dataclass(frozen=True, eq=False)
class Recording:
    """Program of the last passes and what the event interpreter made of it."""

    program: Program
    recorded: Recorded


@dataclass(frozen=True, eq=False)
class OffloadOutcome:
    """A result beside the objects behind it."""

    result: Result
    built: Offloading
    simulated: Recording


def run_offload(resolved: Resolved, *, with_changes: bool = True) -> OffloadOutcome:
    """Simulate an offload scenario.

    Parameters
    ----------
    with_changes : bool
        Also run it with single properties changed, for the sensitivity and the curve over cache slots.

    Raises
    ------
    InputError, InfeasibleError
        As :func:`~moesim.scenario.offloading.build_offload`.
    """
    built = build_offload(resolved)
    scenario = built.scenario
    done = simulate(
        built.demand, built.costs, built.offload, seed=scenario.seed, record_passes=RECORDED_PASSES
    )
    program = done.program
    assert program is not None  # asked for
    durations = durations_ps(program)
    recorded = events.simulate(program, durations).recorded
    factors = _band(program, scenario.bands.samples, scenario.seed)
    headline = "tpot_s" if scenario.offload.phase == "decode" else "prefill_s"
    pass_s = seconds_of(built, done)
    metrics = _metrics(built, done, headline, pass_s, factors)
    breakdown = path_breakdown(program, critical_path(program, recorded))
    changes = list(_changes(built, headline, pass_s)) if with_changes else []
    changes.sort(key=lambda change: change.change_fraction)
    result = Result(
        command="run",
        scenario_tree=resolved.tree.data,
        title=scenario.description or scenario.name,
        answer=_answer(built, metrics, headline),
        limiter=_limiter(changes, done),
        headline=headline,
        metrics=metrics,
        breakdown=breakdown,
        evidence={str(grade): share for grade, share in evidence_shares(breakdown).items()},
        sensitivity=changes,
        memory=_memory(built),
        views=_views(built, done, with_curve=with_changes),
        sources=[*sources_of_cluster(resolved.tree), *_rate_rows(built.scenario.executor.program)],
        inputs=inputs_of(_files(built)),
        warnings=list(built.traffic.warnings),
    )
    return OffloadOutcome(result, built, Recording(program, recorded))


def seconds_of(built: Offloading, done: OffloadRun) -> float:
    """Mean time of a measured pass. [s]"""
    skip = min(built.scenario.offload.warmup_passes, built.demand.num_passes - 1)
    return done.pass_s(skip)


def _band(program: Program, samples: int, seed: int) -> tuple[float, float]:
    """Low and high time of the recorded passes over their nominal time."""
    draws = draw_errors(program.families(), samples, seed)
    compiled = vector.compile(program)
    nominal = float(vector.run(compiled, durations_ps(program)).makespan_ps[0])
    drawn = vector.run(compiled, durations_ps(program, draws)).makespan_ps
    low, high = np.quantile(drawn, BAND_QUANTILES) / nominal
    return float(low), float(high)


def _metrics(
    built: Offloading, done: OffloadRun, headline: str, pass_s: float, factors: tuple[float, float]
) -> dict[str, Metric]:
    scenario, tally = built.scenario, done.tally
    low, high = factors
    tokens = scenario.batch.tokens_per_rank
    rate = tokens / pass_s
    total_s = done.pass_ends_ps[-1] / PS_PER_S
    busy = {lane: done.busy_ps[lane] / PS_PER_S / total_s for lane in done.busy_ps}
    name = "output_tokens_per_s" if headline == "tpot_s" else "input_tokens_per_s"
    passes = built.demand.num_passes
    found = {
        headline: Metric(pass_s, "s", pass_s * low, pass_s * high),
        name: Metric(rate, "tokens_per_s", rate / high, rate / low),
        "hit_fraction": Metric(tally.hits / max(1, tally.lookups), "fraction"),
        "bytes_moved": Metric(tally.moved * built.tiers.expert_bytes / passes, "bytes"),
        "link_busy_fraction": Metric(busy[LINK], "fraction"),
        "device_busy_fraction": Metric(busy[DEVICE], "fraction"),
        "cpu_busy_fraction": Metric(busy[CPU], "fraction"),
    }
    if tally.prefetches:
        share = tally.useful_prefetches / tally.prefetches
        found["prefetch_precision_fraction"] = Metric(share, "fraction")
        needed = tally.useful_prefetches + tally.loads + tally.on_cpu
        found["prefetch_recall_fraction"] = Metric(tally.useful_prefetches / max(1, needed), "fraction")
    if built.offload.host_cache is not None:
        found["disk_busy_fraction"] = Metric(busy[DISK], "fraction")
        if built.costs.cxl is not None:
            found["cxl_busy_fraction"] = Metric(busy[CXL], "fraction")
        away = tally.disk_reads + tally.far_reads
        hits = 1 - away / max(1, tally.host_lookups)
        found["host_hit_fraction"] = Metric(hits, "fraction")
    found["energy_per_token_j"] = Metric(_energy_j(built, busy, pass_s) / tokens, "j")
    found["cache_slots"] = Metric(float(built.tiers.slots.sum()), "count")
    return found


def _energy_j(built: Offloading, busy: dict[str, float], pass_s: float) -> float:
    """Of a pass: idle power always, the rest while busy. [J]"""
    node = built.scenario.cluster.node
    device, cpu = node.device, node.host.cpu
    device_w = device.idle_w + (device.busy_w - device.idle_w) * busy[DEVICE]
    cpu_w = cpu.idle_w + (cpu.busy_w - cpu.idle_w) * busy[CPU]
    pim_w = 0.0 if node.pim is None else node.pim.idle_w + (node.pim.busy_w - node.pim.idle_w) * busy[PIM]
    return pass_s * (device_w + node.host.num_sockets * cpu_w + pim_w)


def _changes(before: Offloading, headline: str, pass_s: float) -> Iterator[Sensitivity]:
    """What single purchases would do, each a whole run."""
    for path, label, changed in _purchases(before):
        try:
            built = build_offload(changed, before)
        except MoesimError:
            continue
        seconds = seconds_of(
            built, simulate(built.demand, built.costs, built.offload, seed=changed.scenario.seed)
        )
        yield Sensitivity(path, label, headline, seconds, seconds / pass_s - 1)


def _purchases(before: Offloading) -> Iterator[tuple[str, str, Resolved]]:
    resolved, scenario = before.resolved, before.scenario
    node = scenario.cluster.node
    main = next(iter(node.device.memory))
    knobs: list[tuple[str, str, float]] = [
        (f"device.memory.{main}.bandwidth_bytes_per_s", "device memory bandwidth x2", 2.0),
        (f"device.memory.{main}.capacity_bytes", "device memory capacity x2", 2.0),
        ("host.dram.bandwidth_bytes_per_s", "host memory bandwidth x2", 2.0),
        ("device.launch_s", "kernel launch time halved", 0.5),
    ]
    if node.host.pcie is not None:
        knobs.append(("host.pcie.bandwidth_bytes_per_s", "PCIe one generation on (x2)", 2.0))
    if node.pim is not None:
        units = next(iter(node.pim.memory))
        knobs.append((f"pim.memory.{units}.bandwidth_bytes_per_s", "near-memory bandwidth x2", 2.0))
    if before.tiers.host_slots is not None:
        knobs.append(("host.dram.capacity_bytes", "host memory capacity x2", 2.0))
        if node.host.cxl is not None:
            knobs.append(("host.cxl.bandwidth_bytes_per_s", "CXL memory bandwidth x2", 2.0))
        if node.host.ssd is not None:
            knobs.append(("host.ssd.bandwidth_bytes_per_s", "disk bandwidth x2", 2.0))
    for path, label, factor in knobs:
        cluster = scaled(scenario.cluster, ["node", *path.split(".")], factor)
        yield f"cluster.node.{path}", label, _with(resolved, cluster=cluster)
    for path, label, section in (
        ("executor.policy", "list scheduling of experts", "list_schedule"),
        ("executor.policy", "missing experts on the CPU", "cpu"),
    ):
        if scenario.executor.policy != section:
            kept = scenario.executor.model_dump(include=set(type(scenario.executor).model_fields))
            executor = type(scenario.executor)(**kept | {"policy": section})
            yield path, label, _with(resolved, executor=executor)
    yield from _near_memory(resolved)
    if scenario.memory.prefetch.policy == "none":
        # a cache that never changes needs room beside it for what arrives ahead
        buffer = before.model.top_k if before.offload.cache.bypasses else scenario.memory.prefetch.buffer
        prefetch = type(scenario.memory.prefetch)(policy="next_layer_gate", buffer=buffer)
        memory = scenario.memory.model_copy(update={"prefetch": prefetch})
        yield "memory.prefetch.policy", "prefetch by the next layer's gate", _with(resolved, memory=memory)


def _near_memory(resolved: Resolved) -> Iterator[tuple[str, str, Resolved]]:
    """A module that computes experts where they lie, beside a node that has none."""
    scenario = resolved.scenario
    if scenario.cluster.node.pim is not None or scenario.executor.policy == "near_memory":
        return
    node = scenario.cluster.node.model_copy(update={"pim": load_device(NEAR_MEMORY)})
    kept = scenario.executor.model_dump(include=set(type(scenario.executor).model_fields))
    executor = type(scenario.executor)(**kept | {"policy": "near_memory"})
    cluster = scenario.cluster.model_copy(update={"node": node})
    label = f"experts in a {NEAR_MEMORY} module"
    yield "cluster.node.pim", label, _with(resolved, cluster=cluster, executor=executor)


def _with(resolved: Resolved, **changes: Any) -> Resolved:
    return replace(resolved, scenario=resolved.scenario.model_copy(update=changes))


def _curve(built: Offloading) -> list[dict[str, float]]:
    """Speed and hits against cache slots, up to all experts (whether or not they fit)."""
    layers = built.demand.num_layers
    tokens = built.scenario.batch.tokens_per_rank
    least = 0 if built.offload.cache.bypasses else built.demand.largest
    points = np.unique(np.geomspace(max(1, least), built.demand.num_experts, CURVE_POINTS).astype(int))
    rows = []
    for count in points.tolist():
        slots: NDArray[np.int64] = np.full(layers, count, np.int64)
        offload = replace(built.offload, slots=slots)
        done = simulate(built.demand, built.costs, offload, seed=built.scenario.seed)
        rows.append(
            {
                "slots_per_layer": count,
                "tokens_per_s": tokens / seconds_of(built, done),
                "hit_fraction": done.tally.hits / max(1, done.tally.lookups),
                "fits": bool(count * layers <= _most_slots(built)),
            }
        )
    return rows


def _most_slots(built: Offloading) -> int:
    tiers = built.tiers
    return int((tiers.device_bytes - tiers.fixed_bytes) // tiers.expert_bytes)


def _views(built: Offloading, done: OffloadRun, *, with_curve: bool) -> dict[str, Any]:
    total_s = done.pass_ends_ps[-1] / PS_PER_S
    view: dict[str, Any] = {
        "tally": asdict(done.tally),
        "busy_fraction": {name: ps / PS_PER_S / total_s for name, ps in done.busy_ps.items() if ps},
        "expert_bytes": built.tiers.expert_bytes,
        "slots_per_layer": float(built.tiers.slots.mean()),
        "num_experts": built.demand.num_experts,
    }
    if with_curve:
        view["curve"] = _curve(built)
    return {"offload": view}


def _memory(built: Offloading) -> dict[str, Any]:
    tiers = built.tiers
    free = tiers.device_bytes - sum(tiers.parts.values())
    return {
        "capacity_bytes": tiers.device_bytes,
        "per_rank": [{"ranks": "0", "parts": tiers.parts, "free_bytes": free}],
    }


def _answer(built: Offloading, metrics: dict[str, Metric], headline: str) -> str:
    time = metrics[headline]
    rate = next(metric for name, metric in metrics.items() if name.endswith("tokens_per_s"))
    slots = built.tiers.slots
    hits = metrics["hit_fraction"].value
    return (
        f"{fmt_quantity(rate.value, rate.unit)} ({fmt_seconds(time.value)} a pass, 80 % band "
        f"{fmt_seconds(time.low or 0)} to {fmt_seconds(time.high or 0)}) with {slots.mean():.0f} of "
        f"{built.demand.num_experts} experts of a layer on the device: {100 * hits:.0f} % of look-ups hit."
    )


def _limiter(changes: list[Sensitivity], done: OffloadRun) -> str:
    total = done.pass_ends_ps[-1]
    busiest = max(done.busy_ps, key=lambda lane: done.busy_ps[lane])
    text = f"{busiest}, busy {100 * done.busy_ps[busiest] / total:.0f} % of the time"
    if changes and changes[0].change_fraction < -0.005:
        text += f"; {changes[0].label}: {100 * changes[0].change_fraction:+.0f} %"
    return text


def _rate_rows(program: str) -> list[dict[str, Any]]:
    """What hosts and links are taken to reach."""
    rates = hybrid_rates(program)
    rows = []
    for name, text in rates.sources.items():
        grade, _, said = text.partition(":")
        field, _, of_program = name.partition(".")
        if of_program not in {"", program}:
            continue
        found = rates.programs[program] if of_program else getattr(rates, field)
        for part, value in found.items() if isinstance(found, dict) else [("", found)]:
            path = ".".join(filter(None, ("calibration.hybrid", name, part)))
            rows.append({"path": path, "value": value, "unit": "", "grade": grade, "source": said.strip()})
    return rows


def _files(built: Offloading) -> list[str | Path]:
    return [built.resolved.tree.source, *built.traffic.files]
