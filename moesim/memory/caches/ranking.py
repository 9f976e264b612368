"""What a cache policy is: a ranking of experts by what they are worth keeping."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.memory.demand import Demand
from moesim.registry import Registry

Rows = NDArray[np.int64]
Ids = NDArray[np.int32]
Worth = NDArray[np.float64]

AGE = 2.0**-32
"""Weight of the time of last use where it only breaks ties between whole numbers below 2**20."""


class Ranking:
    """State of a policy over all rows of a cache; on its own it ranks by the time of last use.

    Parameters
    ----------
    demand : Demand
        Everything that will be asked for. A policy that could not know the future looks only at its
        shape and at ``prior_counts``.
    """

    def __init__(self, demand: Demand) -> None:
        self.last_use = np.zeros((demand.num_layers, demand.num_experts + 1))
        self.clock = 0.0

    def begin_sequence(self) -> None:
        """A new request starts."""

    def touch(self, rows: Rows, ids: Ids, at: int, weights: NDArray[np.float32] | None) -> None:
        """Pass ``at`` uses experts ``ids`` ``(rows, places)`` of rows ``rows`` ``(rows, 1)``."""
        places = ids.shape[1]
        self.clock += places
        self.last_use[rows, ids] = self.clock + np.arange(places)

    def worth(self, rows: Rows, ids: Ids) -> Worth:
        """What keeping ``ids`` of ``rows`` is worth, same shape; the least goes first."""
        return self.last_use[rows, ids]

    def evicted(self, rows: Rows, ids: Ids) -> None:
        """Experts ``ids`` left the cache; flat arrays of equal length."""

    def inserted(self, rows: Rows, ids: Ids) -> None:
        """Experts ``ids`` entered the cache; flat arrays of equal length."""


class CachePolicy(Protocol):
    """A registered policy; its dataclass fields are its parameters.

    ``bypasses``: a missing expert need not enter the cache (it is computed from a transfer buffer or
    elsewhere), so it enters only where it is worth more than what it replaces.
    """

    @property
    def bypasses(self) -> bool:
        """Whether a missing expert may stay outside."""
        ...

    def ranking(self, demand: Demand, rng: np.random.Generator) -> Ranking:
        """Fresh state for a demand."""
        ...

    def initial(self, demand: Demand, slots: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """What the cache holds at the start, ``(rows, experts)``; None for nothing."""
        ...


cache_policies: Registry[CachePolicy] = Registry("cache", "moesim.memory.caches.policies")
