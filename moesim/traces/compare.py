"""How alike two traces behave, in the numbers that a simulation depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moesim.traces.routing import RoutingTrace
from moesim.traces.statistics import (
    TOUCH_BATCHES,
    gini_fraction,
    lru_hit_fraction,
    mutual_information_nats,
    rank_imbalance_ratio,
    repeat_fraction,
    touched_experts,
)

IMBALANCE_BATCH = 64
"""Tokens of the batches whose imbalance is compared."""
IMBALANCE_RANKS = 8
LRU_TOKENS = 8000
NUM_BATCHES = 200


@dataclass(frozen=True, slots=True)
class Bar:
    """How close a stand-in has to come.

    Attributes
    ----------
    limit : float
        Largest error. [-]
    absolute : bool
        The error is a difference instead of a ratio less one.
    """

    limit: float
    absolute: bool = False

    def error(self, reference: float, other: float) -> float:
        """Signed error of ``other``. [-]"""
        if self.absolute:
            return other - reference
        return other / reference - 1.0 if reference else 0.0 if other == reference else float("inf")


BARS: dict[str, Bar] = {
    **{f"touched_experts_{size}": Bar(0.05) for size in TOUCH_BATCHES},
    "batch_imbalance_ratio": Bar(0.05),
    "repeat_fraction": Bar(0.10),
    "mutual_information_nats": Bar(0.15),
    "lru_hit_fraction_2k": Bar(0.03, absolute=True),
    "lru_hit_fraction_4k": Bar(0.03, absolute=True),
}
"""What is compared, and how close a generator should come to a recording it was not fitted to."""


def behaviour(trace: RoutingTrace, rng: np.random.Generator) -> dict[str, float]:
    """Means over layers of everything in :data:`BARS`, and the Gini coefficient of the load.

    Ranks are the most up to :data:`IMBALANCE_RANKS` that divide the experts.
    """
    touched = touched_experts(trace, TOUCH_BATCHES, rng, num_batches=NUM_BATCHES).mean(axis=1)
    ranks = max(g for g in range(1, IMBALANCE_RANKS + 1) if trace.num_experts % g == 0)
    batches = trace.batches(IMBALANCE_BATCH, NUM_BATCHES, rng)
    sizes = [min(m * trace.top_k, trace.num_experts) for m in (2, 4)]
    hits = lru_hit_fraction(trace.expert_ids[:LRU_TOKENS], trace.num_experts, sizes).mean(axis=1)
    pairs = trace.transitions()
    return {
        **{f"touched_experts_{size}": float(v) for size, v in zip(TOUCH_BATCHES, touched, strict=True)},
        "batch_imbalance_ratio": float(rank_imbalance_ratio(batches, ranks).mean()),
        "repeat_fraction": float(repeat_fraction(trace).mean()),
        "mutual_information_nats": float(mutual_information_nats(pairs).mean()) if len(pairs) else 0.0,
        "lru_hit_fraction_2k": float(hits[0]),
        "lru_hit_fraction_4k": float(hits[1]),
        "gini_fraction": float(gini_fraction(trace.counts()).mean()),
    }


def errors(reference: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Signed error of each compared number, relative, or a difference for hit rates."""
    return {name: bar.error(reference[name], other[name]) for name, bar in BARS.items()}


def missed(found: Mapping[str, float]) -> list[str]:
    """Names of the errors that are larger than their bar."""
    return [name for name, error in found.items() if abs(error) > BARS[name].limit]
