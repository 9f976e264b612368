"""What policies share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.memory.demand import Demand


class Dynamic:
    """A policy whose cache starts empty."""

    def initial(self, demand: Demand, slots: NDArray[np.int64]) -> NDArray[np.bool_] | None:  # noqa: ARG002
        """Nothing."""
        return None


def most_used(counts: NDArray[np.int64], slots: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mask of the ``slots`` most used experts of every row, ``(rows, experts)``; ties by number."""
    order = np.argsort(-counts, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(counts.shape[1]), counts.shape), axis=1)
    return np.asarray(rank < slots[:, None])


def known_counts(demand: Demand) -> NDArray[np.int64]:
    """Popularity from earlier traffic, else from the demand itself, ``(rows, experts)``. [tokens]"""
    if demand.prior_counts is not None:
        return demand.prior_counts
    rows, wide = demand.num_layers, demand.num_experts + 1
    codes = demand.ids + (np.arange(rows, dtype=np.int64) * wide)[:, None]
    total = np.bincount(codes.ravel(), weights=demand.tokens.ravel(), minlength=rows * wide)
    return total.reshape(rows, wide)[:, :-1].astype(np.int64)
