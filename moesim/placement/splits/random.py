"""A random copy for every token: what dynamic dispatch of SGLang does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.placement.placed import EMPTY, Placement
from moesim.placement.split_registry import Batch, Served, splits


@splits.register("random")
@dataclass(frozen=True)
class Random:
    """Each token draws one of the copies with equal chance."""

    def serve(self, batch: Batch, placement: Placement, rng: np.random.Generator) -> Served:
        """Copies of an expert share its tokens as a multinomial draw says."""
        split = placement.slot_share.copy()
        for layer, row in enumerate(placement.physical_to_logical):
            copies = placement.copies[layer]
            for expert in np.flatnonzero(copies > 1):
                slots = np.flatnonzero(row == expert)
                tokens = int(batch.total[layer, expert])
                if tokens:
                    drawn = rng.multinomial(tokens, np.full(slots.size, 1 / slots.size))
                    split[layer, slots] = drawn / tokens
        split[placement.physical_to_logical == EMPTY] = 0.0
        return Served(placement, split[None])
