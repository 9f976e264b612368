"""Parallelism-coordinated all-to-all (DeepSpeed-MoE): tensor ranks hold the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from moesim.evidence import Estimate
from moesim.network.exchanges.base import FAMILY, Load, Rates, exchanges
from moesim.network.fabric import Fabric
from moesim.network.traffic import Deduplication


@exchanges.register("coordinated")
@dataclass(frozen=True)
class Coordinated:
    """Each tensor rank sends its share of the tokens to its peers, then the shares are gathered.

    Attributes
    ----------
    tensor_ranks : int
        Ranks that hold the same tokens; side by side in a scale-up domain. [-]

    References
    ----------
    .. [1] Rajbhandari et al., "DeepSpeed-MoE," arXiv:2201.05596, section 5.3.
    """

    is_usual: ClassVar[bool] = False
    deduplicates: ClassVar[Deduplication] = "rank"

    tensor_ranks: Annotated[int, Field(ge=1)] = 1

    def price(self, load: Load, fabric: Fabric) -> Estimate | None:
        """Exchange of a share, then an all-gather over the tensor ranks."""
        if load.num_ranks % self.tensor_ranks:
            return None
        rates, share = Rates.of(fabric), 1 / self.tensor_ranks
        up, nic = load.scale_up_bytes(fabric), load.nic_bytes(fabric)
        remote = (load.num_ranks - load.domain_size(fabric)) / self.tensor_ranks
        peers = load.num_ranks // self.tensor_ranks - 1
        moved = np.maximum(
            rates.scale_up_s(up * share, fabric.scale_up_latency_s),
            rates.nic_s(nic * share, fabric.scale_out_latency_s, remote),
        )
        gathered = rates.scale_up_s((up + nic) * (1 - share), fabric.scale_up_latency_s)
        start_s = rates.base_s + rates.per_peer_s * (peers + self.tensor_ranks - 1)
        return fabric.estimate(start_s + moved + gathered, FAMILY)
