"""NVLink exchange of TensorRT-LLM inside one scale-up domain, one-sided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.evidence import Estimate
from moesim.network.exchanges.base import Load, exchanges, fitted
from moesim.network.fabric import Fabric
from moesim.network.traffic import Deduplication


@exchanges.register("nvlink_one_sided")
@dataclass(frozen=True)
class NvLinkOneSided:
    """One-sided NVLink exchange of TensorRT-LLM; needs a fit and one scale-up domain."""

    is_usual: ClassVar[bool] = False
    deduplicates: ClassVar[Deduplication] = "rank"

    def price(self, load: Load, fabric: Fabric) -> Estimate | None:
        """Fitted form on the busiest port; None between domains or where copies are not one a rank."""
        if load.deduplicate == "expert" or load.num_domains(fabric) > 1:
            return None
        return fitted("nvlink_one_sided", load, fabric)
