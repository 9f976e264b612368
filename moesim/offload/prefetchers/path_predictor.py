"""A small model predicts the whole route before the pass (ExpertFlow)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.memory.demand import Demand
from moesim.offload.prefetchers import Predictor, View, Wanted, prefetchers
from moesim.offload.prefetchers.guess import guessed
from moesim.offload.prefetchers.next_gate import Accuracy


class _Route:
    def __init__(self, policy: PathPredictor, rng: np.random.Generator) -> None:
        self.policy, self.rng = policy, rng
        self.at = -1
        self.route: list[np.ndarray] = []

    def wanted(self, view: View) -> Wanted:
        if view.at != self.at:
            experts, accuracy = view.demand.num_experts, self.policy.accuracy
            self.route = [
                guessed(view.needed(layer), experts, accuracy, 0, self.rng)
                for layer in range(view.demand.num_layers)
            ]
            self.at = view.at
        last = min(view.layer + self.policy.depth, view.demand.num_layers - 1)
        return [view.fetch(k, self.route[k]) for k in range(view.layer + 1, last + 1)]


@prefetchers.register("path_predictor")
@dataclass(frozen=True)
class PathPredictor:
    """The route of the pass is known before it starts with ``accuracy``; fetched ``depth`` layers ahead.

    ``pass_cost_s``: time of the predictor that the pass waits for.
    """

    accuracy: Accuracy = 0.9
    depth: Annotated[int, Field(ge=1)] = 2
    pass_cost_s: Annotated[float, Field(ge=0)] = 0.0

    def predictor(self, demand: Demand, rng: np.random.Generator) -> Predictor:
        """One route a pass."""
        del demand
        return _Route(self, rng)
