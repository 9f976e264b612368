"""One-sided tile-wise exchange (FlashMoE): tiles written into the peers' memory by the running kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.evidence import Estimate
from moesim.network.exchanges.base import FAMILY, Load, Rates, exchanges
from moesim.network.fabric import Fabric
from moesim.network.traffic import Deduplication


@exchanges.register("one_sided")
@dataclass(frozen=True)
class OneSided:
    """No collective: tiles are written as they are ready, only real payload, one hop of latency.

    References
    ----------
    .. [1] Aimuyo, Oh, Singh, "FlashMoE," arXiv:2506.04667.
    """

    is_usual: ClassVar[bool] = False
    deduplicates: ClassVar[Deduplication] = "rank"

    def price(self, load: Load, fabric: Fabric) -> Estimate | None:
        """Busiest port at the reached rate; no start and no cost a peer."""
        rates = Rates.of(fabric)
        scale_up_s = rates.scale_up_s(load.scale_up_bytes(fabric), fabric.scale_up_latency_s)
        nic_s = rates.nic_s(load.nic_bytes(fabric), fabric.scale_out_latency_s, 0)
        return fabric.estimate(np.maximum(scale_up_s, nic_s), FAMILY)
