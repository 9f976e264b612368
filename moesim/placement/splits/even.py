"""Evenly over copies: what engines do by default, and what EPLB plans for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.placement.placed import Placement
from moesim.placement.split_registry import Batch, Served, splits


@splits.register("even")
@dataclass(frozen=True)
class Even:
    """Each copy serves as many tokens, or its share where the placement has shares."""

    def serve(self, batch: Batch, placement: Placement, rng: np.random.Generator) -> Served:
        """The batch is not looked at."""
        return Served(placement, placement.slot_share[None])
