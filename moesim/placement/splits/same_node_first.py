"""The nearest copy: on the token's own rank, else on its node, else any."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.placement.placed import Placement
from moesim.placement.split_registry import Batch, Served, splits


@splits.register("same_node_first")
@dataclass(frozen=True)
class SameNodeFirst:
    """Fewest bytes between nodes, whatever that does to the balance.

    References
    ----------
    .. [1] SGLang, static dispatch of expert-parallel tokens: same device, then same node, then a fair
       fixed choice.
    """

    def serve(self, batch: Batch, placement: Placement, rng: np.random.Generator) -> Served:
        """Shares differ by the rank that the tokens come from."""
        ranks, rows = placement.num_ranks, placement.physical_to_logical
        held = rows >= 0
        expert, rank = np.maximum(rows, 0), placement.rank_of_slot
        split = np.zeros((ranks, *rows.shape))
        for source in range(ranks):
            near = np.where(rank == source, 2, batch.node_of_rank[rank] == batch.node_of_rank[source])
            best = np.zeros(placement.copies.shape, np.int64)
            layer = np.broadcast_to(np.arange(len(rows))[:, None], rows.shape)
            nearness = np.broadcast_to(near, rows.shape)
            np.maximum.at(best, (layer[held], expert[held]), nearness[held])
            chosen = held & (nearness == best[layer, expert])
            count = np.zeros(placement.copies.shape)
            np.add.at(count, (layer[chosen], expert[chosen]), 1.0)
            split[source][chosen] = 1.0 / count[layer[chosen], expert[chosen]]
        return Served(placement, split)
