"""Parts and unions of traces: new traces with the same meaning of every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem
from moesim.traces.description import id_dtype
from moesim.traces.routing import ExpertIds, RoutingTrace


def merge(traces: Sequence[RoutingTrace], *, domains: Sequence[str] | None = None) -> RoutingTrace:
    """One trace with the requests of all, after each other.

    Parameters
    ----------
    traces : sequence of RoutingTrace
        Of equal layers, experts and slots.
    domains : sequence of str, optional
        One name a trace, which replaces its own domains.

    Raises
    ------
    InputError
        No trace, different shapes, or not one domain a trace.

    Notes
    -----
    Steps are shifted so that no step holds rows of two traces. Gate weights are kept where all have
    them. The evidence is the weakest of all.
    """
    if not traces:
        raise InputError([Problem("traces", "none; accepted: at least one")])
    if domains is not None and len(domains) != len(traces):
        raise InputError.at("domains", len(domains), f"one name for each of {len(traces)} traces")
    first = traces[0].info
    shapes = {(t.info.num_experts, t.info.layer_indices, t.top_k) for t in traces}
    if len(shapes) > 1:
        raise InputError([Problem("traces", "differ in experts, layers or slots; accepted: equal shapes")])
    names: dict[str, int] = {}
    request, step, label = [], [], []
    next_request = next_step = 0
    for index, trace in enumerate(traces):
        own = trace.info.domains if domains is None else (domains[index],) * len(trace.info.domains)
        numbers = np.array([names.setdefault(name, len(names)) for name in own])
        label.append(numbers[trace.domain_index])
        changes = np.concatenate(([0], np.cumsum(np.diff(trace.request_index) != 0)))
        request.append(next_request + changes)
        next_request += int(changes[-1]) + 1
        step.append(next_step + trace.step_index.astype(np.int64))
        next_step = int(step[-1].max()) + 1
    weights = [t.gate_weights for t in traces if t.gate_weights is not None]
    info = replace(
        first,
        domains=tuple(names),
        source="; ".join(dict.fromkeys(t.info.source for t in traces if t.info.source)),
        model=" + ".join(dict.fromkeys(t.info.model for t in traces)),
        evidence="assumed" if any(t.info.evidence == "assumed" for t in traces) else first.evidence,
    )
    dtype = id_dtype(first.num_experts)
    return RoutingTrace(
        info=info,
        expert_ids=np.concatenate([_as(t.expert_ids, t.empty_slot, dtype) for t in traces]),
        request_index=np.concatenate(request).astype(np.int32),
        position=np.concatenate([t.position for t in traces]),
        step_index=np.concatenate(step).astype(np.int32),
        phase=np.concatenate([t.phase for t in traces]),
        domain_index=np.concatenate(label).astype(np.uint8),
        gate_weights=np.concatenate(weights) if len(weights) == len(traces) else None,
    )


def sample(trace: RoutingTrace, num_requests: int, rng: np.random.Generator) -> RoutingTrace:
    """Whole requests drawn without repetition, in their own order.

    Raises
    ------
    InputError
        More requests than there are.
    """
    have = trace.num_requests
    if not 1 <= num_requests <= have:
        raise InputError.at("num_requests", num_requests, f"1 to {have}")
    chosen = np.zeros(have, np.bool_)
    chosen[rng.choice(have, num_requests, replace=False)] = True
    lengths = np.diff(np.append(trace.request_starts(), trace.num_tokens))
    return trace.take(np.repeat(chosen, lengths))


def by_domain(trace: RoutingTrace) -> dict[str, RoutingTrace]:
    """One trace a domain that has tokens, with that domain only."""
    found = {}
    for index, name in enumerate(trace.info.domains):
        rows = trace.domain_index == index
        if rows.any():
            part = trace.take(rows)
            info = replace(part.info, domains=(name,))
            found[name] = replace(part, info=info, domain_index=np.zeros(part.num_tokens, np.uint8))
    return found


def by_layer(trace: RoutingTrace, layers: Sequence[int]) -> RoutingTrace:
    """Trace of some layers, named by the model's layer numbers, in increasing order.

    Raises
    ------
    InputError
        A layer that the trace does not have, or none.
    """
    known = trace.info.layer_indices
    wrong = [layer for layer in layers if layer not in known]
    if wrong or not layers:
        raise InputError.at("layers", wrong or list(layers), f"some of {list(known)}")
    kept = sorted(set(layers))
    places = [known.index(layer) for layer in kept]
    weights = trace.gate_weights
    return replace(
        trace,
        info=replace(trace.info, layer_indices=tuple(kept)),
        expert_ids=trace.expert_ids[:, places],
        gate_weights=None if weights is None else weights[:, places],
    )


def remap(trace: RoutingTrace, new_ids: NDArray[np.int64]) -> RoutingTrace:
    """Trace with experts renumbered: expert ``e`` of layer ``l`` becomes ``new_ids[l, e]``.

    A physical-to-logical map of an engine undoes its placement. Several old experts may become one
    (replicas), as long as no token chose two of them.

    Parameters
    ----------
    new_ids : ndarray of int, ``(layers, experts)``
        New ids from 0; the trace then has as many experts as the largest says.

    Raises
    ------
    InputError
        Another shape, negative ids, or a token that would have an expert twice.
    """
    accepted = (trace.num_layers, trace.num_experts)
    if new_ids.shape != accepted or new_ids.dtype.kind not in "iu" or new_ids.min() < 0:
        raise InputError.at("new_ids", (new_ids.dtype, new_ids.shape), f"whole numbers >= 0 {accepted}")
    experts = int(new_ids.max()) + 1
    kind = id_dtype(experts)
    info = replace(trace.info, num_experts=experts)
    table = np.full((trace.num_layers, trace.num_experts + 1), np.iinfo(kind).max, kind)
    table[:, :-1] = new_ids
    old = np.minimum(trace.expert_ids, trace.num_experts)
    ids: ExpertIds = table[np.arange(trace.num_layers)[:, None], old]
    ordered = np.sort(ids, axis=-1)
    if bool(((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] < experts)).any()):
        raise InputError([Problem("new_ids", "gives a token one expert twice; accepted: no such pair")])
    return replace(trace, info=info, expert_ids=ids)


def _as(ids: ExpertIds, empty: int, dtype: type[np.unsignedinteger[Any]]) -> ExpertIds:
    """Ids in another unsigned type, with its own empty mark."""
    if ids.dtype == dtype:
        return ids
    return np.where(ids == empty, np.iinfo(dtype).max, ids).astype(dtype)
