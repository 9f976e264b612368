"""Missing experts in the precision that their gate weight deserves (HOBBIT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from moesim.offload.executors import (
    LOAD,
    LOAD_LOW,
    RESIDENT,
    SKIP,
    Assignment,
    LayerWork,
    executors,
    in_order,
)

Share = Annotated[float, Field(ge=0, le=1)]


@executors.register("mixed_precision")
@dataclass(frozen=True)
class MixedPrecision:
    """A missing expert comes whole, in low precision, or not at all, by the gate share ranked before it.

    HOBBIT (arXiv 2411.01433): up to ``high_share`` whole, up to ``low_share`` in low precision, else
    left out.
    """

    high_share: Share = 0.6
    low_share: Share = 0.9
    deferred: ClassVar[int] = 0

    def assign(self, work: LayerWork) -> Assignment:
        """By cumulative gate share."""
        order = np.argsort(-work.gate_share, kind="stable")
        before = np.empty_like(work.gate_share)
        before[order] = np.cumsum(work.gate_share[order]) - work.gate_share[order]
        away = np.where(before <= self.high_share, LOAD, np.where(before <= self.low_share, LOAD_LOW, SKIP))
        return in_order(np.where(work.present, RESIDENT, away).astype(np.int8))
