"""What a pass costs on a machine with tiers: numbers only, made by whoever knows model and machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.engine.program import Part
from moesim.evidence import Estimate
from moesim.units import PS_PER_S

Times = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""Seconds of one expert by its tokens: ``(experts,)`` to ``(experts,)``."""


@dataclass(frozen=True, eq=False)
class Unit:
    """Something that computes experts.

    Attributes
    ----------
    seconds : callable
        One expert by its tokens. [s]
    estimate : Estimate
        Evidence; its ``seconds`` are not used.
    first_s : float
        Paid once a layer and unit that has work: launch, or hand-over to the host and back. [s]
    """

    seconds: Times
    estimate: Estimate
    first_s: float = 0.0

    def evidence(self, seconds: float) -> Estimate:
        """A duration with the evidence of this unit."""
        return replace(self.estimate, seconds=seconds)


@dataclass(frozen=True, eq=False)
class Costs:
    """Durations of everything that happens in a pass.

    Attributes
    ----------
    before, after : sequence of sequence of Part
        Per model layer on the main device: up to the gate (in a dense layer all of it), and what
        follows beside the experts (shared experts).
    moe_layers : sequence of int
        Model layers that have routed experts, in the order of the demand's layers.
    first, last : sequence of Part
        Of a pass: embedding and per-pass host work, head.
    device, cpu, pim : Unit or None
        Who computes experts.
    copy : Estimate
        One expert from host memory to the device. [s]
    disk : Estimate or None
        One expert from disk to host memory. [s]
    low_precision_fraction : float
        Bytes of the low-precision copy of an expert over those of the expert. [-]
    cpu_slowdown : float
        How much longer CPU experts take while a copy reads the same memory. [-]
    """

    before: Sequence[Sequence[Part]]
    after: Sequence[Sequence[Part]]
    moe_layers: Sequence[int]
    first: Sequence[Part]
    last: Sequence[Part]
    device: Unit
    copy: Estimate
    cpu: Unit | None = None
    pim: Unit | None = None
    disk: Estimate | None = None
    low_precision_fraction: float = 0.25
    cpu_slowdown: float = 1.0

    @property
    def num_layers(self) -> int:
        """Model layers. [-]"""
        return len(self.before)


def parts_ps(parts: Sequence[Part]) -> int:
    """Length of a list of parts, each rounded as the engine rounds it. [ps]"""
    # half to even like the engine's own rounding of arrays
    return sum(round(float(part.estimate.seconds) * PS_PER_S) for part in parts)
