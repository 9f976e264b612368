"""Linear all-to-all: a message to every peer (NCCL's grouped send and receive)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.evidence import Estimate
from moesim.network.curves import collective_s
from moesim.network.exchanges.base import FAMILY, Load, Rates, exchanges
from moesim.network.fabric import Fabric
from moesim.network.traffic import Deduplication


@exchanges.register("pairwise")
@dataclass(frozen=True)
class Pairwise:
    """A message to every peer; inside a domain from the measured curve of NCCL."""

    is_usual: ClassVar[bool] = True
    deduplicates: ClassVar[Deduplication] = "rank"

    def price(self, load: Load, fabric: Fabric) -> Estimate | None:
        """Busiest port of the slowest link class, and a start for every peer."""
        up, nic = load.scale_up_bytes(fabric), load.nic_bytes(fabric)
        measured = fabric.fits.collective(FAMILY, "nccl") if fabric.fits else None
        if measured is not None and fabric.fits is not None and load.num_domains(fabric) == 1:
            # the curve's payload is the whole buffer of a rank, its own share included
            buffer = up * load.num_ranks / max(load.num_ranks - 1, 1)
            seconds, sigma = collective_s(measured, buffer, load.num_ranks, None, fabric.link_ratio)
            seconds = seconds + fabric.extra_latency_s(between_domains=False)
            return Estimate(seconds, FAMILY, fabric.fits.grade, sigma * fabric.fits.sigma_ratio)
        rates, peers = Rates.of(fabric), load.num_ranks - 1
        scale_up_s = rates.scale_up_s(up, fabric.scale_up_latency_s)
        remote = load.num_ranks - load.domain_size(fabric)
        nic_s = rates.nic_s(nic, fabric.scale_out_latency_s, remote)
        start_s = rates.base_s + rates.per_peer_s * peers if peers else 0.0
        return fabric.estimate(start_s + np.maximum(scale_up_s, nic_s), FAMILY)
