"""What transforms share: dropping choices, drawing others instead, telling what was done."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem
from moesim.traces.routing import RoutingTrace
from moesim.traces.synthetic import CHUNK_VALUES


def told(trace: RoutingTrace, how: str) -> RoutingTrace:
    """The trace with its evidence lowered and its source told."""
    source = f"{trace.info.source}; {how}".lstrip("; ")
    return replace(trace, info=replace(trace.info, source=source, evidence="assumed"))


def dropped(trace: RoutingTrace, drop: NDArray[np.bool_], how: str) -> RoutingTrace:
    """Trace in which the marked choices ``(tokens, layers, slots)`` are empty slots of weight 0."""
    weights = trace.gate_weights
    changed = replace(
        trace,
        expert_ids=np.where(drop, trace.empty_slot, trace.expert_ids).astype(trace.expert_ids.dtype),
        gate_weights=None if weights is None else np.where(drop, 0, weights).astype(np.float16),
    )
    return told(changed, how)


def thinned(trace: RoutingTrace, mean_experts: float, rng: np.random.Generator) -> RoutingTrace:
    """Trace with ``mean_experts`` choices a token on average, at most as many as there are.

    The first choice goes last: only where fewer than one expert works for a token is it dropped, too.
    """
    first = min(mean_experts, 1.0)
    kept = np.full(trace.top_k, (mean_experts - first) / max(1, trace.top_k - 1))
    kept[0] = first
    drop = rng.random(trace.expert_ids.shape) >= kept
    return dropped(trace, drop, f"{mean_experts:g} choices a token kept at random")


def weights_of(trace: RoutingTrace, what: str) -> NDArray[np.float32]:
    """Gate weights, 0 in empty slots.

    Raises
    ------
    InputError
        The trace has none.
    """
    if trace.gate_weights is None:
        raise InputError([Problem("gate_weights", f"the trace has none; {what} needs them")])
    return np.where(trace.expert_ids == trace.empty_slot, 0, trace.gate_weights).astype(np.float32)


def redrawn(
    trace: RoutingTrace,
    away: NDArray[np.bool_],
    allowed: NDArray[np.bool_],
    how: str,
    rng: np.random.Generator,
) -> RoutingTrace:
    """Trace in which the marked choices go to other experts, drawn by the load of their layer.

    Parameters
    ----------
    away : ndarray of bool, ``(tokens, layers, slots)``
        Choices to replace; empty slots stay empty.
    allowed : ndarray of bool, ``(tokens or 1, layers, experts)``
        Experts that may replace them. Where too few are free the slot becomes empty.
    """
    experts = trace.num_experts
    ids = np.array(trace.expert_ids)
    load = trace.counts().astype(np.float32) + 1.0
    for layer in range(trace.num_layers):
        rows = np.flatnonzero(away[:, layer].any(axis=-1))
        chunk = max(1, CHUNK_VALUES // experts)
        for start in range(0, rows.size, chunk):
            part = rows[start : start + chunk]
            chosen = np.minimum(ids[part, layer], experts).astype(np.int64)
            gone = away[part, layer] & (chosen < experts)
            free = np.ones((part.size, experts + 1), np.bool_)
            np.put_along_axis(free, chosen, False, axis=1)
            free[:, :experts] &= allowed[part if len(allowed) > 1 else 0, layer]
            times = rng.standard_exponential((part.size, experts), dtype=np.float32) / load[layer]
            times[~free[:, :experts]] = np.inf
            first = np.argsort(times, axis=1)[:, : trace.top_k]
            first = np.where(np.isinf(np.take_along_axis(times, first, axis=1)), trace.empty_slot, first)
            turn = np.cumsum(gone, axis=1) - 1
            taken = np.take_along_axis(first, np.maximum(turn, 0), axis=1)
            ids[part, layer] = np.where(gone, taken, ids[part, layer])
    changed = replace(trace, expert_ids=ids)
    weights = trace.gate_weights
    if weights is not None:
        empty = ids == trace.empty_slot
        changed = replace(changed, gate_weights=np.where(empty, 0, weights).astype(np.float16))
    return told(changed, how)
