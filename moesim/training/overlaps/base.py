"""A layer's dispatch, experts and combine as three time curves, and what a policy makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesim.engine import Program, durations_ps, to_seconds, vector
from moesim.engine.program import Instruction, Meet, Part, RankMask, Run, Wait
from moesim.evidence import Estimate
from moesim.registry import Registry
from moesim.steps.block import COMM, COMPUTE, STREAMS

Curve: TypeAlias = Callable[[float], Estimate]
"""Time of a fraction of the rows, fixed costs included; seconds are a scalar or ``(num_ranks,)``."""

Floats: TypeAlias = NDArray[np.float64]

LENT = "lent to exchanges"
"""Part of a breakdown: what work misses while an exchange uses multiprocessors or memory."""


@dataclass(frozen=True, eq=False)
class Triple:
    """Dispatch, experts and combine of one layer and one pass.

    Attributes
    ----------
    dispatch_s, experts_s, combine_s : Curve
        Each alone on the device: exchanges with all the multiprocessors they ask for, experts with all.
    group : ndarray of int, ``(num_ranks,)``
        Who exchanges with whom, as in :class:`moesim.engine.program.Meet`.
    layer : int or None
        For reports.
    ranks : ndarray of bool, ``(num_ranks,)``, or None
        Who takes part; None: all.
    num_sms, exchange_sms : int
        Multiprocessors of a device, and those with which an exchange fills its links. [-]
    suffix : str
        Put after names, as ``_backward``.
    """

    dispatch_s: Curve
    experts_s: Curve
    combine_s: Curve
    group: NDArray[np.int64]
    layer: int | None = None
    ranks: RankMask | None = None
    num_sms: int = 132
    exchange_sms: int = 20
    suffix: str = ""

    def dispatch(self, fraction: float = 1.0) -> list[Instruction]:
        """A fraction of the rows travels to its experts."""
        return [self._meet("dispatch", self.dispatch_s(fraction))]

    def experts(self, fraction: float = 1.0, beside: Sequence[Estimate] = ()) -> list[Instruction]:
        """A fraction of the rows is computed, without the multiprocessors of the exchanges beside it."""
        whole = self.experts_s(fraction)
        parts = [Part(f"experts{self.suffix}", "compute", whole)]
        if beside:
            parts.append(Part(LENT, "compute", self._lent(whole, beside)))
        return [Run(COMPUTE, tuple(parts), layer=self.layer, ranks=self.ranks)]

    def _lent(self, experts: Estimate, beside: Sequence[Estimate]) -> Estimate:
        """What products miss while exchanges last, or all the time where these last longer."""
        share = min(self.exchange_sms / self.num_sms, 0.5)
        exchanged = np.sum([np.max(one.seconds) for one in beside])
        longest_s = np.asarray(experts.seconds, np.float64) / (1.0 - share)
        return replace(beside[0], seconds=share * np.minimum(exchanged, longest_s))

    def combine(self, fraction: float = 1.0) -> list[Instruction]:
        """A fraction of the rows travels back."""
        return [self._meet("combine", self.combine_s(fraction))]

    def computed(self) -> list[Instruction]:
        """Later exchanges wait for what was launched on the compute stream."""
        return [Wait(COMM, on=COMPUTE, ranks=self.ranks)]

    def arrived(self) -> list[Instruction]:
        """Later work waits for the exchanges launched so far."""
        return [Wait(COMPUTE, on=COMM, ranks=self.ranks)]

    def fused(self, name: str, estimate: Estimate) -> Instruction:
        """One kernel that computes and exchanges, on the compute stream."""
        part = Part(f"{name}{self.suffix}", "compute", estimate)
        return Meet(COMPUTE, self.group, (part,), layer=self.layer)

    def _meet(self, name: str, estimate: Estimate) -> Instruction:
        part = Part(f"{name}{self.suffix}", "all_to_all", estimate)
        return Meet(COMM, self.group, (part,), layer=self.layer)


class TripleOverlap(Protocol):
    """A policy. Before it, rows lie ready on the compute stream; after it, that stream holds the result.

    Attributes
    ----------
    reads_counts : bool
        A dropless exchange makes the host wait for token counts before it launches the layer.
    """

    reads_counts: ClassVar[bool]

    def launch(self, triple: Triple) -> list[Instruction]:
        """Instructions on the streams of :mod:`moesim.steps.block`."""
        ...


triple_overlaps: Registry[TripleOverlap] = Registry("expert_overlap", "moesim.training.overlaps")


def span_s(policy: TripleOverlap, triple: Triple) -> Floats:
    """Time from rows ready to result, alone on the machine, ``(num_ranks,)``. [s]"""
    return run_s(policy.launch(triple), len(triple.group))


def run_s(instructions: Sequence[Instruction], num_ranks: int) -> Floats:
    """End of the compute stream after these instructions, ``(num_ranks,)``. [s]"""
    program = Program(num_ranks, STREAMS, tuple(instructions))
    clocks_ps = vector.run(vector.compile(program), durations_ps(program)).clocks_ps
    return np.asarray(to_seconds(clocks_ps[STREAMS.index(COMPUTE), 0]))


def longest(one: Estimate, other: Estimate) -> Estimate:
    """Rank by rank the longer; the evidence is that of the one that is longer in the worst case."""
    lead = one if np.max(one.seconds) >= np.max(other.seconds) else other
    return replace(lead, seconds=np.maximum(one.seconds, other.seconds))


def stretched(estimate: Estimate, ratio: float, extra_s: float | Floats = 0.0) -> Estimate:
    """The estimate times a ratio, and something more."""
    return replace(estimate, seconds=np.asarray(estimate.seconds, np.float64) * ratio + extra_s)
