"""A model's passes on a machine that holds only some of its experts near.

The driver walks pass by pass and layer by layer. When a gate has spoken it looks the experts up,
lets the executor decide who computes what, puts copies on the link, and lets the prefetcher order
more; copies that were ordered ahead start whenever the link is idle and give way to what is needed
now. All clocks are integer picoseconds on in-order lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.engine.program import Program
from moesim.evidence import rng_for
from moesim.memory.caches import ExpertCache
from moesim.memory.caches.policies.base import known_counts, most_used
from moesim.memory.demand import Demand
from moesim.offload.costs import Attention, Costs, parts_ps
from moesim.offload.lanes import DEVICE, Lanes, one
from moesim.offload.layer import moe_layer
from moesim.offload.sources import far_experts
from moesim.offload.state import Offload, State, Tally
from moesim.units import PS_PER_S


@dataclass(frozen=True, eq=False)
class OffloadRun:
    """Outcome.

    Attributes
    ----------
    pass_ends_ps : ndarray of int64, ``(passes,)``
        When each pass is through. [ps]
    busy_ps : dict of int
        Time that each lane worked. [ps]
    tally : Tally
        Over all passes.
    program : Program or None
        The recorded passes, as the event interpreter runs them.
    recorded_from : int
        First recorded pass.
    """

    pass_ends_ps: NDArray[np.int64]
    busy_ps: dict[str, int]
    tally: Tally
    program: Program | None
    recorded_from: int

    def pass_s(self, skip: int = 0) -> float:
        """Mean time of a pass after the first ``skip``. [s]"""
        begin = int(self.pass_ends_ps[skip - 1]) if skip else 0
        return float((self.pass_ends_ps[-1] - begin) / PS_PER_S / (self.pass_ends_ps.size - skip))


def simulate(
    demand: Demand,
    costs: Costs,
    offload: Offload,
    *,
    seed: int = 0,
    record_passes: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> OffloadRun:
    """Run every pass of a demand.

    Parameters
    ----------
    demand : Demand
        One row a MoE layer.
    costs : Costs
        Durations.
    offload : Offload
        Policies and sizes.
    record_passes : int
        The last so many passes are recorded as a program; before them all lanes meet once.
    progress : callable, optional
        Told passes done and in all.
    """
    served = demand.pooled() if offload.pooled else demand
    slots = np.array([offload.slots.sum()]) if offload.pooled else offload.slots
    held = most_used(known_counts(served), slots) if offload.filled else None
    cache = ExpertCache(offload.cache, served, slots, rng_for(seed, "memory/cache"), held)
    host = None
    if offload.host_cache is not None and offload.host_slots is not None:
        host = ExpertCache(offload.host_cache, demand, offload.host_slots, rng_for(seed, "memory/host"))
    predictor = offload.prefetcher.predictor(demand, rng_for(seed, "offload/prefetch"))
    state = State(demand, costs, offload, cache, host, predictor, far=far_experts(demand, costs, offload))
    index_of = {layer: index for index, layer in enumerate(costs.moe_layers)}
    lengths = [parts_ps(parts) for parts in costs.before]
    first = tuple(costs.first)
    if offload.prefetcher.pass_cost_s:
        first += one("predictor", "compute", costs.device.evidence(offload.prefetcher.pass_cost_s))
    first_ps, last_ps = parts_ps(first), parts_ps(costs.last)
    ends = np.zeros(demand.num_passes, np.int64)
    begin = max(0, demand.num_passes - record_passes) if record_passes else demand.num_passes
    lanes = state.lanes
    for at in range(demand.num_passes):
        if at == begin:
            lanes.start_recording()
        if demand.new_sequence[at]:
            cache.ranking.begin_sequence()
        lanes.run(DEVICE, first, None, first_ps)
        for layer in range(costs.num_layers):
            lanes.run(DEVICE, costs.before[layer], layer, lengths[layer])
            if costs.attention:
                _attend(lanes, costs.attention[layer], layer)
            if layer in index_of:
                moe_layer(state, at, index_of[layer], layer)
        if state.late is not None:
            lanes.wait(DEVICE, state.late)
            state.late = None
        lanes.run(DEVICE, costs.last, None, last_ps)
        ends[at] = lanes.clock[DEVICE]
        if progress is not None:
            progress(at + 1, demand.num_passes)
    program = lanes.program() if record_passes else None
    return OffloadRun(ends, dict(lanes.busy), state.tally, program, begin)


def _attend(lanes: Lanes, attention: Attention | None, layer: int) -> None:
    """Queries to where the cache lies, the result back, and the rest of the layer's attention."""
    if attention is None:
        return
    lanes.wait(attention.lane, lanes.mark(DEVICE))
    lanes.run(attention.lane, attention.parts, layer)
    lanes.wait(DEVICE, lanes.mark(attention.lane))
    lanes.run(DEVICE, attention.rest, layer)
