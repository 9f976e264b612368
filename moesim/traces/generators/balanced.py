"""Forced balance: what kernel benchmarks and some profiles run, never what a router does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.traces.description import id_dtype
from moesim.traces.generators import generators
from moesim.traces.routing import RoutingTrace
from moesim.traces.synthetic import check_shape, generated_trace


@generators.register("balanced")
@dataclass(frozen=True)
class Balanced:
    """Every expert is chosen equally often, to one token, over the whole trace; tokens in random order."""

    def generate(
        self, num_tokens: int, num_layers: int, num_experts: int, top_k: int, rng: np.random.Generator
    ) -> RoutingTrace:
        """Trace whose counts differ by at most one."""
        check_shape(num_tokens, num_layers, num_experts, top_k)
        ids = np.empty((num_tokens, num_layers, top_k), id_dtype(num_experts))
        turn = np.arange(num_tokens * top_k).reshape(num_tokens, top_k) % num_experts
        for layer in range(num_layers):
            ids[:, layer] = rng.permutation(num_experts)[turn][rng.permutation(num_tokens)]
        return generated_trace(ids, num_experts, source="generator balanced")
