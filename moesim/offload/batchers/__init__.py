"""Who shares a pass: registered policies that form batches by the experts that samples will use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.registry import Registry
from moesim.traces import RoutingTrace

Routes = NDArray[np.bool_]
"""Experts of every sample: ``(samples, layers, experts)``."""

Batches = Sequence[NDArray[np.int64]]
"""Samples of each batch, in the order of running."""


class Batcher(Protocol):
    """A registered policy; its dataclass fields are its parameters."""

    @property
    def pool(self) -> int:
        """Batches whose samples wait together."""
        ...

    def batches(self, routes: Routes, size: int) -> Batches:
        """Batches of at most ``size`` of the waiting samples, each sample in one of them."""
        ...


batchers: Registry[Batcher] = Registry("batcher", "moesim.offload.batchers")


def routes_of(trace: RoutingTrace) -> Routes:
    """Experts of every token of a trace, each a sample."""
    ids = np.asarray(trace.expert_ids)
    tokens, layers, _ = ids.shape
    found = np.zeros((tokens, layers, trace.num_experts + 1), np.bool_)
    places = np.minimum(ids, trace.num_experts).astype(np.int64)
    np.put_along_axis(found, places, values=True, axis=2)
    return found[..., :-1]


def batched_steps(trace: RoutingTrace, steps: int, size: int, batcher: Batcher) -> list[NDArray[np.int64]]:
    """Tokens of every pass where a pool of sequences decodes side by side.

    The trace is cut into as many sequences as the pool holds; in each of ``steps`` steps the next token of
    every one of them is given to a batch.
    """
    sequences = size * batcher.pool
    length = trace.num_tokens // sequences
    passes = []
    for step in range(min(steps, length)):
        waiting = np.arange(sequences, dtype=np.int64) * length + step
        passes += [waiting[batch] for batch in batcher.batches(routes_of(trace.take(waiting)), size)]
    return passes


def distinct_experts(routes: Routes, batches: Batches) -> float:
    """Experts that a batch uses in a layer, mean over batches and layers. [experts]"""
    return float(np.mean([routes[batch].any(axis=0).sum(axis=-1).mean() for batch in batches]))
