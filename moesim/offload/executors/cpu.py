"""The CPU computes what the device does not hold (llama.cpp, kTransformers)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.offload.executors import ON_CPU, RESIDENT, Assignment, LayerWork, executors, in_order


@executors.register("cpu")
@dataclass(frozen=True)
class OnCpu:
    """Missing experts are computed by the CPU from host memory, beside the device's own.

    ``deferred``: so many of them may deliver one layer late (expert deferral of kTransformers).
    """

    deferred: Annotated[int, Field(ge=0)] = 0

    def assign(self, work: LayerWork) -> Assignment:
        """Leave what is missing to the CPU."""
        return in_order(np.where(work.present, RESIDENT, ON_CPU).astype(np.int8))
