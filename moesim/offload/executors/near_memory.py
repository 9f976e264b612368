"""Near-memory units compute what the device does not hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.offload.executors import LOAD, ON_PIM, RESIDENT, Assignment, LayerWork, executors, in_order


@executors.register("near_memory")
@dataclass(frozen=True)
class NearMemory:
    """Missing experts are computed where they lie: by units in a memory of their own (CXL-PNM, AiM cards).

    What such units cannot reach is copied in.
    """

    deferred: ClassVar[int] = 0

    def assign(self, work: LayerWork) -> Assignment:
        """Leave what is missing to the units."""
        away = np.where(np.isfinite(work.pim_s), ON_PIM, LOAD)
        return in_order(np.where(work.present, RESIDENT, away).astype(np.int8))
