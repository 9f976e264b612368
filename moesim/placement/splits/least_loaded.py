"""Tokens to the copy whose rank has least to do, expert after expert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.placement.placed import Floats, Placement
from moesim.placement.split_registry import Batch, Served, splits


@splits.register("least_loaded")
@dataclass(frozen=True)
class LeastLoaded:
    """Experts without replicas first, then the others, heaviest first, each filling the lowest ranks.

    What a greedy dispatcher that knows all counts of the batch would do; further passes take an
    expert's tokens back and pour them out again beside all others.

    Parameters
    ----------
    passes : int
        Times that every expert is poured out. [-]
    """

    passes: Annotated[int, Field(ge=1)] = 3

    def serve(self, batch: Batch, placement: Placement, rng: np.random.Generator) -> Served:
        """Deterministic."""
        split = placement.slot_share.copy()
        rank_of_slot = placement.rank_of_slot
        for layer, row in enumerate(placement.physical_to_logical):
            tokens, copies = batch.total[layer], placement.copies[layer]
            single = (row >= 0) & (copies[np.maximum(row, 0)] == 1)
            loads = np.zeros(placement.num_ranks)
            np.add.at(loads, rank_of_slot[single], tokens[row[single]])
            many = np.flatnonzero(copies > 1)
            poured = [np.zeros(0)] * tokens.size
            for number in range(self.passes):
                for expert in many[np.argsort(-tokens[many], kind="stable")]:
                    slots = np.flatnonzero(row == expert)
                    ranks, first = np.unique(rank_of_slot[slots], return_index=True)
                    if number:
                        loads[ranks] -= poured[expert]
                    poured[expert] = filled_up(loads[ranks], float(tokens[expert]))
                    loads[ranks] += poured[expert]
                    if tokens[expert]:
                        split[layer, slots] = 0.0
                        split[layer, slots[first]] = poured[expert] / tokens[expert]
        return Served(placement, split[None])


def filled_up(levels: Floats, amount: float) -> Floats:
    """What each vessel receives when ``amount`` is poured so that the lowest fill first. Sums to it."""
    order = np.argsort(levels, kind="stable")
    ordered = levels[order]
    number = np.arange(1, ordered.size + 1)
    # level if only the first n vessels receive anything
    level = (amount + np.cumsum(ordered)) / number
    used = int(np.flatnonzero(level > ordered)[-1]) + 1 if amount > 0 else 1
    added = np.zeros(levels.size)
    added[order[:used]] = np.maximum(level[used - 1] - ordered[:used], 0.0)
    total = added.sum()
    return np.asarray(added * (amount / total) if total > 0 else added, np.float64)
