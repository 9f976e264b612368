"""The skew of a recorded trace, for a model of any shape, in one step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moesim.files import find
from moesim.traces.fit import fit_skew
from moesim.traces.generators import generators
from moesim.traces.routing import RoutingTrace
from moesim.traces.store import read_trace
from moesim.traces.synthetic import check_shape


@generators.register("like_trace")
@dataclass(frozen=True)
class LikeTrace:
    """``fitted_skew`` with its parameters measured on a recorded trace (a file, or a bundled name).

    That the skew of the recorded model holds for another shape is an assumption.
    """

    source: str = "tiny_olmoe"

    def generate(
        self, num_tokens: int, num_layers: int, num_experts: int, top_k: int, rng: np.random.Generator
    ) -> RoutingTrace:
        """Trace of any shape with the load curve, repetition and affinity of the source."""
        check_shape(num_tokens, num_layers, num_experts, top_k)
        path = find(self.source, "traces", field="routing.source", suffixes=(".safetensors",))
        recorded = read_trace(path)
        made = fit_skew(recorded, rng).generate(num_tokens, num_layers, num_experts, top_k, rng)
        said = f"generator like_trace, fitted to {recorded.info.model}; {made.info.source}"
        return replace(made, info=replace(made.info, source=said))
