"""What to fetch before it is asked for: registered policies, one file each."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.memory.caches import ExpertCache
from moesim.memory.demand import Demand
from moesim.registry import Registry


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What a prefetcher may look at when the gate of a layer has spoken.

    Attributes
    ----------
    demand : Demand
        The truth, one row a layer; predictors degrade it, only an oracle uses it as it is.
    at, layer : int
        Pass and MoE layer whose gate is known.
    cache : ExpertCache
        What the device holds.
    pooled : bool
        The cache is one row for all layers.
    staged : container of (row, expert)
        What lies in the buffer beside the cache, as the cache numbers it.
    """

    demand: Demand
    at: int
    layer: int
    cache: ExpertCache
    pooled: bool
    staged: Container[tuple[int, int]] = ()

    def needed(self, layer: int) -> NDArray[np.int32]:
        """Experts that this pass will need in ``layer``."""
        ids: NDArray[np.int32] = self.demand.ids[self.at, layer]
        return np.asarray(ids[ids < self.demand.num_experts], np.int32)

    def missing(self, layer: int, experts: NDArray[np.int32]) -> NDArray[np.int32]:
        """Those of ``experts`` that neither the cache nor the buffer holds."""
        row, offset = (0, layer * self.demand.num_experts) if self.pooled else (layer, 0)
        away = experts[~self.cache.holds(row, experts + offset)]
        if self.staged:
            away = away[[(row, int(expert)) not in self.staged for expert in away + offset]]
        return np.asarray(away, np.int32)

    def fetch(self, layer: int, guess: NDArray[np.int32]) -> Fetch:
        """What of a guess has to be fetched; none of the guess may be evicted for it."""
        return Fetch(layer, self.missing(layer, guess), guess)


@dataclass(frozen=True, slots=True, eq=False)
class Fetch:
    """Experts to fetch for a layer.

    Attributes
    ----------
    layer : int
        MoE layer that they are for.
    experts : ndarray of int32
        In the order of fetching.
    keep : ndarray of int32
        Experts of the layer that must not go for them.
    """

    layer: int
    experts: NDArray[np.int32]
    keep: NDArray[np.int32]


Wanted = Sequence[Fetch]
"""What to fetch, in that order."""


class Predictor(Protocol):
    """State of a prefetcher during a run."""

    def wanted(self, view: View) -> Wanted:
        """What to fetch, now that the gate of ``view.layer`` is known."""
        ...


class Prefetcher(Protocol):
    """A registered policy; its dataclass fields are its parameters."""

    @property
    def pass_cost_s(self) -> float:
        """Time on the device before every pass. [s]"""
        ...

    def predictor(self, demand: Demand, rng: np.random.Generator) -> Predictor:
        """Fresh state for a demand."""
        ...


prefetchers: Registry[Prefetcher] = Registry("prefetch", "moesim.offload.prefetchers")
