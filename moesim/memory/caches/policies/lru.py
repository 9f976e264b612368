"""Least recently used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.memory.caches.policies.base import Dynamic
from moesim.memory.caches.ranking import Ranking, cache_policies
from moesim.memory.demand import Demand


@cache_policies.register("lru")
@dataclass(frozen=True)
class Lru(Dynamic):
    """Evict the expert that was used longest ago."""

    bypasses: ClassVar[bool] = False

    def ranking(self, demand: Demand, rng: np.random.Generator) -> Ranking:  # noqa: ARG002
        """Time of last use."""
        return Ranking(demand)
