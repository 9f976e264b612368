"""Curves of a trace for pictures: plain numbers, means over layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moesim.traces.fit_matched import LAGS, lag_repetition
from moesim.traces.routing import RoutingTrace
from moesim.traces.shifts import batch_imbalance_ratio
from moesim.traces.statistics import TOUCH_BATCHES, Floats, lru_hit_fraction, touched_experts

IMBALANCE_BATCHES = (8, 16, 32, 64, 128, 256, 512)
LRU_TOKENS = 4096
NUM_RANKS = 8

Curve = dict[str, list[float]]


def curves(trace: RoutingTrace, rng: np.random.Generator) -> dict[str, Curve]:
    """Points ``{'x': .., 'y': ..}`` of every picture of a trace, by picture.

    ``load``: load over mean by rank of the expert; ``touched``: distinct experts by batch size;
    ``imbalance``: largest over mean load of up to 8 ranks by batch size; ``repetition``: share of
    experts repeated by distance in tokens; ``caching``: LRU hit rate by cache size over top-k.
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
    }


def _curve(x: Sequence[float], y: Floats) -> Curve:
    return {"x": [float(v) for v in x], "y": [float(v) for v in y]}
