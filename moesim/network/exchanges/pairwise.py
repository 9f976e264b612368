"""Linear all-to-all: a message to every peer (NCCL's grouped send and receive)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.evidence import Estimate
from moesim.network.all_to_all import port_bound_s
from moesim.network.curves import collective_s
from moesim.network.exchanges.base import FAMILY, Load, exchanges
from moesim.network.fabric import Fabric


@exchanges.register("pairwise")
@dataclass(frozen=True)
class Pairwise:
    """A message to every peer; inside a domain from the measured curve of NCCL."""

    is_usual: ClassVar[bool] = True

    def price(self, load: Load, fabric: Fabric) -> Estimate | None:
        """Busiest port of the slowest link class, and a start for every peer."""
        up, nic = load.scale_up_bytes(fabric), load.nic_bytes(fabric)
        measured = fabric.fits.collective(FAMILY, "nccl") if fabric.fits else None
        if measured is not None and fabric.fits is not None and load.num_domains(fabric) == 1:
            # the curve's payload is the whole buffer of a rank, its own share included
            buffer = up * load.num_ranks / max(load.num_ranks - 1, 1)
            seconds, sigma = collective_s(measured, buffer, load.num_ranks, None, fabric.link_ratio)
            seconds = seconds + fabric.extra_latency_s(between_domains=False)
            return Estimate(seconds, FAMILY, fabric.fits.grade, sigma)
        efficiency = fabric.efficiencies.families[FAMILY]
        scale_up_s = port_bound_s(
            up,
            bandwidth_bytes_per_s=fabric.scale_up_bytes_per_s * efficiency.bandwidth_fraction,
            latency_s=fabric.scale_up_latency_s,
        )
        reached = fabric.nic_bytes_per_s * fabric.efficiencies.nic_bandwidth_fraction
        nic_s = port_bound_s(nic, bandwidth_bytes_per_s=reached, latency_s=fabric.scale_out_latency_s)
        peers = load.num_ranks - 1
        start_s = efficiency.base_s + efficiency.per_peer_s * peers if peers else 0.0
        return fabric.estimate(start_s + np.maximum(scale_up_s, nic_s), FAMILY)
