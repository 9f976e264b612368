"""Times of one weight shape tabulated over rows: for callers that ask one at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moesim.errors import InputError
from moesim.evidence import Estimate
from moesim.kernels.cost import KernelCost
from moesim.model.ops import Gemm


@dataclass(frozen=True, slots=True)
class GemmLookup:
    """``T(rows)`` of one weight shape, every whole number of rows up to a limit.

    Attributes
    ----------
    estimate : Estimate
        Evidence, with ``seconds[rows]``.
    table : list of float
        The same seconds as plain numbers. [s]
    """

    estimate: Estimate
    table: list[float]

    @classmethod
    def of(cls, cost: KernelCost, op: Gemm, *, most_rows: int) -> GemmLookup:
        """Tabulated with one vectorised call; ``op.rows`` is ignored."""
        estimate = cost.op(replace(op, rows=np.arange(most_rows + 1, dtype=np.float64)))
        return cls(estimate, np.asarray(estimate.seconds, dtype=np.float64).tolist())

    def seconds(self, rows: int) -> float:
        """Time of a whole number of rows. [s]

        Raises
        ------
        InputError
            More rows than were tabulated, or fewer than none.
        """
        if not 0 <= rows < len(self.table):
            raise InputError.at("rows", rows, f"0 to {len(self.table) - 1}, which were tabulated")
        return self.table[rows]
