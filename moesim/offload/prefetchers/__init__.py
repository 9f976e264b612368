"""What to fetch before it is asked for: registered policies, one file each."""

from __future__ import annotations

from collections.abc import Sequence
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
    """

    demand: Demand
    at: int
    layer: int
    cache: ExpertCache
    pooled: bool

    def needed(self, layer: int) -> NDArray[np.int32]:
        """Experts that this pass will need in ``layer``."""
        ids: NDArray[np.int32] = self.demand.ids[self.at, layer]
        return np.asarray(ids[ids < self.demand.num_experts], np.int32)

    def missing(self, layer: int, experts: NDArray[np.int32]) -> NDArray[np.int32]:
        """Those of ``experts`` that the cache does not hold."""
        row, offset = (0, layer * self.demand.num_experts) if self.pooled else (layer, 0)
        return np.asarray(experts[~self.cache.holds(row, experts + offset)], np.int32)


Wanted = Sequence[tuple[int, NDArray[np.int32]]]
"""Layers and the experts to fetch for each, in the order of fetching."""


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
