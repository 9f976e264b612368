"""What keeping states in step costs: reducing gradients, gathering parameters, the optimizer's update."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Estimate
from moesim.kernels.cost import KernelCost
from moesim.model.ops import MemoryBound
from moesim.network.collectives.group import all_gather, all_reduce, reduce_scatter
from moesim.network.crowding import RING_SMS_BETWEEN, RING_SMS_INSIDE, PortUse, ring_bytes
from moesim.network.fabric import Fabric
from moesim.parallel.train_plan import TrainPlan
from moesim.training.crowd import Crowd
from moesim.training.layout import PartParameters
from moesim.training.states import SHARED_OUT, States, step_traffic

MOST_TAKEN = 0.9
"""Of a device's multiprocessors or memory by collectives: what is beside them goes on."""


@dataclass(frozen=True, slots=True)
class StateTimes:
    """Seconds that one part's states take, each an estimate of one number.

    Attributes
    ----------
    reduce, gather : tuple of Estimate
        Once a step: gradients of all microbatches, parameters after their update.
    reduce_each, gather_each : tuple of Estimate
        Once a backward pass, and once any pass: where gradients or weights are sharded.
    update : Estimate
        The optimizer.
    crowd : Crowd or None
        What ``reduce_each`` and ``gather_each`` take from a pass beside them.
    """

    reduce: tuple[Estimate, ...]
    gather: tuple[Estimate, ...]
    reduce_each: tuple[Estimate, ...]
    gather_each: tuple[Estimate, ...]
    update: Estimate
    crowd: Crowd | None = None


def state_times(
    parameters: PartParameters,
    plan: TrainPlan,
    states: States,
    kernels: KernelCost,
    fabric: Fabric,
    num_units: int,
) -> StateTimes:
    """Reduction, gathering and update of one part's parameters on one rank.

    Dense parameters are replicated over the context- and data-parallel ranks, experts over the expert
    data-parallel ones; both groups work one after the other on the same links.
    """
    traffic = step_traffic(states)
    reduces: list[Estimate] = []
    moved = _Moved(kernels, fabric, num_units)
    gathers: list[Estimate] = []
    updated = 0.0
    groups: list[tuple[float, NDArray[np.int64]]] = [
        (parameters.dense, plan.dp_ranks()),
        (parameters.experts, plan.edp_ranks()),
    ]
    for count, ranks in groups:
        updated += count * states.share("optimizer", len(ranks))
        if len(ranks) == 1 or not count:
            continue
        reduction = reduce_scatter if traffic.sharded else all_reduce
        reduces.append(reduction(count * states.gradient_bytes, ranks, fabric))
        if traffic.gathers:
            gathers.append(all_gather(count * states.parameter_bytes, ranks, fabric))
        if "gradients" in SHARED_OUT[states.sharding]:
            moved.add(count * states.gradient_bytes, ranks, reduces[-1])
        if "weights" in SHARED_OUT[states.sharding]:
            moved.add(count * states.parameter_bytes, ranks, gathers[-1])
    update = kernels.op(
        MemoryBound("optimizer", updated * (1 - states.offload_fraction) * states.update_bytes)
    )
    by_pass = {what: what in SHARED_OUT[states.sharding] for what in ("gradients", "weights")}
    return StateTimes(
        () if by_pass["gradients"] else tuple(reduces),
        () if by_pass["weights"] else tuple(gathers),
        tuple(reduces) if by_pass["gradients"] else (),
        tuple(gathers) if by_pass["weights"] else (),
        replace(update, seconds=float(update.seconds)),
        moved.crowd(),
    )


@dataclass
class _Moved:
    """Sums over the collectives beside a pass: bytes through ports and memory, multiprocessors, seconds."""

    kernels: KernelCost
    fabric: Fabric
    num_units: int
    scale_up_bytes: float = 0.0
    scale_out_bytes: float = 0.0
    memory_s: float = 0.0
    sms_s: float = 0.0
    seconds: float = 0.0

    def add(self, payload_bytes: float, ranks: NDArray[np.int64], estimate: Estimate) -> None:
        """One more collective; each rank writes what it gets and reads what it sends."""
        up, out = ring_bytes(payload_bytes, ranks, self.fabric)
        inside = self.fabric.is_one_domain(ranks)
        seconds = float(estimate.seconds)
        self.scale_up_bytes += up
        self.scale_out_bytes += out
        self.memory_s += float(self.kernels.op(MemoryBound("collective", 2 * payload_bytes)).seconds)
        self.sms_s += seconds * (RING_SMS_INSIDE if inside else RING_SMS_BETWEEN)
        self.seconds += seconds

    def crowd(self) -> Crowd | None:
        """What they take while they last; None where there are none."""
        if not self.seconds:
            return None
        use = PortUse.of(self.scale_up_bytes, self.scale_out_bytes, self.seconds, self.fabric)
        sms = min(self.sms_s / self.seconds / self.num_units, MOST_TAKEN)
        return Crowd(use, sms, min(self.memory_s / self.seconds, MOST_TAKEN))
