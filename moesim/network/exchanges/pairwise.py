"""Linear all-to-all: a message to every peer (NCCL's grouped send and receive)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.evidence import Estimate
from moesim.network.curves import Floats, collective_s
from moesim.network.exchanges.base import FAMILY, Load, Rates, exchanges
from moesim.network.fabric import Fabric
from moesim.network.traffic import Deduplication


@exchanges.register("pairwise")
@dataclass(frozen=True)
class Pairwise:
    """A message to every peer; inside a domain from the measured curve of NCCL.

    Attributes
    ----------
    num_sms : int
        A block of threads for every channel between two ranks; NCCL says on eight H100: 32 p2p channels. [-]
    """

    num_sms: ClassVar[int] = 32

    is_usual: ClassVar[bool] = True
    rows_in_order: ClassVar[bool] = True
    deduplicates: ClassVar[Deduplication] = "rank"

    def price(self, load: Load, fabric: Fabric) -> Estimate | None:
        """Inside a domain its measured curve; between domains beside that the busiest NIC, not measured."""
        up, nic = load.scale_up_bytes(fabric), load.nic_bytes(fabric)
        near = load.domain_size(fabric)
        inside = self._measured(up, near, fabric)
        if inside is not None and load.num_domains(fabric) == 1:
            return inside
        rates, peers = Rates.of(fabric), load.num_ranks - 1
        start_s = rates.base_s + rates.per_peer_s * peers if peers else 0.0
        remote = load.num_ranks - near
        nic_s = start_s + rates.nic_s(nic, fabric.scale_out_latency_s, remote)
        if inside is not None:
            return fabric.estimate(np.maximum(np.asarray(inside.seconds), nic_s), FAMILY)
        return fabric.estimate(
            np.maximum(start_s + rates.scale_up_s(up, fabric.scale_up_latency_s), nic_s), FAMILY
        )

    @staticmethod
    def _measured(up: Floats, members: float, fabric: Fabric) -> Estimate | None:
        """Exchange of ``up`` bytes among the members of one domain; None where it was not measured."""
        measured = fabric.fits.collective(FAMILY, "nccl") if fabric.fits else None
        if measured is None or fabric.fits is None or members < 2 or members != int(members):
            return None
        # the curve's payload is the whole buffer of a rank, its own share included
        buffer = up * members / (members - 1)
        seconds, sigma = collective_s(measured, buffer, int(members), None, fabric.link_ratio)
        seconds = seconds + fabric.extra_latency_s(between_domains=False)
        return Estimate(seconds, FAMILY, fabric.fits.grade, sigma * fabric.fits.sigma_ratio)
