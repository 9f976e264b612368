"""At most so many distinct experts in a batch (Read-ME's expert-aware batching)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.offload.batchers import Batches, Routes, batchers


@batchers.register("expert_cap")
@dataclass(frozen=True)
class ExpertCap:
    """The oldest sample, then whoever adds fewest experts, until the batch is full or would exceed ``cap``.

    Read-ME (arXiv 2410.19123): its router names a token's expert beforehand, so requests wait until theirs
    is served; here nobody waits longer than until it is the oldest. ``cap``: distinct experts a layer, mean
    over layers, in multiples of the experts that one sample uses.
    """

    cap: Annotated[float, Field(ge=1)] = 4
    pool: Annotated[int, Field(ge=1)] = 2

    def batches(self, routes: Routes, size: int) -> Batches:
        """Batch after batch, until none of the waiting samples is left."""
        flat = routes.reshape(len(routes), -1)
        limit = self.cap * flat.sum(axis=1).max()
        waiting = np.arange(len(routes))
        found = []
        while waiting.size:
            chosen = [0]
            free = np.ones(waiting.size, np.bool_)
            free[0] = False
            union = flat[waiting[0]].copy()
            while len(chosen) < min(size, waiting.size):
                added = (flat[waiting] & ~union).sum(axis=1)
                added[~free] = flat.shape[1] + 1
                best = int(added.argmin())
                if union.sum() + added[best] > limit:
                    break
                chosen.append(best)
                free[best] = False
                union |= flat[waiting[best]]
            found.append(waiting[np.sort(chosen)])
            waiting = waiting[free]
        return found
