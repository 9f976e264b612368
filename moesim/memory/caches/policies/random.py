"""A random victim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.memory.caches.policies.base import Dynamic
from moesim.memory.caches.ranking import Ids, Ranking, Rows, Worth, cache_policies
from moesim.memory.demand import Demand


class _Drawn(Ranking):
    def __init__(self, demand: Demand, rng: np.random.Generator) -> None:
        super().__init__(demand)
        self.rng = rng

    def worth(self, rows: Rows, ids: Ids) -> Worth:  # noqa: ARG002
        return self.rng.random(ids.shape)


@cache_policies.register("random")
@dataclass(frozen=True)
class Random(Dynamic):
    """Evict any expert that the pass does not need."""

    bypasses: ClassVar[bool] = False

    def ranking(self, demand: Demand, rng: np.random.Generator) -> Ranking:
        """Fresh numbers at every eviction."""
        return _Drawn(demand, rng)
