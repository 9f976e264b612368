"""Hit rates of published cache policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from moesim.evidence import rng_for
from moesim.memory.caches import CachePolicy, cache_policies, replay
from moesim.memory.demand import Demand, demand_of
from moesim.offload import batchers
from moesim.offload.batchers import distinct_experts
from moesim.traces.consistency import trace_of, with_consistency
from moesim.validate.claims import Claim, Progress, published
from moesim.validate.local_routing import CACHE_TOKENS, TOKENS, base_parameters, skewed
from moesim.validate.offload_sets.cases import demand_for, model_of

Data = Mapping[str, Any]
DRAWS = 20_000
HYBRID_PASSES = 256
BATCHED_POOLS = 256
AHEAD = 2
"""Ids that Read-ME's router names beforehand: those of the present and of the next token."""


def hit_claims(data: Data, seed: int, progress: Progress) -> list[Claim]:
    """Read-ME's table, HybriMoE's, and policies relative to the optimum."""
    return [
        *_read_me(data["read_me"], seed),
        *_read_me_batches(data["read_me_batching"], seed),
        *_hybrimoe(data["hybrimoe_hits"], seed),
        *_relative(data["relative_hits"], seed, progress),
    ]


def _read_me_batches(given: Data, seed: int) -> list[Claim]:
    """Distinct experts of a batch; even draws, one id a token."""
    rng = rng_for(seed, "validate/read_me/batches")
    waiting, experts = given["batch"] * given["pool"], given["experts"]
    found = []
    note = f"batches of {given['batch']}, two wait, cap of {given['cap']}: assumed; even draws"
    ids = rng.integers(experts, size=(BATCHED_POOLS, waiting))
    routes = ids[..., None, None] == np.arange(experts)
    for name, experts_used in given["distinct"].items():
        params = {"cap": given["cap"]} if name == "expert_cap" else {}
        batcher = batchers.build(name, params | {"pool": given["pool"]})
        ours = np.mean([distinct_experts(pool, batcher.batches(pool, given["batch"])) for pool in routes])
        title = f"Read-ME distinct experts of a batch, {name}"
        found.append(Claim(title, given["source"], "experts", experts_used, float(ours), 0.2, note=note))
    return found


def _hybrimoe(given: Data, seed: int) -> list[Claim]:
    """Tokens of generated traffic in a cache of each layer, as after a long request."""
    found = []
    for row in given["rows"]:
        model = model_of(row["model"])
        demand = demand_for(model, row["like"], seed, passes=HYBRID_PASSES)
        slots = round(row["cached"] * model.num_experts)
        for name in ("mrs", "lru"):
            ours = 100 * replay(demand, cache_policies.build(name), slots, seed=seed).hit_fraction
            title = f"HybriMoE hits of {name}, {row['model']}, {row['cached']:.0%} cached"
            note = f"generated routing like {row['like']}"
            found.append(
                Claim(title, given["source"], "points", row[name], ours, 5.0, absolute=True, note=note)
            )
    return found


def _read_me(given: Data, seed: int) -> list[Claim]:
    """One id a token of the batches that its scheduler forms; the published rates are those of even draws."""
    rng = rng_for(seed, "validate/read_me")
    ids = rng.integers(given["experts"], size=(DRAWS, 1, 1)).astype(np.int32)
    demand = Demand(given["experts"], ids, np.ones_like(ids), np.zeros(DRAWS, np.bool_))
    policies = {
        "random": cache_policies.build("random"),
        "lru": cache_policies.build("lru"),
        "belady": cache_policies.build("sch", {"segment": AHEAD}),
    }
    even = f"{given['experts']} experts, independent even draws"
    notes = {"belady": f"{even}; it knows {AHEAD} ids, not the whole future"}
    return [
        Claim(
            f"Read-ME hits of {name}, {row['slots']} slots",
            given["source"],
            "points",
            row[name],
            100 * replay(demand, policy, row["slots"], seed=seed).hit_fraction,
            3.0,
            absolute=True,
            note=notes.get(name, even),
        )
        for row in given["rows"]
        for name, policy in policies.items()
    ]


def _relative(given: Data, seed: int, progress: Progress) -> list[Claim]:
    """Mean over the published models; the choices of a token are looked up and loaded one by one."""
    hits: dict[tuple[int, str], list[float]] = {}
    models = published("local_routing").data
    base = base_parameters()
    for model in models["models"]:
        progress(f"hit rates, {model['name']}")
        asked = with_consistency(
            skewed(base, model, models["request_tokens"], seed),
            model["srp"] / 100,
            TOKENS,
            seed,
            segment_tokens=models["segment_tokens"],
        )
        trace = trace_of(asked, TOKENS, seed + 1).window(0, CACHE_TOKENS)
        requests = _one_by_one(demand_of(trace), models["request_tokens"])
        parameters = {"sch": {"segment": given["segment"] * model["top_k"]}}
        for row in given["rows"]:
            slots = min(model["experts"], row["ratio"] * model["top_k"])
            counts = {
                name: _hits(requests, cache_policies.build(name, parameters.get(name, {})), slots, seed)
                for name in ("belady", "lru", "lfu", "sch")
            }
            for name in ("lru", "lfu", "sch"):
                hits.setdefault((row["ratio"], name), []).append(counts[name] / counts["belady"])
    return [
        Claim(
            f"{name.upper()} hits over the optimum's, cache of {row['ratio']} k",
            given["source"],
            "points",
            row[name],
            100 * float(np.mean(hits[row["ratio"], name])),
            5.0,
            absolute=True,
            note="20 models of the published skew and consistency; each request starts empty, as in its code",
        )
        for row in given["rows"]
        for name in ("lru", "lfu", "sch")
    ]


def _hits(requests: Sequence[Demand], policy: CachePolicy, slots: int, seed: int) -> int:
    """Hits of all requests, each from an empty cache."""
    return sum(int(replay(request, policy, slots, seed=seed).hits.sum()) for request in requests)


def _one_by_one(demand: Demand, request_tokens: int) -> list[Demand]:
    """Requests of equal length, every choice of a token a pass of its own."""
    passes, layers, places = demand.ids.shape
    ids = demand.ids.transpose(0, 2, 1).reshape(-1, layers, 1)
    size = request_tokens * places
    parts = [ids[start : start + size] for start in range(0, passes * places, size)]
    return [
        replace(
            demand,
            ids=part,
            tokens=np.ones_like(part),
            new_sequence=np.zeros(len(part), np.bool_),
            weights=None,
        )
        for part in parts
    ]
