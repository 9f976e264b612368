"""First come, first served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.offload.batchers import Batches, Routes, batchers


@batchers.register("arrival")
@dataclass(frozen=True)
class Arrival:
    """Samples share a pass in the order in which they came."""

    pool: Annotated[int, Field(ge=1)] = 1

    def batches(self, routes: Routes, size: int) -> Batches:
        """Consecutive samples."""
        count = len(routes)
        return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
