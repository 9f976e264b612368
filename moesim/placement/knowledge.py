"""What methods need to know of a trace beside its loads, counted only when a method asks for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from moesim.placement.placed import Floats
from moesim.traces import RoutingTrace
from moesim.traces.shifts import co_activation

SEEN_BATCHES, SEEN_BATCH_TOKENS = 16, 64
"""Batches that methods may look at, and tokens of each."""
TRAFFIC_PARTS = ("batch_loads", "transitions", "co_activation")


def traffic_parts(
    trace: RoutingTrace,
    needs: Iterable[str],
    rng: np.random.Generator,
    *,
    batch_tokens: int = SEEN_BATCH_TOKENS,
    num_batches: int = SEEN_BATCHES,
    sampling: Literal["scattered", "contiguous"] = "scattered",
) -> dict[str, Any]:
    """Arrays of a problem by name, of the fit part of a trace.

    Parameters
    ----------
    trace : RoutingTrace
        What the placement may look at.
    needs : iterable of str
        Names among :data:`TRAFFIC_PARTS`; others are not of the traffic and passed over.
    rng : numpy.random.Generator
        Source of the batches.
    batch_tokens, num_batches, sampling
        Of the batches, as of :meth:`~moesim.traces.RoutingTrace.batches`.
    """
    made: dict[str, Floats] = {}
    wanted = set(needs)
    if "batch_loads" in wanted:
        batches = trace.batches(batch_tokens, num_batches, rng, sampling=sampling)
        made["batch_loads"] = batches.astype(np.float64)
    if "transitions" in wanted:
        made["transitions"] = trace.transitions().astype(np.float64)
    if "co_activation" in wanted:
        made["co_activation"] = co_activation(trace).astype(np.float64)
    return made


def hops(num_ranks: int, ranks_per_node: int | None) -> Floats:
    """Cost of a token between ranks, ``(ranks, ranks)``: 0 to itself, 1 in a node, 2 between nodes. [-]"""
    node = np.arange(num_ranks) // (ranks_per_node or num_ranks)
    cost = np.where(node[:, None] != node[None, :], 2.0, 1.0)
    np.fill_diagonal(cost, 0.0)
    return cost
