"""All-gather dispatch and reduce-scatter combine: every token to everybody (vLLM's default)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.evidence import Estimate
from moesim.network.collectives.group import all_gather, reduce_scatter
from moesim.network.exchanges.base import FAMILY, Load, exchanges
from moesim.network.fabric import Fabric
from moesim.network.traffic import Deduplication


@exchanges.register("gather_scatter")
@dataclass(frozen=True)
class GatherScatter:
    """Every rank gathers all tokens, computes its experts' share and the shares are summed back."""

    is_usual: ClassVar[bool] = False
    deduplicates: ClassVar[Deduplication] = "rank"

    def price(self, load: Load, fabric: Fabric) -> Estimate | None:
        """The collective's time, whatever the routing."""
        payload = load.tokens_per_rank * load.num_ranks * load.row_bytes
        collective = all_gather if load.phase == "dispatch" else reduce_scatter
        found = collective(payload, load.ranks, fabric)
        shape = load.ports.scale_up_out.shape[:-1]
        return Estimate(np.full(shape, found.seconds), FAMILY, found.grade, found.sigma)
