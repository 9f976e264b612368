"""pplx-kernels: GPU-initiated messages, a queue for each expert of the receiver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.evidence import Estimate
from moesim.network.exchanges.base import Load, exchanges, fitted
from moesim.network.fabric import Fabric
from moesim.network.traffic import Deduplication


@exchanges.register("pplx")
@dataclass(frozen=True)
class Pplx:
    """Nothing is de-duplicated; needs a fit, which was made between nodes.

    References
    ----------
    .. [1] pplx-kernels, https://github.com/perplexityai/pplx-kernels, 2025.
    """

    is_usual: ClassVar[bool] = False
    deduplicates: ClassVar[Deduplication] = "expert"

    def price(self, load: Load, fabric: Fabric) -> Estimate | None:
        """Fitted form on the busiest ports; None unless every copy is counted."""
        return fitted("pplx", load, fabric) if load.deduplicate == "expert" else None
