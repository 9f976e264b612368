"""Traces as the arrays that engines replay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.traces.description import PREFILL
from moesim.traces.interchange import one_problem
from moesim.traces.routing import ExpertCounts, RoutingTrace


def routing_only(trace: RoutingTrace | ExpertCounts) -> RoutingTrace:
    """The trace, if it knows single tokens.

    Raises
    ------
    InputError
        It holds counts only.
    """
    if not isinstance(trace, RoutingTrace):
        raise one_problem("trace", "holds counts only; this format needs the experts of each token")
    return trace


def full_ids(trace: RoutingTrace | ExpertCounts, what: str) -> RoutingTrace:
    """The trace, if every slot holds an expert.

    Raises
    ------
    InputError
        An empty slot, which the format cannot say.
    """
    trace = routing_only(trace)
    if bool((trace.expert_ids == trace.empty_slot).any()):
        raise one_problem("expert_ids", f"has empty slots, which {what} cannot hold")
    return trace


def request_arrays(
    trace: RoutingTrace | ExpertCounts, dtype: np.dtype[Any]
) -> Iterator[tuple[NDArray[Any], int]]:
    """Ids of each request ``(tokens, hidden layers, slots)`` with zeros for dense layers, and prompt tokens.

    The number of hidden layers is taken as one more than the last traced layer.
    """
    trace = full_ids(trace, "this format")
    layers = list(trace.info.layer_indices)
    bounds = [*trace.request_starts().tolist(), trace.num_tokens]
    for start, stop in zip(bounds, bounds[1:], strict=False):
        whole = np.zeros((stop - start, layers[-1] + 1, trace.top_k), dtype)
        whole[:, layers] = trace.expert_ids[start:stop]
        yield whole, int((trace.phase[start:stop] == PREFILL).sum())
