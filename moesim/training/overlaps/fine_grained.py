"""Tiles of rows computed as they arrive, by one kernel whose multiprocessors are divided (Comet)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

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
            return self._with(triple, exchange, compute, min(self.communicating_sms, triple.num_sms - 1))
        return quickest(
            lambda sms: self._with(triple, exchange, compute, sms), range(SM_STEP, triple.num_sms, SM_STEP)
        )

    def _with(self, triple: Triple, exchange: Estimate, compute: Estimate, sms: int) -> Estimate:
        moving = stretched(exchange, max(1.0, triple.exchange_sms / sms))
        computing = stretched(compute, triple.num_sms / (triple.num_sms - sms))
        # one tile of the shorter side lies before or after everything else
        edge = np.minimum(moving.seconds, computing.seconds) / self.tiles
        return stretched(longest(moving, computing), 1.0, edge)


def quickest(time: Callable[[int], Estimate], choices: range) -> Estimate:
    """Least of the longest ranks' times over the choices."""
    return min((time(choice) for choice in choices), key=lambda one: float(np.max(one.seconds)))
