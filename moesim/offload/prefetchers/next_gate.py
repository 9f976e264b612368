"""Gates of following layers on the present hidden state (Fate, AdapMoE, HOBBIT, HybriMoE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from moesim.memory.demand import Demand
from moesim.offload.prefetchers import Predictor, View, Wanted, prefetchers
from moesim.offload.prefetchers.guess import guessed

Accuracy = Annotated[float, Field(ge=0, le=1)]


class _Gates:
    def __init__(self, policy: NextGate, rng: np.random.Generator) -> None:
        self.policy, self.rng = policy, rng

    def wanted(self, view: View) -> Wanted:
        found = []
        p = self.policy
        for depth, accuracy in enumerate(p.accuracy, start=1):
            layer = view.layer + depth
            if layer >= view.demand.num_layers:
                break
            guess = guessed(view.needed(layer), view.demand.num_experts, accuracy, p.extra, self.rng)
            found.append(view.fetch(layer, guess))
            if p.until_first_miss and found[-1].experts.size:
                break
        return found


@prefetchers.register("next_layer_gate")
@dataclass(frozen=True)
class NextGate:
    """Fetches what the next layers' gates say of the present hidden state.

    ``accuracy``: share of right guesses one, two, ... layers ahead; as many layers are looked at.
    ``extra``: candidates beyond those of the gate (Fate widens the set). ``until_first_miss``: stop at
    the first layer that lacks something (HOBBIT looks ahead so).
    """

    accuracy: Annotated[tuple[Accuracy, ...], Field(min_length=1)] = (0.84,)
    extra: Annotated[int, Field(ge=0)] = 0
    until_first_miss: bool = False
    pass_cost_s: ClassVar[float] = 0.0

    def predictor(self, demand: Demand, rng: np.random.Generator) -> Predictor:
        """Its own random errors."""
        del demand
        return _Gates(self, rng)
