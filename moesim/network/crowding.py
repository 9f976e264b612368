"""Two collectives at once on a rank's ports: what each uses of them, and how fast each still is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.engine.sharing import Paths, max_min_rates
from moesim.evidence import Seconds
from moesim.network.collectives.base import Group
from moesim.network.exchanges.base import Rates
from moesim.network.fabric import Fabric

RING_SMS_INSIDE, RING_SMS_BETWEEN = 24, 16
"""Blocks of threads of a ring of NCCL, one for each channel: it says ``Channel 00/24`` inside a node of A100
or H100, ``Channel 00/16`` between nodes of eight H100 and eight ports (NVIDIA/nccl#1453)."""


@dataclass(frozen=True, slots=True)
class PortUse:
    """Share of the rate that collectives reach of a rank's ports, while one runs alone, 0 to 1. [-]"""

    scale_up: float = 0.0
    scale_out: float = 0.0

    @classmethod
    def of(cls, scale_up_bytes: float, scale_out_bytes: float, seconds: float, fabric: Fabric) -> PortUse:
        """Of so many bytes through the busiest rank's ports in so many seconds. [bytes], [s]"""
        rates = Rates.of(fabric)

        def share(moved: float, rate: float) -> float:
            return min(moved / (seconds * rate), 1.0) if moved and seconds and rate else 0.0

        return cls(share(scale_up_bytes, rates.scale_up_bytes_per_s), share(scale_out_bytes, fabric.nic_rate))


def ring_bytes(payload_bytes: float, ranks: NDArray[np.int64], fabric: Fabric) -> tuple[float, float]:
    """Bytes of a ring all-gather or reduce-scatter through a rank's scale-up and network port.

    Between domains there are as many rings as members of the group in a domain, so each member's network
    port carries one ring's share and its scale-up port those of the others (see :class:`Group`).
    """
    group = Group.of(ranks, fabric, "all_gather")
    moved = payload_bytes * (1 - 1 / group.num_ranks)
    if group.num_domains == 1:
        return moved, 0.0
    out = moved * group.num_domains / group.num_ranks
    return moved - out, out


def ring_use(payload_bytes: float, ranks: NDArray[np.int64], seconds: Seconds, fabric: Fabric) -> PortUse:
    """Of a ring all-gather or reduce-scatter of ``payload_bytes`` that takes so long alone. [bytes], [s]"""
    return PortUse.of(*ring_bytes(payload_bytes, ranks, fabric), float(np.mean(seconds)), fabric)


def speeds(one: PortUse, other: PortUse) -> tuple[float, float]:
    """Speed of two collectives at once over their speed alone; ports are shared max-min fairly.

    Examples
    --------
    Both want a port whole, one wants little of it, they meet on none:

    >>> up, out = PortUse(scale_up=1.0), PortUse(scale_out=1.0)
    >>> speeds(up, up), speeds(up, PortUse(scale_up=0.25)), speeds(up, out)
    ((0.5, 0.5), (0.75, 1.0), (1.0, 1.0))
    """
    uses = np.array([(u.scale_up, u.scale_out) for u in (one, other)])
    most = uses.max(axis=1)
    flow, link = np.nonzero(uses)
    paths = Paths(flow, link, uses[flow, link] / most[flow], 2)
    rates = max_min_rates(paths, np.ones(2), limit=most)
    first, second = np.divide(rates, most, out=np.ones(2), where=most > 0)
    return float(first), float(second)
