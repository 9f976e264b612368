"""Published local routing consistency of 20 models beside that of generated routing.

Every model gets its own shape and published skew; everything else is that of one recording
(:data:`LIKE`). First without knowing its consistency: do the models come out in the published order?
Then with the one number that is published of it: is it reached, and how do caches do?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from moesim.evidence import rng_for
from moesim.files import find
from moesim.traces.consistency import trace_of, with_consistency, with_skew
from moesim.traces.locality import (
    cache_hit_fraction,
    segment_cache_hit_fraction,
    segment_routing_performance,
)
from moesim.traces.matched import MatchedParameters, read_parameters
from moesim.traces.routing import RoutingTrace
from moesim.traces.statistics import lru_hit_fraction
from moesim.validate.claims import Claim, Progress, published

LIKE = "deepseek_v2_lite"
"""Recording whose affinity, repetition and drift every model gets."""
LAYERS = 4
TOKENS = 4096
CACHE_TOKENS = 1000
ORDER_TOLERANCE = 0.1
SRP_TOLERANCE = 2.0
HIT_TOLERANCE = 5.0


def claims(seed: int = 0, progress: Progress | None = None) -> list[Claim]:
    """Order of the models from skew alone; their SRP where it is asked for; hit rates of caches."""
    data = published("local_routing").data
    base = base_parameters()
    alone, given, caches = [], [], []
    segment = data["segment_tokens"]
    for row in data["models"]:
        if progress is not None:
            progress(row["name"])
        model = skewed(base, row, data["request_tokens"], seed)
        alone.append(100 * segment_routing_performance(trace_of(model, TOKENS, seed), segment)[1])
        asked = with_consistency(model, row["srp"] / 100, TOKENS, seed, segment_tokens=segment)
        trace = trace_of(asked, TOKENS, seed + 1)
        given.append(100 * segment_routing_performance(trace, segment)[1])
        caches.append(_relative_hits(trace, segment, [r["cache_ratio"] for r in data["hit_rates"]]))
    source = data["source"]
    wanted = [row["srp"] for row in data["models"]]
    guessed = "shape and skew as published, everything else of one recording"
    told = "and its SRP(16) too"
    found = [
        Claim(name, source, unit, 1.0, value, ORDER_TOLERANCE, note=note)
        for name, unit, value, note in (
            ("rank correlation, skew given", "", _rank_correlation(wanted, alone), guessed),
            ("pairs in order, skew given", "fraction", _in_order(wanted, alone), guessed),
            ("pairs in order, SRP given", "fraction", _in_order(wanted, given), told),
        )
    ]
    found += [
        Claim(
            f"SRP(16) of {row['name']}",
            source,
            "%",
            row["srp"],
            value,
            SRP_TOLERANCE,
            absolute=True,
            note=f"from skew alone {guess:.2f}",
        )
        for row, value, guess in zip(data["models"], given, alone, strict=True)
    ]
    means = np.mean(caches, axis=0)
    for index, row in enumerate(data["hit_rates"]):
        for policy, value in zip(("lru", "lfu", "sch"), means[:, index], strict=True):
            name = f"{policy.upper()} over optimal, cache {row['cache_ratio']}k"
            said = (
                "ours looks up a token's choices together: its k experts fill the cache"
                if row["cache_ratio"] == 1
                else ""
            )
            found.append(
                Claim(name, source, "%", row[policy], float(value), HIT_TOLERANCE, absolute=True, note=said)
            )
    return found


def base_parameters() -> MatchedParameters:
    """Parameters of the recording that every model is made from."""
    return read_parameters(find(LIKE, "traces", field="like", suffixes=(".json",)))


def skewed(
    base: MatchedParameters, row: Mapping[str, Any], request_tokens: int, seed: int
) -> MatchedParameters:
    """Parameters of a published model: its shape and skew."""
    shape = (LAYERS, row["experts"], row["top_k"])
    rng = rng_for(seed, f"validate/{row['name']}")
    return with_skew(base, shape, row["deviation"] / 100, rng, request_tokens=request_tokens)


def _relative_hits(trace: RoutingTrace, segment: int, ratios: Sequence[float]) -> list[list[float]]:
    """Hit rates over Belady's by policy (LRU, LFU, SCH) and cache size, in percent."""
    part = trace.window(0, CACHE_TOKENS)
    ids, experts = part.expert_ids, part.num_experts
    sizes = [round(ratio * part.top_k) for ratio in ratios]
    best = cache_hit_fraction(ids, experts, sizes, "belady").mean(axis=1)
    tried = (
        lru_hit_fraction(ids, experts, sizes),
        cache_hit_fraction(ids, experts, sizes, "lfu"),
        segment_cache_hit_fraction(part, segment, ratios),
    )
    return [(100 * hits.mean(axis=1) / best).tolist() for hits in tried]


def _rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's, without ties."""
    ranks = np.array([np.argsort(np.argsort(values)) for values in (first, second)], np.float64)
    apart = ranks[0] - ranks[1]
    return float(1 - 6 * (apart @ apart) / (apart.size * (apart.size**2 - 1)))


def _in_order(first: Sequence[float], second: Sequence[float]) -> float:
    """Share of pairs that two lists order alike."""
    pairs = list(combinations(range(len(first)), 2))
    return sum((first[i] - first[j]) * (second[i] - second[j]) > 0 for i, j in pairs) / len(pairs)
