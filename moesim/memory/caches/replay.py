"""A demand replayed through a cache, all layers at once: hit rates without any clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import rng_for
from moesim.memory.caches.cache import ExpertCache
from moesim.memory.caches.ranking import CachePolicy
from moesim.memory.demand import Demand


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """Look-ups of a replay.

    Attributes
    ----------
    hits, lookups : ndarray of int64, ``(rows,)``
        By row of the cache. [experts]
    """

    hits: NDArray[np.int64]
    lookups: NDArray[np.int64]

    @property
    def hit_fraction(self) -> float:
        """Hits over look-ups, all rows together. [-]"""
        return float(self.hits.sum() / max(1, int(self.lookups.sum())))


def replay(
    demand: Demand,
    policy: CachePolicy,
    slots: int | NDArray[np.int64],
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Replayed:
    """Serve every pass of a demand in order.

    Parameters
    ----------
    slots : int or ndarray of int64, ``(rows,)``
        Slots of each row. [experts]
    progress : callable, optional
        Told passes done and in all, now and then.
    """
    rows = demand.num_layers
    cache = ExpertCache(
        policy, demand, np.broadcast_to(np.asarray(slots, np.int64), (rows,)), rng_for(seed, "memory/cache")
    )
    hits = np.zeros(rows, np.int64)
    weights = demand.weights
    for at in range(demand.num_passes):
        if demand.new_sequence[at]:
            cache.ranking.begin_sequence()
        present = cache.serve(cache.all_rows, demand.ids[at], at, None if weights is None else weights[at])
        hits += present.sum(axis=1)
        if progress is not None and at % 1000 == 0:
            progress(at, demand.num_passes)
    return Replayed(hits, (demand.ids < demand.num_experts).sum(axis=(0, 2)).astype(np.int64))
