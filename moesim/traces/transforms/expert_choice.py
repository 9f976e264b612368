"""Expert-choice routing: experts pick tokens, so loads are equal and tokens get different numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.traces.rewrite import told, weights_of
from moesim.traces.routing import RoutingTrace
from moesim.traces.transforms import transforms


@transforms.register("expert_choice")
@dataclass(frozen=True)
class ExpertChoice:
    """Each expert takes the best ``ceil(factor * tokens * top_k / experts)`` tokens of a step.

    Best are the tokens that had chosen it, heaviest first (by gate weight, or by slot); where they are
    too few, random others follow, as a trace does not know how much an expert would have liked them.
    """

    factor: Annotated[float, Field(gt=0, le=1000)] = 1.0

    def apply(self, trace: RoutingTrace, rng: np.random.Generator) -> RoutingTrace:
        """Trace with as many slots as the busiest token needs; without gate weights."""
        if trace.gate_weights is None:
            liking = np.broadcast_to(1.0 / (1.0 + np.arange(trace.top_k)), trace.expert_ids.shape)
        else:
            liking = weights_of(trace, "expert_choice")
        step = np.unique(trace.step_index, return_inverse=True)[1]
        picked = np.zeros((trace.num_tokens, trace.num_layers, trace.num_experts), np.bool_)
        for number in range(int(step.max()) + 1):
            rows = np.flatnonzero(step == number)
            room = min(rows.size, math.ceil(self.factor * rows.size * trace.top_k / trace.num_experts))
            for layer in range(trace.num_layers):
                score = rng.random((rows.size, trace.num_experts + 1)) - 1.0
                ids = np.minimum(trace.expert_ids[rows, layer], trace.num_experts).astype(np.int64)
                np.put_along_axis(score, ids, liking[rows, layer], axis=1)
                best = np.argsort(-score[:, : trace.num_experts], axis=0, kind="stable")[:room]
                picked[rows[best], layer, np.arange(trace.num_experts)] = True
        slots = max(1, int(picked.sum(axis=-1).max()))
        order = np.argsort(~picked, axis=-1, kind="stable")[..., :slots]
        taken = np.take_along_axis(picked, order, axis=-1)
        ids = np.where(taken, order, trace.empty_slot).astype(trace.expert_ids.dtype)
        return told(replace(trace, expert_ids=ids, gate_weights=None), f"expert choice, factor {self.factor}")
