"""Dispatch, experts and combine of a layer under an overlap policy, in every pass of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from moesim.engine.program import Instruction, Meet, Part, Run
from moesim.evidence import Estimate
from moesim.network.exchanges.base import Phase, exchange_sms
from moesim.steps.block import COMPUTE
from moesim.training.backward import Passes
from moesim.training.items import Overlapped
from moesim.training.overlaps.base import Curve, Triple, TripleOverlap, run_s

if TYPE_CHECKING:
    from moesim.training.moe_work import MoeWork


@dataclass(frozen=True)
class Layer:
    """One layer's three curves: what a fraction of the rows takes in each pass."""

    moe: MoeWork
    row: int

    def overlapped(self, policy: TripleOverlap) -> Overlapped:
        """The three under a policy: forward, the whole backward, and its half that makes input gradients.

        In the backward pass gradients take the way of the tokens back to the experts, and from there home.
        """
        whole = self.moe.experts_of(self.row)
        forward = self._launched(policy, lambda p: p.forward, "dispatch", "combine")
        backward = self._launched(policy, _both, "combine", "dispatch")
        by_input = self._launched(policy, lambda p: p.input_gradient, "combine", "dispatch")
        weight = whole.passes.weight_gradient
        options = self.moe.outer.options
        return Overlapped(
            forward=forward,
            backward=backward,
            input_gradient=by_input,
            weight_gradient=() if weight is None else (Part("experts", "compute", weight),),
            activation=whole.activation,
            forward_s=float(run_s(forward, self._num_ranks).max()),
            host_waits=options.host_reads_counts and options.capacity_factor is None and policy.reads_counts,
            use=self.moe.use,
        )

    @property
    def _num_ranks(self) -> int:
        return self.moe.outer.num_draws * self.moe.outer.plan.ep

    def _launched(
        self,
        policy: TripleOverlap,
        passes: Callable[[Passes], Estimate],
        there: Phase,
        back: Phase,
    ) -> tuple[Instruction, ...]:
        outer = self.moe.outer
        triple = Triple(
            dispatch_s=self._exchange(there, "dispatch"),
            experts_s=lambda fraction: passes(self.moe.at(fraction).experts_of(self.row).passes),
            combine_s=self._exchange(back, "combine"),
            group=np.repeat(np.arange(outer.num_draws), outer.plan.ep),
            num_sms=outer.num_units,
            exchange_sms=min(exchange_sms(outer.fabric), outer.num_units),
        )
        return tuple(policy.launch(triple))

    def _exchange(self, phase: Phase, way: Phase) -> Curve:
        """An exchange of a fraction of the rows, with what ranks that share an expert's width add to it.

        ``phase`` says who sends what, ``way`` whether it leads to the experts.
        """

        def seconds(fraction: float) -> Estimate:
            part = self.moe.at(fraction)
            exchange = part.exchange_of(phase, self.row)
            if self.moe.outer.plan.etp == 1:
                return exchange
            return replace(exchange, seconds=exchange.seconds + part.width_exchange(way).seconds)

        return seconds


def _both(passes: Passes) -> Estimate:
    """Gradients of the input and of the weights, one after the other."""
    weight = passes.weight_gradient
    if weight is None:
        return passes.input_gradient
    return replace(passes.input_gradient, seconds=passes.input_gradient.seconds + weight.seconds)


def num_launches(instructions: tuple[Instruction, ...]) -> int:
    """Kernels of the compute stream."""
    return sum(isinstance(i, Run | Meet) and i.stream == COMPUTE for i in instructions)
