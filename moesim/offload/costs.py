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


@dataclass(frozen=True, slots=True)
class Pieces:
    """How an expert travels: each piece is a copy of its own, and between two of them the link may turn.

    Attributes
    ----------
    shares : tuple of float
        Of the expert's bytes, in the order of travel; they add up to 1. [-]
    start_s : float
        What each piece pays again of the time of a whole copy: the link's latency. [s]
    computed_apart : bool
        The device works with each piece as it arrives (matrices); else it needs them all (bit planes).
    planes : bool
        The first piece alone is the expert in low precision, and stays as the first part of the whole.
    """

    shares: tuple[float, ...] = (1.0,)
    start_s: float = 0.0
    computed_apart: bool = False
    planes: bool = False


@dataclass(frozen=True, eq=False)
class FarMemory:
    """Memory behind the host's own (CXL).

    Attributes
    ----------
    read : Estimate
        One expert into host memory. [s]
    copy : Estimate
        One expert straight to the device. [s]
    cpu : Unit or None
        CPU experts whose weights lie there.
    """

    read: Estimate
    copy: Estimate
    cpu: Unit | None = None


@dataclass(frozen=True, eq=False)
class Attention:
    """Attention of a layer off the main device: ``parts`` on ``lane``, then ``rest`` on the device."""

    lane: str
    parts: Sequence[Part]
    rest: Sequence[Part]


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
        One expert from host memory to the device, in one piece. [s]
    pieces : Pieces
        How an expert is cut for its way to the device.
    disk : Estimate or None
        One expert from disk to host memory. [s]
    cxl : FarMemory or None
        Memory behind the host's own that link and CPU can read where it is.
    low_precision_fraction : float
        Bytes of the low-precision copy of an expert over those of the expert. [-]
    cpu_slowdown : float
        How much longer CPU experts take while a copy reads the same memory. [-]
    pim_shares_memory : bool
        Near-memory units sit in the device's memory and compute only what it holds.
    cpu_queues : int
        Sockets that compute whole experts each, expert ``i`` on socket ``i`` modulo their number;
        1 where all sockets share every expert. [-]
    attention : sequence of Attention or None
        Per model layer, where attention over the cached tokens is computed elsewhere; empty for nowhere.
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
    pieces: Pieces = Pieces()
    cxl: FarMemory | None = None
    pim_shares_memory: bool = False
    cpu_queues: int = 1
    attention: Sequence[Attention | None] = ()

    @property
    def num_layers(self) -> int:
        """Model layers. [-]"""
        return len(self.before)


def parts_ps(parts: Sequence[Part]) -> int:
    """Length of a list of parts, each rounded as the engine rounds it. [ps]"""
    # half to even like the engine's own rounding of arrays
    return sum(round(float(part.estimate.seconds) * PS_PER_S) for part in parts)
