"""DeepEP's low-latency kernels: every (token, expert) copy straight to its expert's queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.evidence import Estimate
from moesim.network.exchanges.base import Load, exchanges, fitted
from moesim.network.fabric import Fabric
from moesim.network.traffic import Deduplication


@exchanges.register("deepep_low_latency")
@dataclass(frozen=True)
class DeepEpLowLatency:
    """Low-latency kernels, nothing de-duplicated; needs a fit.

    References
    ----------
    .. [1] DeepEP, https://github.com/deepseek-ai/DeepEP, 2025.
    """

    is_usual: ClassVar[bool] = False
    deduplicates: ClassVar[Deduplication] = "expert"

    def price(self, load: Load, fabric: Fabric) -> Estimate | None:
        """Fitted form on the busiest ports; None unless every copy is counted."""
        return fitted("low_latency", load, fabric) if load.deduplicate == "expert" else None
