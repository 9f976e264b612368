"""What keeping states in step costs: reducing gradients, gathering parameters, the optimizer's update."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Estimate
from moesim.kernels.cost import KernelCost
from moesim.model.ops import MemoryBound
from moesim.network.collectives.group import all_gather, all_reduce, reduce_scatter
from moesim.network.fabric import Fabric
from moesim.parallel.train_plan import TrainPlan
from moesim.training.layout import PartParameters
from moesim.training.states import SHARED_OUT, States, step_traffic


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
    """

    reduce: tuple[Estimate, ...]
    gather: tuple[Estimate, ...]
    reduce_each: tuple[Estimate, ...]
    gather_each: tuple[Estimate, ...]
    update: Estimate


def state_times(
    parameters: PartParameters,
    plan: TrainPlan,
    states: States,
    kernels: KernelCost,
    fabric: Fabric,
) -> StateTimes:
    """Reduction, gathering and update of one part's parameters on one rank.

    Dense parameters are replicated over the context- and data-parallel ranks, experts over the expert
    data-parallel ones; both groups work one after the other on the same links.
    """
    traffic = step_traffic(states)
    reduces: list[Estimate] = []
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
    )
