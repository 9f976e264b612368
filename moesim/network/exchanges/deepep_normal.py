"""DeepEP's high-throughput kernels: node de-duplication, a few SMs drive NVLink and RDMA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.evidence import Estimate
from moesim.network.exchanges.base import Load, exchanges, fitted
from moesim.network.fabric import Fabric
from moesim.network.traffic import Deduplication


@exchanges.register("deepep_normal")
@dataclass(frozen=True)
class DeepEpNormal:
    """High-throughput kernels, one copy a node then one a rank; needs a fit.

    References
    ----------
    .. [1] DeepEP, https://github.com/deepseek-ai/DeepEP, 2025.
    """

    is_usual: ClassVar[bool] = False
    deduplicates: ClassVar[Deduplication] = "node"

    def price(self, load: Load, fabric: Fabric) -> Estimate | None:
        """Fitted form on the busiest ports; None unless traffic counts a token once a rank and node."""
        one_domain = load.num_domains(fabric) == 1
        if load.deduplicate == "expert" or (load.deduplicate == "rank" and not one_domain):
            return None
        return fitted("normal", load, fabric)
