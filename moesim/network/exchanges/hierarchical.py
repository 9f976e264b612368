"""Hierarchical all-to-all (DeepSpeed-MoE): the whole buffer in the node, then between nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.evidence import Estimate
from moesim.network.exchanges.base import FAMILY, Load, Rates, exchanges
from moesim.network.fabric import Fabric
from moesim.network.traffic import Deduplication


@exchanges.register("hierarchical")
@dataclass(frozen=True)
class Hierarchical:
    """Exchange in the node, then between equal positions of nodes: fewer messages, more bytes.

    References
    ----------
    .. [1] Rajbhandari et al., "DeepSpeed-MoE," arXiv:2201.05596, section 5.3.
    """

    is_usual: ClassVar[bool] = False
    rows_in_order: ClassVar[bool] = True
    deduplicates: ClassVar[Deduplication] = "rank"

    def price(self, load: Load, fabric: Fabric) -> Estimate | None:
        """Both phases in turn, every byte moved in both; None inside one domain."""
        domains, size = load.num_domains(fabric), load.domain_size(fabric)
        if domains == 1:
            return None
        rates = Rates.of(fabric)
        up, nic = load.scale_up_bytes(fabric), load.nic_bytes(fabric)
        start_s = rates.base_s + rates.per_peer_s * (size - 1)
        inside_s = rates.scale_up_s(up + nic, fabric.scale_up_latency_s)
        between_s = rates.nic_s(nic, fabric.scale_out_latency_s, domains - 1)
        return fabric.estimate(start_s + inside_s + between_s, FAMILY)
