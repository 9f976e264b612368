"""Where the weights of an expert lie, and how they get from there to the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Estimate
from moesim.memory.caches.policies.base import known_counts, most_used
from moesim.memory.demand import Demand
from moesim.offload.costs import Costs
from moesim.offload.lanes import CXL, DISK, LINK, Mark, one
from moesim.offload.state import Offload, State

COPY = "copy"


def far_experts(demand: Demand, costs: Costs, offload: Offload) -> NDArray[np.bool_] | None:
    """Experts that the memory behind the host's holds, ``(layers, experts)``.

    The most used that the host lacks; where the host's cache changes its contents, that memory keeps a
    copy of what is in the cache too.
    """
    if costs.cxl is None or offload.host_slots is None or offload.host_cache is None:
        return None
    if offload.cxl_slots is None:
        return np.ones((demand.num_layers, demand.num_experts), np.bool_)
    counts = known_counts(demand)
    if not offload.host_cache.bypasses:
        return most_used(counts, offload.cxl_slots)
    near = most_used(counts, offload.host_slots)
    return most_used(counts, offload.host_slots + offload.cxl_slots) & ~near


def reads_far(state: State, index: int, expert: int) -> bool:
    """Whether an expert is read where it lies behind the host's memory, instead of being brought in first."""
    host = state.host
    if host is None or state.far is None or not host.bypasses:
        return False
    return bool(state.far[index, expert] and host.slot_of[index, expert] < 0)


def fetch_s(state: State, index: int, expert: int) -> float:
    """Time before an expert is in host memory, or can be read where it is. [s]"""
    host, costs = state.host, state.costs
    if host is None or host.slot_of[index, expert] >= 0 or reads_far(state, index, expert):
        return 0.0
    if state.far is not None and state.far[index, expert] and costs.cxl is not None:
        return float(costs.cxl.read.seconds)
    return 0.0 if costs.disk is None else float(costs.disk.seconds)


def to_host(state: State, index: int, expert: int, after: Mark) -> Mark:
    """When an expert can be read by link and CPU: brought into host memory if need be."""
    host, costs, lanes = state.host, state.costs, state.lanes
    if host is None:
        return after
    state.tally.host_lookups += 1
    if host.slot_of[index, expert] >= 0:
        return after
    if state.far is not None and state.far[index, expert] and costs.cxl is not None:
        state.tally.far_reads += 1
        if host.bypasses:
            return after
        lane, read, name = CXL, costs.cxl.read, "expert from CXL memory"
    elif costs.disk is not None:
        state.tally.disk_reads += 1
        lane, read, name = DISK, costs.disk, "expert from disk"
    else:
        return after
    host.insert(index, expert, np.array([expert], np.int32))
    lanes.wait(lane, after)
    lanes.run(lane, one(name, COPY, read), None)
    return lanes.mark(lane)


def pieces_s(state: State, far: bool, pieces: Sequence[int]) -> float:
    """Time on the link of some pieces of an expert. [s]"""
    cut = state.costs.pieces
    whole = _whole(state, far)
    return sum(_piece_s(whole, cut.shares[k], cut.start_s) for k in pieces)


def to_device(
    state: State,
    index: int,
    expert: int,
    pieces: Sequence[int],
    *,
    after: Mark,
    layer: int | None,
    name: str,
    size: float = 1.0,
) -> list[Mark]:
    """Pieces of an expert over the link, from wherever it lies; when each has arrived.

    ``size`` scales the bytes of a copy in another precision, which travels whole.
    """
    lanes, cut = state.lanes, state.costs.pieces
    far = reads_far(state, index, expert)
    lanes.wait(LINK, to_host(state, index, expert, after))
    whole = _whole(state, far)
    arrived = []
    for piece in pieces:
        share = size if len(cut.shares) == 1 or size != 1.0 else cut.shares[piece]
        if share == 1.0:
            estimate = whole
        else:
            seconds = _piece_s(whole, share, cut.start_s)
            estimate = Estimate(seconds, whole.family, whole.grade, whole.sigma)
        state.tally.moved += share
        parts = one(name, COPY, estimate)
        if far:
            lanes.wait(CXL, after)
            lanes.run_together((LINK, CXL), parts, layer)
        else:
            lanes.run(LINK, parts, layer)
        arrived.append(lanes.mark(LINK))
    return arrived


def _whole(state: State, far: bool) -> Estimate:
    costs = state.costs
    return costs.cxl.copy if far and costs.cxl is not None else costs.copy


def _piece_s(whole: Estimate, share: float, start_s: float) -> float:
    seconds = float(whole.seconds)
    return seconds if share == 1.0 else start_s + (seconds - start_s) * share
