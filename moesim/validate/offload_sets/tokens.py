"""Absolute rates of real systems, composed of the policies on described machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import rng_for
from moesim.memory.caches.policies.base import known_counts
from moesim.memory.demand import Demand
from moesim.model import Dtypes, ModelSpec
from moesim.model.parameters import expert_bytes, weight_bytes
from moesim.offload import Costs
from moesim.validate.claims import Claim, Progress
from moesim.validate.offload_sets.cases import (
    WARM_PASSES,
    Case,
    case_of,
    demand_for,
    model_of,
    offload_of,
    run,
)

Data = Mapping[str, Any]
TOLERANCE = 0.2
RESERVED_FRACTION = 0.1
Q4_K_M_BITS = 4.67
"""Of a weight in llama.cpp's Q4_K_M mix of 4- and 6-bit blocks, 0.584 bytes."""


def token_claims(data: Data, seed: int, progress: Progress) -> list[Claim]:
    """Tables of absolute rates, and their median error."""
    tables: dict[str, list[Claim]] = {}
    for table in data["rates"]:
        for row in table["rows"]:
            given = {**{k: v for k, v in table.items() if k != "rows"}, **row}
            name = _name(given)
            progress(name)
            ours = _rate(data, given, seed)
            claim = Claim(name, given["source"], "tokens_per_s", row["tokens_per_s"], ours, TOLERANCE)
            tables.setdefault(table["source"], []).append(claim)
    tables[data["passes"]["source"]] = _passes(data, seed, progress)
    tables[data["shares"]["source"]] = _shares(data, seed, progress)
    found = [claim for rows in tables.values() for claim in rows]
    return [*found, *(_median(source, rows) for source, rows in tables.items()), _median("all tables", found)]


def _median(source: str, rows: Sequence[Claim]) -> Claim:
    """Median error of a table, as a claim of its own."""
    median = float(np.median([abs(claim.error) for claim in rows]))
    note = "nothing is set for a row"
    name = f"median error of {len(rows)} absolute rates"
    return Claim(name, source, "fraction", 0.0, median, TOLERANCE, absolute=True, note=note)


def _name(given: Data) -> str:
    told = [
        f"{key} {given[key]}"
        for key in ("top_k", "context", "cpu_layers", "slots", "policy", "prefetch")
        if key in given
    ]
    kind = (
        given.get("system") or given.get("streamed") or ("whole layers" if given.get("whole_layers") else "")
    )
    return ", ".join(filter(None, [f"{given['model']} on {given['machine']}", kind, *told]))


def _dtypes(given: Data) -> Dtypes:
    experts = given.get("experts", "bf16")
    return Dtypes(weights=given.get("weights", "bf16"), experts="int4" if experts == "q4_k_m" else experts)


def _rate(data: Data, given: Data, seed: int) -> float:
    """Tokens a second of one row."""
    model = model_of(given["model"], given.get("top_k"))
    dtypes = _dtypes(given)
    case = case_of(
        data["machines"][given["machine"]],
        data["engines"][given["engine"]],
        model,
        dtypes,
        given.get("context", 0),
    )
    if "streamed" in given:
        return _streamed(case, given["streamed"])
    demand = demand_for(model, given["like"], seed)
    layers = demand.num_layers
    scale = _byte_scale(given, model, dtypes)
    if given.get("whole_layers") or given.get("policy") == "none":
        return _uncached(case, demand, scale, whole=bool(given.get("whole_layers")), seed=seed)
    costs = _scaled(case, scale)
    if given["engine"] in {"kt", "llama"}:
        on_cpu = given.get("cpu_layers", model.num_layers)
        first = model.num_layers - on_cpu
        held = [model.num_experts if layer >= on_cpu else 0 for layer in model.moe_layers]
        slots = np.array(held if first else [0] * layers, np.int64)
        return 1 / run(demand, costs, offload_of(slots, cache="frequency_static", executor="cpu"), seed)[0]
    slots = _slots(given, case, layers, scale)
    prefetch = given.get("prefetch", "none")
    return 1 / run(demand, costs, offload_of(slots, cache=given["policy"], prefetch=prefetch), seed)[0]


def _byte_scale(given: Data, model: ModelSpec, dtypes: Dtypes) -> float:
    """Bytes of an expert as published over those of its nearest described format."""
    bits = given.get("expert_bits") or (Q4_K_M_BITS if given.get("experts") == "q4_k_m" else None)
    if bits is None:
        return 1.0
    layer = model.layers[model.moe_layers[0]]
    assert layer.moe is not None
    return float(
        layer.moe.expert_parameters(model.hidden_size)
        * bits
        / 8
        / expert_bytes(layer, model.hidden_size, dtypes)
    )


def _scaled(case: Case, scale: float) -> Costs:
    """Costs with the published bytes of an expert."""
    costs = case.costs()
    if scale == 1.0:
        return costs
    copy = replace(costs.copy, seconds=float(costs.copy.seconds) * scale)
    cpu = costs.cpu
    assert cpu is not None
    times = cpu.seconds
    return replace(costs, copy=copy, cpu=replace(cpu, seconds=lambda tokens: times(tokens) * scale))


def _slots(given: Data, case: Case, layers: int, scale: float) -> NDArray[np.int64]:
    """Experts a layer that the device holds: as published, else as many as fit."""
    if "slots" in given:
        return np.full(layers, given["slots"], np.int64)
    model, dtypes = case.model, case.dtypes
    one = expert_bytes(model.layers[model.moe_layers[0]], model.hidden_size, dtypes) * scale
    rest = weight_bytes(model, dtypes) - layers * model.num_experts * one
    room = case.node.device.main_memory.capacity_bytes * (1 - RESERVED_FRACTION) - rest
    return np.full(layers, min(model.num_experts, int(room // one) // layers), np.int64)


def _uncached(case: Case, demand: Demand, scale: float, *, whole: bool, seed: int) -> float:
    """Every expert of a token, or every expert of a layer, is copied for each token."""
    costs = _scaled(case, scale)
    num = case.model.num_experts if whole else 0
    base, _ = run(
        demand,
        costs,
        offload_of(np.full(demand.num_layers, case.model.num_experts), cache="frequency_static"),
        seed,
    )
    copies = demand.num_layers * (num or case.model.top_k)
    return 1 / (base + copies * float(costs.copy.seconds))


def _streamed(case: Case, how: str) -> float:
    """All weights that do not stay on the device cross the link for every token, layer by layer."""
    total = weight_bytes(case.model, case.dtypes)
    link = case.node.host.pcie
    assert link is not None
    rate = link.bandwidth_bytes_per_s * (case.rates.pageable_fraction if how == "pageable" else 1.0)
    kept = 0.0
    if how == "resident":
        kept = case.node.device.main_memory.capacity_bytes * (1 - RESERVED_FRACTION)
    host = case.work.pass_s + case.model.num_layers * case.work.layer_s
    return 1 / (max(0.0, total - kept) / rate + host)


def _passes(data: Data, seed: int, progress: Progress) -> list[Claim]:
    """gpt-oss-120b by tokens of a pass, everything in one memory."""
    given = data["passes"]
    model = model_of(given["model"])
    dtypes = Dtypes(weights="int8", experts="mxfp4", head="int8")
    found = []
    for machine in ("strix_gpu", "strix_cpu"):
        case = case_of(data["machines"][machine], data["engines"][given["engine"]], model, dtypes, 0)
        for size, published in given[machine].items():
            tokens = int(size)
            progress(f"{given['model']} on {machine}, {tokens} tokens a pass")
            demand = demand_for(model, given["like"], seed, tokens=tokens, passes=1 if tokens > 64 else 4)
            slots = np.full(demand.num_layers, model.num_experts)
            offload = offload_of(slots, cache="frequency_static")
            seconds, _ = run(demand, case.costs(tokens, prefill=tokens > 1), offload, seed)
            name = f"{given['model']} on {machine}, {tokens} tokens a pass"
            found.append(Claim(name, given["source"], "tokens_per_s", published, tokens / seconds, TOLERANCE))
    return found


def _shares(data: Data, seed: int, progress: Progress) -> list[Claim]:
    """Share of experts on the devices, five ways to choose them."""
    given = data["shares"]
    model = model_of(given["model"])
    dtypes = Dtypes(weights="fp8", experts="fp8")
    machine, engine = data["machines"][given["machine"]], data["engines"][given["engine"]]
    costs = case_of(machine, engine, model, dtypes, given["context"]).costs()
    demand = demand_for(model, given["like"], seed)
    found = []
    for way in ("random", "uniform", "front", "frequency", "dynamic"):
        progress(f"{given['model']}, experts chosen {way}")
        for percent, published in zip(given["percent"], given[way], strict=True):
            slots = _placed(way, percent / 100, demand, seed)
            cache, known = _policy(way, demand)
            seconds, _ = run(known, costs, offload_of(slots, cache=cache, executor="cpu"), seed)
            name = f"{given['model']}, {percent} % of experts on the GPUs, {way}"
            found.append(Claim(name, given["source"], "tokens_per_s", published, 1 / seconds, TOLERANCE))
    return found


def _placed(way: str, share: float, demand: Demand, seed: int) -> NDArray[np.int64]:
    """Slots of each layer."""
    layers, experts = demand.num_layers, demand.num_experts
    total = round(share * layers * experts)
    if way == "front":
        return np.clip(total - np.arange(layers) * experts, 0, experts).astype(np.int64)
    if way == "random":
        drawn = rng_for(seed, "validate/shares").permutation(layers * experts)[:total] // experts
        return np.bincount(drawn, minlength=layers).astype(np.int64)
    if way in {"frequency", "dynamic"} and demand.prior_counts is not None:
        best = np.argsort(-demand.prior_counts.ravel(), kind="stable")[:total] // experts
        return np.bincount(best, minlength=layers).astype(np.int64)
    return np.full(layers, round(share * experts), np.int64)


def _policy(way: str, demand: Demand) -> tuple[str, Demand]:
    """Cache policy, and the traffic that it knows: the request's own beginning where placement is dynamic."""
    if way in {"random", "uniform", "front"}:
        return "random_static", demand
    if way == "dynamic":
        return "frequency_static", replace(demand, prior_counts=known_counts(_beginning(demand)))
    return "frequency_static", demand


def _beginning(demand: Demand) -> Demand:
    """The passes before those that are measured."""
    return replace(
        demand, ids=demand.ids[:WARM_PASSES], tokens=demand.tokens[:WARM_PASSES], prior_counts=None
    )
