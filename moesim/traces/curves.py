"""Curves of a trace for pictures: plain numbers, means over layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moesim.traces.fit_matched import LAGS, lag_repetition
from moesim.traces.routing import RoutingTrace, count_experts
from moesim.traces.shifts import batch_imbalance_ratio, cosine_fraction, domain_cosine_fraction
from moesim.traces.statistics import TOUCH_BATCHES, Floats, lru_hit_fraction, touched_experts

IMBALANCE_BATCHES = (8, 16, 32, 64, 128, 256, 512)
LRU_TOKENS = 4096
NUM_RANKS = 8
DRIFT_WINDOW = 256
"""Tokens of a window whose load is compared with later ones."""

Curve = dict[str, list[float]]


def curves(trace: RoutingTrace, rng: np.random.Generator) -> dict[str, Curve]:
    """Points ``{'x': .., 'y': ..}`` of every picture of a trace, by picture.

    ``load``: load over mean by rank of the expert; ``touched``: distinct experts by batch size;
    ``imbalance``: largest over mean load of up to 8 ranks by batch size; ``repetition``: share of
    experts repeated by distance in tokens; ``caching``: LRU hit rate by cache size over top-k;
    ``drift``: cosine of the loads of two windows of one domain by their distance in tokens.
    """
    counts = trace.counts().astype(np.float64)
    ordered = -np.sort(-counts, axis=1)
    load = (ordered / ordered.mean(axis=1, keepdims=True)).mean(axis=0)
    ranks = max(g for g in range(1, NUM_RANKS + 1) if trace.num_experts % g == 0)
    ratios = [r for r in (1, 1.5, 2, 3, 4, 6, 8) if r * trace.top_k <= trace.num_experts]
    sizes = [round(r * trace.top_k) for r in ratios]
    hits = lru_hit_fraction(trace.expert_ids[:LRU_TOKENS], trace.num_experts, sizes).mean(axis=1)
    touched = touched_experts(trace, TOUCH_BATCHES, rng).mean(axis=1)
    imbalance = batch_imbalance_ratio(trace, ranks, IMBALANCE_BATCHES, rng).mean(axis=1)
    return {
        "load": _curve(range(1, trace.num_experts + 1), load),
        "touched": _curve(TOUCH_BATCHES, touched),
        "imbalance": _curve(IMBALANCE_BATCHES, imbalance),
        "repetition": _curve(LAGS, lag_repetition(trace, LAGS)),
        "caching": _curve(ratios, hits),
        "drift": _drift(trace),
    }


def domain_distance(trace: RoutingTrace) -> dict[str, Any]:
    """Names of the domains of a trace and ``1 - cosine`` of the loads of every two of them."""
    distance = 1.0 - domain_cosine_fraction(trace)
    return {"names": list(trace.info.domains), "distance": np.round(distance, 6).tolist()}


def _drift(trace: RoutingTrace) -> Curve:
    """Mean cosine of loads of windows of one domain that lie 1, 2, 4 ... of its windows apart.

    The tokens of a domain are taken as one stream, so that how a trace mixes domains does not count.
    """
    found: dict[int, list[Floats]] = {}
    for domain in range(len(trace.info.domains)):
        rows = np.flatnonzero(trace.domain_index == domain)
        count = rows.size // DRIFT_WINDOW
        loads = np.zeros((count, trace.num_layers, trace.num_experts), np.int64)
        for index in range(count):
            window = trace.expert_ids[rows[index * DRIFT_WINDOW : (index + 1) * DRIFT_WINDOW]]
            loads[index] = count_experts(window, trace.num_experts)
        for step in (2**i for i in range(count.bit_length()) if 2**i < count):
            cosines = cosine_fraction(loads[:-step], loads[step:]).mean(axis=1)
            found.setdefault(DRIFT_WINDOW * step, []).append(cosines)
    apart = sorted(found)
    return _curve(apart, np.array([np.concatenate(found[step]).mean() for step in apart]))


def _curve(x: Sequence[float], y: Floats) -> Curve:
    return {"x": [float(v) for v in x], "y": [float(v) for v in y]}
