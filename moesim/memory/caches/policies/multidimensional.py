"""Recency, frequency, high-precision use and layer distance weighed together (HOBBIT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from moesim.memory.caches.policies.base import Dynamic
from moesim.memory.caches.ranking import Ids, Ranking, Rows, Worth, cache_policies
from moesim.memory.demand import Demand

Weight = Annotated[float, Field(ge=0)]


class _Weighed(Ranking):
    def __init__(self, demand: Demand, policy: Multidimensional) -> None:
        super().__init__(demand)
        self.policy = policy
        self.uses = np.zeros_like(self.last_use)
        self.high_uses = np.zeros_like(self.last_use)
        self.passes = 0
        layers = demand.layers_per_row
        self.layers = layers
        self.layer_of = np.arange(demand.num_experts + 1) // max(1, demand.num_experts // layers)
        self.layer_now = 0

    def begin_sequence(self) -> None:
        self.uses[:] = 0
        self.high_uses[:] = 0
        self.passes = 0

    def touch(self, rows: Rows, ids: Ids, at: int, weights: NDArray[np.float32] | None) -> None:
        super().touch(rows, ids, at, weights)
        self.passes += 1
        self.uses[rows, ids] += 1
        share = np.full(ids.shape, 1.0 / ids.shape[1]) if weights is None else weights
        share = share / np.maximum(share.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        order = np.argsort(-share, axis=1, kind="stable")
        ranked = np.take_along_axis(share, order, axis=1)
        before = np.empty_like(ranked)
        np.put_along_axis(before, order, np.cumsum(ranked, axis=1) - ranked, axis=1)
        self.high_uses[rows, ids] += before <= self.policy.high_precision_share
        self.layer_now = at % self.layers

    def worth(self, rows: Rows, ids: Ids) -> Worth:
        p = self.policy
        passes = max(1, self.passes)
        ahead = (self.layer_of[ids] - self.layer_now) % self.layers
        return (
            p.recency * self.last_use[rows, ids] / max(1.0, self.clock)
            + p.frequency * self.uses[rows, ids] / passes
            + p.high_precision * self.high_uses[rows, ids] / passes
            + p.nearness * (1 - ahead / self.layers)
        )


@cache_policies.register("multidimensional")
@dataclass(frozen=True)
class Multidimensional(Dynamic):
    """Weighted sum of time of use, uses in the sequence, uses at high precision and nearness of the layer.

    HOBBIT (arXiv 2411.01433). An expert is used at high precision when the gate share of those ranked
    before it is at most ``high_precision_share``. Nearness only differs in a pooled cache.
    """

    recency: Weight = 0.25
    frequency: Weight = 0.25
    high_precision: Weight = 0.25
    nearness: Weight = 0.25
    high_precision_share: Annotated[float, Field(ge=0, le=1)] = 0.6
    bypasses: ClassVar[bool] = False

    def ranking(self, demand: Demand, rng: np.random.Generator) -> Ranking:  # noqa: ARG002
        """The four terms."""
        return _Weighed(demand, self)
