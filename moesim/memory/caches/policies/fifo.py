"""First in, first out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.memory.caches.policies.base import Dynamic
from moesim.memory.caches.ranking import Ids, Ranking, Rows, Worth, cache_policies
from moesim.memory.demand import Demand


class _Arrival(Ranking):
    """Ranked by the time of entering; use changes nothing."""

    def __init__(self, demand: Demand) -> None:
        super().__init__(demand)
        self.entered = np.zeros_like(self.last_use)
        self.arrivals = 0

    def inserted(self, rows: Rows, ids: Ids) -> None:
        self.entered[rows, ids] = self.arrivals + 1 + np.arange(ids.size)
        self.arrivals += ids.size

    def worth(self, rows: Rows, ids: Ids) -> Worth:
        return self.entered[rows, ids]


@cache_policies.register("fifo")
@dataclass(frozen=True)
class Fifo(Dynamic):
    """Evict what has been in the cache longest; pooled over layers, a ring of sections (SE-MoE)."""

    bypasses: ClassVar[bool] = False

    def ranking(self, demand: Demand, rng: np.random.Generator) -> Ranking:  # noqa: ARG002
        """Time of entering."""
        return _Arrival(demand)
