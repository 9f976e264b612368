"""Synthetic routing: each way to make up a trace is one registered module of this package."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

import numpy as np

from moesim.registry import Registry
from moesim.traces.routing import RoutingTrace


class Generator(Hashable, Protocol):
    """Makes a routing trace of any shape; parameters are the fields of the class, all of them hashable."""

    def generate(
        self, num_tokens: int, num_layers: int, num_experts: int, top_k: int, rng: np.random.Generator
    ) -> RoutingTrace:
        """Trace of the asked shape with distinct experts per token; same ``rng`` state, same trace."""
        ...


generators: Registry[Generator] = Registry("generator", "moesim.traces.generators")
"""Registered generators by name."""
