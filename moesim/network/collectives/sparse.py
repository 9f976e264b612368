"""Sparse all-gather and reduce-scatter of experts (Hecate): only what is wanted goes where it is wanted.

Each expert's parameters live on one owner; before a layer they are copied to the ranks that materialise
them, and afterwards those ranks' gradients are summed back at the owner. Both are uneven all-to-alls over
the links; a dense all-gather is the case where every rank wants everything.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.network.all_to_all import uneven_all_to_all_s
from moesim.network.topology import Topology


def sparse_traffic(
    owner: NDArray[np.int64], wanted: NDArray[np.bool_], expert_bytes: float
) -> NDArray[np.float64]:
    """Bytes from rank to rank that materialise experts, ``(rank, rank)``.

    Parameters
    ----------
    owner : ndarray of int, ``(expert,)``
        Rank that holds each expert.
    wanted : ndarray of bool, ``(expert, rank)``
        Where each expert is materialised; at its owner that is free.
    expert_bytes : float
        Of one expert. [bytes]
    """
    num_ranks = wanted.shape[1]
    traffic = np.zeros((num_ranks, num_ranks))
    np.add.at(traffic, owner, wanted.astype(np.float64) * expert_bytes)
    traffic[np.arange(num_ranks), np.arange(num_ranks)] = 0.0
    return traffic


def sparse_all_gather_s(
    owner: NDArray[np.int64], wanted: NDArray[np.bool_], expert_bytes: float, topology: Topology
) -> NDArray[np.float64]:
    """When each rank has the experts that it wants, ``(rank,)``; see :func:`sparse_traffic`. [s]

    References
    ----------
    .. [1] "Hecate: Unlocking Efficient Sparse Model Training via Fully Sharded Sparse Data Parallelism,"
       arXiv:2502.02581.
    """
    return uneven_all_to_all_s(sparse_traffic(owner, wanted, expert_bytes), topology)


def sparse_reduce_scatter_s(
    owner: NDArray[np.int64], wanted: NDArray[np.bool_], expert_bytes: float, topology: Topology
) -> NDArray[np.float64]:
    """When each owner has the gradients of its experts, ``(rank,)``: the way back. [s]"""
    return uneven_all_to_all_s(sparse_traffic(owner, wanted, expert_bytes).T, topology)
