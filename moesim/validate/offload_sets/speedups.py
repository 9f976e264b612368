"""Ratios of two systems: each side is a run of the driver, or of the near-memory formulas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from moesim.evidence import rng_for
from moesim.hardware.load import load_device
from moesim.hardware.schema import Node
from moesim.memory.demand import Demand
from moesim.model import Dtypes
from moesim.model.layer_ops import forward_flops_per_token
from moesim.model.ops import Segment
from moesim.model.parameters import kv_bytes_per_token
from moesim.offload import Costs, Offload, OffloadRun
from moesim.offload.host import HostWork
from moesim.offload.machine import costs_of
from moesim.offload.throughput import overlapped_tokens_per_s, separate_tokens_per_s
from moesim.validate.claims import Claim, Progress
from moesim.validate.offload_sets.cases import (
    PASSES,
    case_of,
    demand_for,
    model_of,
    node_of,
    offload_of,
    run,
)
from moesim.validate.offload_sets.duplex import duplex_claims
from moesim.validate.offload_sets.flow import flow_claims, scheduling_claims
from moesim.validate.offload_sets.pruning import pruning_claims

Data = Mapping[str, Any]
LOW_BITS = 0.25
"""An int4 copy over an fp16 one. [-]"""


def speedup_claims(data: Data, seed: int, progress: Progress) -> list[Claim]:
    """All of them."""
    found: list[Claim] = []
    for part in (
        _hybrimoe,
        _hobbit,
        _lens_rates,
        flow_claims,
        scheduling_claims,
        duplex_claims,
        _fate,
        _modes,
        _numa,
        pruning_claims,
    ):
        progress(part.__name__.strip("_").removesuffix("_claims"))
        found += part(data, seed)
    return found


def _hybrimoe(data: Data, seed: int) -> list[Claim]:
    """Ablation: the CPU's rate is set by the time of the baseline, which is not compared."""
    given = data["hybrimoe"]
    model = model_of(given["model"])
    case = case_of(given["machine"], data["engines"]["hybrimoe"], model, Dtypes("int4", "int4"), 256)
    ways = _hybrimoe_ways(len(model.moe_layers), model.num_experts, given["cached"])
    found = []
    for phase, tokens, passes in (("prefill", given["prompt"], 1), ("decode", 1, PASSES)):
        published = given[phase]
        demand = demand_for(model, "deepseek_v2_lite", seed, tokens=tokens, passes=passes)
        # at first the caches hold experts by their number
        unknown = np.zeros((demand.num_layers, demand.num_experts), np.int64)
        demand = replace(demand, prior_counts=unknown)
        plain = case.costs(tokens, prefill=tokens > 1)
        costs = _paced(plain, demand, ways["baseline"], published["baseline"], seed)
        seconds = {name: run(demand, costs, ways[name], seed)[0] for name in published}
        note = f"baseline set to {published['baseline']} s" + (
            f"; {tokens} tokens assumed, link and CPU share them without loss" if tokens > 1 else " a token"
        )
        found += [
            Claim(
                f"HybriMoE {phase}, {name} over kTransformers",
                given["source"],
                "ratio",
                published["baseline"] / published[name],
                seconds["baseline"] / seconds[name],
                0.2,
                note=note,
            )
            for name in published
            if name != "baseline"
        ]
    return found


def _hybrimoe_ways(layers: int, experts: int, cached: float) -> dict[str, Offload]:
    """As its rules and code have it: kTransformers keeps whole first layers on the device.

    Scheduling and prefetch alone leave that placement as it is, and a fetched expert only in a buffer of
    one layer; caching holds as many experts of every layer instead, at first by number.
    """
    whole = np.where(np.arange(layers) < round(cached * layers), experts, 0)
    even = np.full(layers, round(cached * experts), np.int64)
    ahead = {"accuracy": (0.9, 0.84, 0.8)}
    placed = {
        "baseline": offload_of(whole, cache="frequency_static", executor="cpu"),
        "scheduling": offload_of(whole, cache="frequency_static", executor="list_schedule"),
        "prefetch": offload_of(whole, cache="frequency_static", executor="cpu", prefetch="impact"),
    }
    cached_ways = {
        "cache": offload_of(even, cache="mrs", executor="cpu", prefetch="fill"),
        "all": offload_of(
            even, cache="mrs", executor="list_schedule", prefetch="fill", prefetch_params=ahead
        ),
    }
    ways = placed | {name: replace(way, filled=True) for name, way in cached_ways.items()}
    return {name: replace(way, buffer=experts) for name, way in ways.items()}


def _paced(costs: Costs, demand: Demand, baseline: Any, target_s: float, seed: int) -> Costs:
    """Costs whose CPU is so fast that ``baseline`` takes ``target_s``."""
    cpu = costs.cpu
    assert cpu is not None
    idle = replace(cpu, seconds=lambda n: np.zeros(n.size))
    without, _ = run(demand, replace(costs, cpu=idle), baseline, seed)
    with_cpu, _ = run(demand, costs, baseline, seed)
    factor = (target_s - without) / (with_cpu - without)
    times = cpu.seconds
    return replace(costs, cpu=replace(cpu, seconds=lambda n: factor * times(n)))


def _hobbit(data: Data, seed: int) -> list[Claim]:
    given, source = data["hobbit"], data["hobbit"]["source"]
    model = model_of("mixtral_8x7b")
    case = case_of(given["machine"], data["engines"]["llama"], model, Dtypes("fp16", "fp16"), 256)
    demand = demand_for(model, "deepseek_v2_lite", seed, passes=48)
    # top-2 weights: the larger evenly between a half and one
    larger = 0.5 + 0.5 * rng_for(seed, "validate/hobbit").random(demand.ids.shape[:2])
    weights = np.stack((larger, 1 - larger), axis=-1).astype(np.float32)
    demand = replace(demand, weights=weights)
    slots = np.full(demand.num_layers, 2, np.int64)
    costs = replace(case.costs(), low_precision_fraction=LOW_BITS)
    plain_s, plain = run(demand, costs, offload_of(slots), seed)
    mixed_s, mixed = run(demand, costs, offload_of(slots, executor="mixed_precision"), seed)
    share = plain.busy_ps["host to device"] / float(plain.pass_ends_ps[-1])
    tally = mixed.tally
    fates = {"high": tally.loads, "low": tally.low_loads, "skipped": tally.skipped}
    total = sum(fates.values())
    dynamic = given["dynamic_loading"]
    middle = (dynamic["low"] + dynamic["high"]) / 2
    found = [
        Claim("HOBBIT share of decode spent loading", source, "fraction", given["load_share"], share, 0.2),
        Claim(
            "HOBBIT dynamic loading",
            source,
            "ratio",
            middle,
            plain_s / mixed_s,
            0.2,
            note=f"published {dynamic['low']} to {dynamic['high']}",
        ),
    ]
    return found + [
        Claim(
            f"HOBBIT misses, {name}",
            source,
            "points",
            given["loads_percent"][name],
            100 * count / total,
            20.0,
            absolute=True,
            note="weights of two experts drawn evenly",
        )
        for name, count in fates.items()
    ]


def _lens_rates(data: Data, seed: int) -> list[Claim]:
    """Overlapped admission against whole batches, which use the published share of the host's memory."""
    del seed
    given, model = data["moe_lens_rates"], model_of("mixtral_8x7b")
    per_token = kv_bytes_per_token(model, "fp16")
    rate = given["flops_per_s"] / forward_flops_per_token(model, given["prompt"])
    pass_s = given["weight_bytes"] / given["link_bytes_per_s"]
    ratios = []
    for kv_bytes in given["kv_bytes"]:
        for generated in given["generated"]:
            common = {"generated": generated, "pass_s": pass_s, "device_tokens_per_s": rate}
            capacity = kv_bytes / per_token
            lens = overlapped_tokens_per_s(prompt=given["prompt"], kv_capacity_tokens=capacity, **common)
            used = capacity * _lightning_share(given, generated)
            lightning = separate_tokens_per_s(prompt=given["prompt"], kv_capacity_tokens=used, **common)
            ratios.append(lens / lightning)
    name = "MoE-Lens over MoE-Lightning, MTBench, mean"
    note = f"{len(ratios)} cells from {min(ratios):.1f} to {max(ratios):.1f}"
    # what the device computes while the weights of one pass cross the link, in a prefill of the whole batch
    batch = given["kv_bytes"][0] / per_token * _lightning_share(given, given["generated"][0])
    sequences = batch / (given["prompt"] + given["generated"][0])
    link = pass_s / (sequences * given["prompt"] / rate)
    return [
        Claim(name, given["source"], "ratio", given["mean"], float(np.mean(ratios)), 0.3, note=note),
        Claim(
            "MoE-Lightning's prefill, time that the link is busy",
            given["source"],
            "fraction",
            given["lightning_link_share"],
            link,
            0.3,
            note="follows from the share of memory that its batch uses",
        ),
    ]


def _lightning_share(given: Data, generated: int) -> float:
    """Share of the room for keys and values that its batch uses: the printed share counts the weights too."""
    memory = given["lightning_memory"]
    printed = {int(tokens): share for tokens, share in memory["fraction"].items()}
    used = memory["bytes"] * printed[min(generated, max(printed))] - given["weight_bytes"]
    return float(used / (memory["bytes"] - given["weight_bytes"]))


def _fate(data: Data, seed: int) -> list[Claim]:
    """Its own experts travel as int4; those of the others in 16 bits."""
    given = data["fate"]
    source, found = given["source"], []
    for phase, tokens, passes in (("prefill", given["prompt"], 1), ("decode", 1, PASSES)):
        times, done = _fate_times(data, given["model"], phase, tokens, passes, seed)
        over = given["over"][phase]
        note = "every expert of a prompt crosses the link, a layer ahead" if tokens > 1 else ""
        found += [
            Claim(
                f"Fate {phase} over {name.replace('_', ' ')}",
                source,
                "ratio",
                published,
                times[name] / times["own"],
                0.3,
                note=note,
            )
            for name, published in over.items()
        ]
    hits = 100 * done.tally.hits / done.tally.lookups
    found.append(Claim("Fate hit rate", source, "points", given["hits_percent"], hits, 5.0, absolute=True))
    rate = given["prefill_rate"]
    times, _ = _fate_times(data, rate["model"], "prefill", given["prompt"], 1, seed)
    name, ours = "Fate prefill of DeepSeekMoE-16B", given["prompt"] / times["own"]
    note = "DeepSeek-V2-Lite stands for it: 26 of its 27 expert layers, the same experts"
    return [*found, Claim(name, source, "tokens_per_s", rate["tokens_per_s"], ours, 0.3, note=note)]


def _fate_times(
    data: Data, name: str, phase: str, tokens: int, passes: int, seed: int
) -> tuple[dict[str, float], OffloadRun]:
    """Seconds of a pass of the three systems, and Fate's run."""
    given, model = data["fate"], model_of(name)
    case = case_of(given["machine"], data["engines"]["eager"], model, Dtypes("fp16", "fp16"), 256)
    layers, experts = len(model.moe_layers), model.num_experts
    demand = demand_for(model, "deepseek_v2_lite", seed, tokens=tokens, passes=passes)
    costs = case.costs(tokens, prefill=tokens > 1)
    small = replace(costs, copy=replace(costs.copy, seconds=float(costs.copy.seconds) * LOW_BITS))
    half, nothing = np.full(layers, experts // 2, np.int64), np.zeros(layers, np.int64)
    shallow = np.clip((np.linspace(1.5, 0.5, layers) * experts * 0.75).astype(np.int64), 0, experts)
    ahead = {"accuracy": (given["accuracy"][phase],), "extra": 2}
    prompt = tokens > 1
    ways = {
        # on demand, a prompt finds what it needs on the host every time
        "load_on_demand": replace(
            offload_of(nothing if prompt else np.full(layers, model.top_k)), synchronous=True
        ),
        "activation_path": offload_of(half, cache="lfu", prefetch="history"),
        # the cache serves decoding; a prompt fetches the union of its tokens' experts
        "own": replace(
            offload_of(
                nothing if prompt else shallow, cache="arc", prefetch="next_layer_gate", prefetch_params=ahead
            ),
            buffer=experts if prompt else 0,
        ),
    }
    runs = {key: run(demand, small if key == "own" else costs, way, seed) for key, way in ways.items()}
    return {key: seconds for key, (seconds, _) in runs.items()}, runs["own"][1]


def _numa(data: Data, seed: int) -> list[Claim]:
    """Experts cut over two sockets against interleaved pages: CPU and everything else of a token."""
    given = data["kt_numa"]
    model = model_of(given["model"])
    case = case_of(given["machine"], data["engines"]["kt"], model, Dtypes(), 512)
    # the paper's socket rate is a measured one
    case = replace(case, rates=case.rates.model_copy(update={"cpu_bandwidth_fraction": 1.0}))
    demand = demand_for(model, "deepseek_v2_lite", seed, passes=4)
    way = offload_of(np.zeros(demand.num_layers, np.int64), cache="frequency_static", executor="cpu")
    seconds = {
        numa: run(demand, replace(case, work=replace(case.work, numa=numa)).costs(), way, seed)[0]
        for numa in ("split", "interleaved")
    }
    name = "kTransformers, experts cut over sockets"
    ratio = seconds["interleaved"] / seconds["split"]
    return [Claim(name, given["source"], "ratio", given["over"], ratio, 0.2, note="published as the largest")]


def _modes(data: Data, seed: int) -> list[Claim]:
    """Skipped experts leave attention, router and launches as they are."""
    given = data["modes"]
    model = model_of(given["model"])
    node = node_of({"device": given["device"], "cpu": "xeon_8480c", "sockets": 1, "dram": 3e11, "pcie": 5e10})
    node = Node(**{**dict(node), "device": load_device(given["device"])})
    kept = 1 - given["skipped"]
    found = []
    for phase, tokens in (("prefill", given["prompt"]), ("decode", 1)):
        prefill = Segment.prefill(1.0, float(tokens))
        segment = prefill if phase == "prefill" else Segment.decode(1.0, float(given["prompt"]))
        costs = costs_of(model, Dtypes(), node, [segment], work=HostWork(), most_tokens=tokens)
        demand = demand_for(model, "deepseek_v2_lite", seed, tokens=tokens, passes=1 if tokens > 1 else 8)
        thinned = _skipping(demand, kept, seed)
        way = offload_of(np.full(demand.num_layers, model.num_experts), cache="frequency_static")
        ratio = run(demand, costs, way, seed)[0] / run(thinned, costs, way, seed)[0]
        note = f"{tokens} tokens assumed, whose 12 % still touch every expert" if tokens > 1 else ""
        name, published = f"MoDES {phase}", given["speedup"][phase]
        found.append(Claim(name, given["source"], "ratio", published, ratio, 0.3, note=note))
    return found


def _skipping(demand: Demand, kept: float, seed: int) -> Demand:
    """Each choice of a token stays with probability ``kept``; at least one expert a pass and layer."""
    tokens = rng_for(seed, "validate/modes").binomial(demand.tokens, kept).astype(np.int32)
    tokens[..., 0] = np.maximum(tokens[..., 0], 1)
    ids = np.where(tokens > 0, demand.ids, demand.num_experts).astype(np.int32)
    return replace(demand, tokens=tokens, ids=ids)
