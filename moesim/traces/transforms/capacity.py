"""Expert capacity: what does not fit in a step is dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from moesim.traces.rewrite import dropped, weights_of
from moesim.traces.routing import RoutingTrace
from moesim.traces.transforms import transforms


@transforms.register("capacity")
@dataclass(frozen=True)
class Capacity:
    """Each expert serves ``ceil(factor * tokens * top_k / experts)`` choices of a step; the rest is dropped.

    ``order`` says who is served first: ``position`` (tokens early in their sequence, so that drops
    fall towards its end, as OpenMoE saw), ``weight`` (the heaviest gate weights) or ``random``.
    """

    factor: Annotated[float, Field(gt=0, le=1000)] = 1.25
    order: Literal["position", "weight", "random"] = "position"

    def apply(self, trace: RoutingTrace, rng: np.random.Generator) -> RoutingTrace:
        """Trace with empty slots where an expert was full."""
        step = np.unique(trace.step_index, return_inverse=True)[1]
        tokens = np.bincount(step)
        room = np.array([math.ceil(self.factor * n * trace.top_k / trace.num_experts) for n in tokens])
        drop = np.zeros(trace.expert_ids.shape, np.bool_)
        for layer in range(trace.num_layers):
            ids = np.asarray(trace.expert_ids[:, layer], np.int64)
            group = step[:, None] * (trace.num_experts + 1) + np.minimum(ids, trace.num_experts)
            place = _places(group.ravel(), self._priority(trace, layer, rng)).reshape(group.shape)
            drop[:, layer] = (place >= room[step][:, None]) & (ids < trace.num_experts)
        return dropped(trace, drop, f"capacity factor {self.factor}, {self.order} first")

    def _priority(self, trace: RoutingTrace, layer: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Smaller is served earlier, one value a choice, ``(tokens * slots,)``."""
        size = trace.num_tokens * trace.top_k
        if self.order == "random":
            return rng.random(size)
        if self.order == "weight":
            return -weights_of(trace, "order: weight")[:, layer].astype(np.float64).ravel()
        position = np.asarray(trace.position, np.float64)
        return np.repeat(position, trace.top_k)


def _places(group: NDArray[np.int64], priority: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many of the same group come before each entry, ``(entries,)``."""
    order = np.lexsort((priority, group))
    ordered = group[order]
    starts = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    first = np.maximum.accumulate(np.where(starts, np.arange(group.size), 0))
    places = np.empty(group.size, np.int64)
    places[order] = np.arange(group.size) - first
    return places
