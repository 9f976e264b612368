"""Tiles of rows computed as they arrive, by one kernel whose multiprocessors are divided (Comet)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from moesim.engine.program import Instruction
from moesim.evidence import Estimate
from moesim.training.overlaps.base import Triple, longest, stretched, triple_overlaps

SM_STEP = 2
"""Shares of multiprocessors that are tried: every second number."""


@triple_overlaps.register("fine_grained")
@dataclass(frozen=True)
class FineGrained:
    """Two fused kernels: dispatch beside the first product, the last product beside combine.

    In each kernel some multiprocessors only communicate and the others only compute. Products slow down with
    the multiprocessors they lack, an exchange with those it lacks to fill its links. What is not hidden is
    the first tile of a dispatch or the last one of a combine, and the work of the shorter side's tile.

    Attributes
    ----------
    communicating_sms : int or None
        Multiprocessors that communicate; None: the best for each kernel. [-]
    tiles : int
        Tiles that a kernel's rows (first) or columns (second) are cut into. [-]
    first_fraction : float
        Part of the experts' work that is the first product: two thirds with a gate, one half without. [-]

    References
    ----------
    .. [1] Zhang et al., "Comet: Fine-grained Computation-communication Overlapping for Mixture-of-Experts,"
       arXiv:2502.19811, section 3.
    """

    reads_counts: ClassVar[bool] = True
    communicating_sms: Annotated[int, Field(ge=1)] | None = None
    tiles: Annotated[int, Field(ge=1)] = 16
    first_fraction: Annotated[float, Field(gt=0, lt=1)] = 2 / 3

    def launch(self, triple: Triple) -> list[Instruction]:
        """Two kernels on the compute stream."""
        experts = triple.experts_s(1.0)
        first = self._kernel(triple, triple.dispatch_s(1.0), stretched(experts, self.first_fraction))
        second = self._kernel(triple, triple.combine_s(1.0), stretched(experts, 1 - self.first_fraction))
        return [triple.fused("dispatch_experts", first), triple.fused("experts_combine", second)]

    def _kernel(self, triple: Triple, exchange: Estimate, compute: Estimate) -> Estimate:
        """Time of one fused kernel with the given, or the best, number of communicating processors."""
        if self.communicating_sms is not None:
            sms = np.array([min(self.communicating_sms, triple.num_sms - 1)])
        else:
            sms = np.arange(SM_STEP, triple.num_sms, SM_STEP)
        moving = np.outer(np.maximum(1.0, triple.exchange_sms / sms), exchange.seconds)
        computing = np.outer(triple.num_sms / (triple.num_sms - sms), compute.seconds)
        # one tile of the shorter side lies before or after everything else
        seconds = np.maximum(moving, computing) + np.minimum(moving, computing) / self.tiles
        best = seconds[seconds.max(axis=1).argmin()]
        shape = np.broadcast_shapes(np.shape(exchange.seconds), np.shape(compute.seconds))
        return replace(longest(exchange, compute), seconds=best.reshape(shape))
