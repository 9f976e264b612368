"""The optimum: evict what is needed again last."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.memory.caches.policies.base import most_used
from moesim.memory.caches.ranking import AGE, Ids, Ranking, Rows, Worth, cache_policies
from moesim.memory.demand import Demand


class _Foreseen(Ranking):
    def __init__(self, demand: Demand) -> None:
        super().__init__(demand)
        self.following = next_use(demand)
        self.next_use = _first_use(demand).astype(np.float64)

    def touch(self, rows: Rows, ids: Ids, at: int, weights: NDArray[np.float32] | None) -> None:
        super().touch(rows, ids, at, weights)
        self.next_use[rows, ids] = self.following[at, rows[:, 0]]

    def worth(self, rows: Rows, ids: Ids) -> Worth:
        return -self.next_use[rows, ids] + AGE * self.last_use[rows, ids]


def next_use(demand: Demand) -> NDArray[np.int32]:
    """Pass in which each expert of the demand is needed again, or the number of passes; shape of its ids."""
    passes, layers, _ = demand.ids.shape
    row = np.arange(layers)[:, None]
    found = np.empty(demand.ids.shape, np.int32)
    upcoming = np.full((layers, demand.num_experts + 1), passes, np.int32)
    for at in range(passes - 1, -1, -1):
        found[at] = upcoming[row, demand.ids[at]]
        upcoming[row, demand.ids[at]] = at
    return found


def _first_use(demand: Demand) -> NDArray[np.int64]:
    """Pass in which each expert is needed first, or the number of passes, ``(rows, experts + 1)``."""
    row = np.arange(demand.num_layers)[:, None]
    first = np.full((demand.num_layers, demand.num_experts + 1), demand.num_passes, np.int64)
    for at in range(demand.num_passes - 1, -1, -1):
        first[row, demand.ids[at]] = at
    return first


@cache_policies.register("belady")
@dataclass(frozen=True)
class Belady:
    """Knows the future; no policy that loads on demand has a higher hit rate.

    With ``bypass`` a missing expert need not enter the cache, with ``warm`` the cache starts with what
    is needed first: together the bound on policies that pin.
    """

    bypass: bool = False
    warm: bool = False

    @property
    def bypasses(self) -> bool:
        """As asked."""
        return self.bypass

    def ranking(self, demand: Demand, rng: np.random.Generator) -> Ranking:  # noqa: ARG002
        """Distance to the next use."""
        return _Foreseen(demand)

    def initial(self, demand: Demand, slots: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Nothing, or the experts needed first."""
        if not self.warm:
            return None
        return most_used(-_first_use(demand)[:, :-1], slots)
