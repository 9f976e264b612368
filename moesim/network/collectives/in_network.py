"""In-network all-reduce: the switch adds (NVLink SHARP)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Estimate, Seconds
from moesim.network.collectives.base import Group, all_reduces, started
from moesim.network.fabric import Fabric


@all_reduces.register("in_network")
@dataclass(frozen=True)
class InNetworkAllReduce:
    """The switch sums and multicasts: each port carries the buffer once; inside a scale-up domain."""

    is_usual: ClassVar[bool] = False

    def price(self, payload_bytes: Seconds, ranks: NDArray[np.int64], fabric: Fabric) -> Estimate | None:
        r"""Two hops and one buffer: :math:`2 \alpha + n / \beta`; None between domains or for one rank."""
        group = Group.of(ranks, fabric, "all_reduce")
        if group.num_domains > 1 or group.num_ranks == 1:
            return None
        return started(2 * group.hop_s + payload_bytes / group.bytes_per_s, group, fabric)
