"""Each missing expert by itself where it is through sooner (Fiddler)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.offload.executors import LOAD, ON_CPU, RESIDENT, Assignment, LayerWork, executors, in_order


@executors.register("cheaper")
@dataclass(frozen=True)
class Cheaper:
    """A missing expert is copied in where copy and device time together are less than the CPU's.

    Fiddler (arXiv 2402.07033): every expert is decided alone, queues are not looked at.
    """

    deferred: ClassVar[int] = 0

    def assign(self, work: LayerWork) -> Assignment:
        """Compare the two ways."""
        away = np.where(work.copy_s + work.device_s < work.cpu_s, LOAD, ON_CPU)
        return in_order(np.where(work.present, RESIDENT, away).astype(np.int8))
