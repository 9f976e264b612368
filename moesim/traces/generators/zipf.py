"""Popularity falls as a power of the rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.traces.generators import generators
from moesim.traces.routing import RoutingTrace
from moesim.traces.synthetic import generated_trace, independent_choices, shuffled_by_layer


@generators.register("zipf")
@dataclass(frozen=True)
class Zipf:
    """Load proportional to ``rank ** -exponent``, ranks shuffled in every layer, tokens independent.

    Public traces of 64-expert models look like exponents of 0 to 0.6; 1 and above is far more
    skewed than what was measured there.
    """

    exponent: Annotated[float, Field(ge=0, le=8)] = 0.4

    def generate(
        self, num_tokens: int, num_layers: int, num_experts: int, top_k: int, rng: np.random.Generator
    ) -> RoutingTrace:
        """Trace with power-law popularity."""
        popularity = np.arange(1, num_experts + 1, dtype=np.float64) ** -self.exponent
        by_layer = shuffled_by_layer(np.tile(popularity, (num_layers, 1)), rng)
        ids = independent_choices(by_layer, num_tokens, top_k, rng)
        return generated_trace(ids, num_experts, source=f"generator zipf, exponent={self.exponent}")
