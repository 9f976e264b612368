"""The fetch that saves most first (HybriMoE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from moesim.memory.demand import Demand
from moesim.offload.prefetchers import Fetch, Predictor, View, Wanted, prefetchers
from moesim.offload.prefetchers.guess import guessed
from moesim.offload.prefetchers.next_gate import Accuracy


class _Impact:
    def __init__(self, policy: Impact, rng: np.random.Generator) -> None:
        self.policy, self.rng = policy, rng

    def wanted(self, view: View) -> Wanted:
        candidates = []
        for depth, accuracy in enumerate(self.policy.accuracy, start=1):
            layer = view.layer + depth
            if layer >= view.demand.num_layers:
                break
            guess = guessed(view.needed(layer), view.demand.num_experts, accuracy, 0, self.rng)
            missing = view.missing(layer, guess)
            # the layer with most missing experts is the longest; one fewer there saves most
            candidates += [
                (-missing.size, depth, Fetch(layer, missing[k : k + 1], guess)) for k in range(missing.size)
            ]
        best = sorted(candidates, key=lambda c: c[:2])[: self.policy.fetches]
        return [fetch for _, _, fetch in best]


@prefetchers.register("impact")
@dataclass(frozen=True)
class Impact:
    """Looks at the next layers with falling ``accuracy`` and fetches first where most is missing.

    ``fetches``: at most so many a layer, the time that the link is idle.
    """

    accuracy: Annotated[tuple[Accuracy, ...], Field(min_length=1)] = (0.9, 0.84, 0.8)
    fetches: Annotated[int, Field(ge=1)] = 1
    pass_cost_s: ClassVar[float] = 0.0

    def predictor(self, demand: Demand, rng: np.random.Generator) -> Predictor:
        """Its own random errors."""
        del demand
        return _Impact(self, rng)
