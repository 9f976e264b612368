"""Rows of a routing trace for every request of a service: what each of its tokens asks of the experts.

A request walks through the rows of one recorded request, its prompt through prompt rows and its answer
through decode rows, and where it is longer it goes on into the next recorded request of the same domain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import rng_for
from moesim.traces import RoutingTrace
from moesim.traces.description import DECODE, PREFILL

MOST_LAYERS = 8
"""Layers of a trace that are looked at, evenly spread: a step is a sum over layers, few tell it."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rings:
    """Rows of one phase: each request goes round in those of its domain.

    Attributes
    ----------
    order : ndarray of int64, ``(row,)``
        Rows of the trace, domain after domain.
    low, length, start : ndarray of int64, ``(request,)``
        Where in ``order`` the domain of a request begins, its rows, and where the request starts among them.
    """

    order: Ints
    low: Ints
    length: Ints
    start: Ints

    def rows(self, request: Ints, position: Ints) -> Ints:
        """Row of the token at ``position`` of each request; both of one shape."""
        return np.asarray(
            self.order[self.low[request] + (self.start[request] + position) % self.length[request]]
        )


@dataclass(frozen=True, eq=False)
class RequestRows:
    """Experts of the tokens of every request.

    Attributes
    ----------
    expert_ids : ndarray of int32, ``(row, layer, choice)``
        Experts; ``num_experts`` where a choice is empty.
    layers : ndarray of int64, ``(layer,)``
        Which MoE layers of the model these are.
    num_experts : int
    prompts, answers : Rings
    """

    expert_ids: NDArray[np.int32]
    layers: Ints
    num_experts: int
    prompts: Rings
    answers: Rings

    @classmethod
    def of(cls, trace: RoutingTrace, num_requests: int, *, seed: int) -> RequestRows:
        """Rows of ``num_requests`` requests: the recorded ones in their order, then draws of them.

        A trace without rows of a phase in some domain lends that domain's other rows.
        """
        known = trace.num_requests
        drawn = rng_for(seed, "serving/request_rows").integers(known, size=max(num_requests - known, 0))
        which = np.concatenate([np.arange(min(num_requests, known)), drawn]).astype(np.int64)
        picked = np.linspace(0, trace.num_layers - 1, min(MOST_LAYERS, trace.num_layers)).round()
        layers = np.unique(picked.astype(np.int64))
        ids = np.asarray(trace.expert_ids[:, layers]).astype(np.int32)
        ids[ids == trace.empty_slot] = trace.num_experts
        starts = trace.request_starts()
        rings = (_rings(trace, phase, starts, which) for phase in (PREFILL, DECODE))
        return cls(ids, layers, trace.num_experts, *rings)

    def counts(self, rows: Ints) -> Ints:
        """Tokens of each expert, ``(step, layer, expert)``, of ``rows[step, token]``."""
        steps, (_, layers, _) = len(rows), self.expert_ids.shape
        wide = self.num_experts + 1
        ids = self.expert_ids[rows.ravel()].reshape(steps, -1, layers, self.expert_ids.shape[2])
        place = np.arange(steps * layers).reshape(steps, 1, layers, 1) * wide
        counts = np.bincount((ids + place).ravel(), minlength=steps * layers * wide)
        return np.asarray(counts.reshape(steps, layers, wide)[..., :-1])


def _rings(trace: RoutingTrace, phase: int, starts: Ints, which: Ints) -> Rings:
    domain = np.asarray(trace.domain_index).astype(np.int64)
    wanted = np.asarray(trace.phase) == phase
    for index in np.unique(domain):
        if not wanted[domain == index].any():
            wanted |= domain == index
    rows = np.flatnonzero(wanted)
    order = rows[np.argsort(domain[rows], kind="stable")]
    own = domain[starts[which]]
    low = np.searchsorted(domain[order], own)
    length = np.searchsorted(domain[order], own, side="right") - low
    # rows of a domain before the request's first: where it starts among them
    key = domain[order] * trace.num_tokens + order
    start = np.searchsorted(key, own * trace.num_tokens + starts[which]) - low
    return Rings(order, low, length, start % length)
