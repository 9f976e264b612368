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
from moesim.training.states import States, step_traffic


@dataclass(frozen=True, slots=True)
class StateTimes:
    """Seconds that one part's states take in a step, each an estimate of one number."""

    reduce: tuple[Estimate, ...]
    gather: tuple[Estimate, ...]
    update: Estimate


def state_times(
    parameters: PartParameters,
    plan: TrainPlan,
    states: States,
    num_microbatches: int,
    kernels: KernelCost,
    fabric: Fabric,
) -> StateTimes:
    """Reduction, gathering and update of one part's parameters on one rank, over a whole step.

    Dense parameters are replicated over the context- and data-parallel ranks, experts over the expert
    data-parallel ones; both groups work one after the other on the same links.
    """
    traffic = step_traffic(states, num_microbatches)
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
        reduces.append(_times(reduction(count * states.gradient_bytes, ranks, fabric), traffic.reductions))
        if traffic.gathers:
            gather = all_gather(count * states.parameter_bytes, ranks, fabric)
            gathers.append(_times(gather, traffic.gathers))
    update = kernels.op(
        MemoryBound("optimizer", updated * (1 - states.offload_fraction) * states.update_bytes)
    )
    return StateTimes(tuple(reduces), tuple(gathers), replace(update, seconds=float(update.seconds)))


def _times(estimate: Estimate, count: int) -> Estimate:
    return replace(estimate, seconds=estimate.seconds * count)
