"""Least frequently used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from moesim.memory.caches.policies.base import Dynamic
from moesim.memory.caches.ranking import AGE, Ids, Ranking, Rows, Worth, cache_policies
from moesim.memory.demand import Demand


class _Counted(Ranking):
    def __init__(self, demand: Demand, *, by_sequence: bool) -> None:
        super().__init__(demand)
        self.uses = np.zeros_like(self.last_use)
        self.by_sequence = by_sequence

    def begin_sequence(self) -> None:
        if self.by_sequence:
            self.uses[:] = 0

    def touch(self, rows: Rows, ids: Ids, at: int, weights: NDArray[np.float32] | None) -> None:
        super().touch(rows, ids, at, weights)
        self.uses[rows, ids] += 1

    def worth(self, rows: Rows, ids: Ids) -> Worth:
        return self.uses[rows, ids] + AGE * self.last_use[rows, ids]


@cache_policies.register("lfu")
@dataclass(frozen=True)
class Lfu(Dynamic):
    """Evict the expert used in the fewest passes; among equals the one used longest ago.

    ``scope``: count over the whole run (``model``) or since the request began (``sequence``).
    """

    scope: Literal["model", "sequence"] = "model"
    bypasses: ClassVar[bool] = False

    def ranking(self, demand: Demand, rng: np.random.Generator) -> Ranking:  # noqa: ARG002
        """Counts of uses."""
        return _Counted(demand, by_sequence=self.scope == "sequence")
