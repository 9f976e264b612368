"""Two-dimensional hierarchical all-to-all (Tutel): align in the node, then few large messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from moesim.evidence import Estimate
from moesim.network.exchanges.base import FAMILY, Load, Rates, exchanges
from moesim.network.fabric import Fabric
from moesim.network.traffic import Deduplication
from moesim.units import TB

STRIDE_COPIES = 2
"""Before the exchange in the node, and between the two."""


@exchanges.register("two_dimensional")
@dataclass(frozen=True)
class TwoDimensional:
    """Stride copies, exchange in the node, stride copy, one message a node between equal positions.

    Attributes
    ----------
    copy_bytes_per_s : float
        What a stride copy reaches, reading and writing. [bytes/s]

    References
    ----------
    .. [1] Hwang et al., "Tutel: Adaptive Mixture-of-Experts at Scale," arXiv:2206.03382, section 3.4.
    """

    is_usual: ClassVar[bool] = False
    rows_in_order: ClassVar[bool] = True
    deduplicates: ClassVar[Deduplication] = "rank"

    copy_bytes_per_s: Annotated[float, Field(gt=0)] = 0.6 * TB

    def price(self, load: Load, fabric: Fabric) -> Estimate | None:
        """Both phases in turn; None inside one domain."""
        domains, size = load.num_domains(fabric), load.domain_size(fabric)
        if domains == 1:
            return None
        rates = Rates.of(fabric)
        up, nic = load.scale_up_bytes(fabric), load.nic_bytes(fabric)
        aligned = up + nic * (size - 1) / size
        start_s = rates.base_s + rates.per_peer_s * (size - 1)
        copies_s = STRIDE_COPIES * (up + nic) / self.copy_bytes_per_s
        inside_s = rates.scale_up_s(aligned, fabric.scale_up_latency_s)
        between_s = rates.nic_s(nic, fabric.scale_out_latency_s, domains - 1)
        return fabric.estimate(start_s + copies_s + inside_s + between_s, FAMILY)
