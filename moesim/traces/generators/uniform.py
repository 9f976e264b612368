"""Every expert equally likely: a bound to compare with, not a model of real traffic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.traces.generators import generators
from moesim.traces.routing import RoutingTrace
from moesim.traces.synthetic import generated_trace, independent_choices


@generators.register("uniform")
@dataclass(frozen=True)
class Uniform:
    """Every expert equally likely, tokens and layers independent. Real passes touch fewer experts."""

    def generate(
        self, num_tokens: int, num_layers: int, num_experts: int, top_k: int, rng: np.random.Generator
    ) -> RoutingTrace:
        """Trace with flat popularity."""
        flat = np.ones((num_layers, num_experts))
        ids = independent_choices(flat, num_tokens, top_k, rng)
        return generated_trace(ids, num_experts, source="generator uniform")
