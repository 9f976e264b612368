"""Absolute rates of real systems, composed of the policies on described machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import rng_for
from moesim.memory.demand import Demand, demand_of
from moesim.model import Dtypes, ModelSpec
from moesim.model.parameters import expert_bytes, kv_bytes_per_token, weight_bytes
from moesim.validate.claims import Claim, Progress
from moesim.validate.offload_sets.cases import (
    PASSES,
    WARM_PASSES,
    Case,
    case_of,
    demand_for,
    model_of,
    offload_of,
    requests_like,
    run,
)

Data = Mapping[str, Any]
TOLERANCE = 0.2
RESERVED_FRACTION = 0.1
PROFILED_REQUESTS = 4
"""Requests of others that a placement by frequency has seen."""
Q4_K_BITS, Q6_K_BITS, Q5_0_BITS, Q8_0_BITS = 4.5, 6.5625, 5.5, 8.5
"""Bits of a weight with its share of the scales in llama.cpp's blocks."""
Q_K_BLOCK = 256
OP_OFFLOAD_TOKENS = 32
"""Tokens from which llama.cpp computes on the device what lies in host memory (its CUDA back-end)."""


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
    # the output head of llama.cpp's mixes has six or eight bits
    head = given.get("head", "int8" if given["engine"] in {"kt", "llama"} else "bf16")
    experts = "int4" if experts == "q4_k_m" else experts
    return Dtypes(weights=given.get("weights", "bf16"), experts=experts, head=head)


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
    case = replace(case, work=replace(case.work, unit=given.get("unit", "expert")))
    if "streamed" in given:
        return _streamed(case, given, data["engines"][given["engine"]].get("module_s", 0.0))
    demand = demand_for(model, given["like"], seed)
    layers = demand.num_layers
    case = replace(case, byte_scale=_byte_scale(given, model, dtypes))
    if given.get("whole_layers") or given.get("policy") == "none":
        held = given["slots"] if given.get("whole_layers") else None
        return _uncached(case, demand, held, seed)
    if given["engine"] in {"kt", "llama"}:
        return _hybrid(case, demand, given, seed)
    slots = _slots(given, case, layers)
    offload = offload_of(slots, cache=given["policy"], prefetch=given.get("prefetch", "none"))
    return 1 / run(demand, case.costs(), replace(offload, pooled=given.get("pooled", False)), seed)[0]


def _hybrid(case: Case, demand: Demand, given: Data, seed: int) -> float:
    """Experts of some layers on the CPU; with ``generated`` tokens, over the whole request instead of decode.

    llama.cpp copies the experts of longer prompts to the device and computes them there.
    """
    model = case.model
    on_cpu = given.get("cpu_layers", model.num_layers)
    held = [0 if layer < on_cpu else model.num_experts for layer in model.moe_layers]
    slots = np.array(held, np.int64)
    static = offload_of(slots, cache="frequency_static", executor="cpu")
    token_s = run(demand, case.costs(), static, seed)[0]
    if "generated" not in given:
        return 1 / token_s
    tokens = given["prompt"]
    executor = "cpu" if tokens < OP_OFFLOAD_TOKENS else "device"
    prompt = demand_for(model, given["like"], seed, tokens=tokens, passes=1)
    costs = replace(case, context=0).costs(tokens, prefill=True)
    prompt_s = run(prompt, costs, offload_of(slots, cache="frequency_static", executor=executor), seed)[0]
    return float(given["generated"] / (prompt_s + given["generated"] * token_s))


def _byte_scale(given: Data, model: ModelSpec, dtypes: Dtypes) -> float:
    """Bytes of an expert as published over those of its nearest described format."""
    layer = model.layers[model.moe_layers[0]]
    assert layer.moe is not None
    bits = given.get("expert_bits")
    if given.get("experts") == "q4_k_m":
        bits = q4_k_m_bits(layer.moe.expert_width)
    if bits is None:
        return 1.0
    return float(
        layer.moe.expert_parameters(model.hidden_size)
        * bits
        / 8
        / expert_bytes(layer, model.hidden_size, dtypes)
    )


def q4_k_m_bits(width: int) -> float:
    """Bits of an expert's weight in llama.cpp's Q4_K_M mix. [bit]

    Half of the down projections have six bits instead of four; rows that are no multiple of 256 take the
    older formats of 32 weights.
    """
    down = (Q4_K_BITS + Q6_K_BITS) / 2 if width % Q_K_BLOCK == 0 else (Q5_0_BITS + Q8_0_BITS) / 2
    return (2 * Q4_K_BITS + down) / 3


def _slots(given: Data, case: Case, layers: int) -> NDArray[np.int64]:
    """Experts a layer that the device holds: as published, else as many as fit."""
    if "slots" in given:
        return np.full(layers, given["slots"], np.int64)
    model, dtypes = case.model, case.dtypes
    one = expert_bytes(model.layers[model.moe_layers[0]], model.hidden_size, dtypes) * case.byte_scale
    rest = weight_bytes(model, dtypes) - layers * model.num_experts * one
    room = case.node.device.main_memory.capacity_bytes * (1 - RESERVED_FRACTION) - rest
    return _spread(
        min(int(room // one), layers * model.num_experts), layers, pooled=given.get("pooled", False)
    )


def _spread(total: int, layers: int, *, pooled: bool) -> NDArray[np.int64]:
    """Slots of equal layers; a pool counts those that are left over too."""
    slots = np.full(layers, total // layers, np.int64)
    slots[: total % layers] += pooled
    return slots


def _uncached(case: Case, demand: Demand, held: int | None, seed: int) -> float:
    """Every expert of a token is copied for each token; or all of a layer that the device has no room for.

    ``held``: experts a layer that the memory of the device has room for, filled with whole layers.
    """
    costs = case.costs()
    num = 0 if held is None else case.model.num_experts - held
    base, _ = run(
        demand,
        costs,
        offload_of(np.full(demand.num_layers, case.model.num_experts), cache="frequency_static"),
        seed,
    )
    copies = demand.num_layers * (num or case.model.top_k)
    return 1 / (base + copies * float(costs.copy.seconds))


def _streamed(case: Case, given: Data, module_s: float) -> float:
    """All weights that do not stay on the device cross the link for every token, layer by layer.

    ``kv_tokens``: what vLLM keeps room for beside the weights, one sequence of the model's length.
    """
    total = weight_bytes(case.model, case.dtypes)
    link = case.node.host.pcie
    assert link is not None
    rate = link.bandwidth_bytes_per_s * (
        case.rates.pageable_fraction if given["streamed"] == "pageable" else 1.0
    )
    kept = case.node.device.main_memory.capacity_bytes * (1 - RESERVED_FRACTION)
    kept -= given.get("kv_tokens", 0) * kv_bytes_per_token(case.model, "bf16")
    moved = max(0.0, 1 - kept / total)
    host = case.work.pass_s + case.model.num_layers * case.work.layer_s
    # hooks move module by module: three matrices an expert
    modules = 3 * len(case.model.moe_layers) * case.model.num_experts
    return float(1 / (moved * (total / rate + modules * module_s) + host))


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
    demand = _request(given, model, seed)
    policies = {"frequency": "frequency_static", "dynamic": "prompt_static"}
    found = []
    for way in ("random", "uniform", "front", "frequency", "dynamic"):
        progress(f"{given['model']}, experts chosen {way}")
        cache = policies.get(way, "random_static")
        for percent, published in zip(given["percent"], given[way], strict=True):
            slots = _placed(way, percent / 100, demand, seed)
            seconds, _ = run(demand, costs, offload_of(slots, cache=cache, executor="cpu"), seed)
            name = f"{given['model']}, {percent} % of experts on the GPUs, {way}"
            found.append(Claim(name, given["source"], "tokens_per_s", published, 1 / seconds, TOLERANCE))
    return found


def _request(given: Data, model: ModelSpec, seed: int) -> Demand:
    """Decode of one request after its prompt, and recorded traffic of others."""
    shape = (len(model.moe_layers), model.num_experts, model.top_k)
    length = given["context"] + WARM_PASSES + PASSES
    *others, own = requests_like(given["like"], shape, length, PROFILED_REQUESTS + 1, seed)
    traffic = np.sum([other.counts() for other in others], axis=0)
    decode = demand_of(own.window(given["context"], length), prior_counts=traffic)
    return replace(decode, prompt_counts=own.window(0, given["context"]).counts())


def _placed(way: str, share: float, demand: Demand, seed: int) -> NDArray[np.int64]:
    """Slots of each layer: as many of each where the placement follows a prompt."""
    layers, experts = demand.num_layers, demand.num_experts
    total = round(share * layers * experts)
    if way == "front":
        return np.clip(total - np.arange(layers) * experts, 0, experts).astype(np.int64)
    if way == "random":
        drawn = rng_for(seed, "validate/shares").permutation(layers * experts)[:total] // experts
        return np.bincount(drawn, minlength=layers).astype(np.int64)
    if way == "frequency" and demand.prior_counts is not None:
        best = np.argsort(-demand.prior_counts.ravel(), kind="stable")[:total] // experts
        return np.bincount(best, minlength=layers).astype(np.int64)
    return np.full(layers, round(share * experts), np.int64)
