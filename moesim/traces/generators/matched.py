"""Routing that behaves like a recorded model's: skew, affinity, repetition over time, domains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.files import find
from moesim.traces.generators import generators
from moesim.traces.matched import matched_trace, read_parameters
from moesim.traces.routing import RoutingTrace


@generators.register("matched")
@dataclass(frozen=True)
class Matched:
    """Parameters fitted to a recording (a bundled name, or a file of ``moesim trace fit``), for any shape.

    For the recorded model's own shape it reproduces, on tokens it was not fitted to, distinct experts
    of a batch, rank imbalance of a batch, repetition, affinity of layers and cache hit rates within a
    few percent. For another shape that it holds is an assumption.
    """

    like: str = "deepseek_v2_lite"

    def generate(
        self, num_tokens: int, num_layers: int, num_experts: int, top_k: int, rng: np.random.Generator
    ) -> RoutingTrace:
        """Trace of any shape with the behaviour of the recorded model."""
        path = find(self.like, "traces", field="routing.like", suffixes=(".json",))
        return matched_trace(read_parameters(path), num_tokens, num_layers, num_experts, top_k, rng)
