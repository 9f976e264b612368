"""Exchanges that lower the largest rank load of single batches, in the mean over batches.

What is balanced over the whole traffic is not in a batch: experts that peak together should not
share a rank. One layer at a time, each step makes the exchange of two copies that helps most.
"""

from __future__ import annotations

import numpy as np

from moesim.placement.local_search import LEAST_GAIN
from moesim.placement.placed import Floats, Ints


def scatter_descend(rank: Ints, weights: Floats, speeds: Floats, *, max_steps: int) -> Ints:
    """Rank of each copy after exchanges of two, until none lowers the mean of the largest loads.

    Parameters
    ----------
    rank : ndarray of int64, ``(slots,)``
        Rank of each copy (or free slot, of weight zero).
    weights : ndarray of float64, ``(batches, slots)``
        Tokens of each copy in each batch. [tokens]
    speeds : ndarray of float64, ``(ranks,)``
        Relative to the mean. [-]
    max_steps : int
        Exchanges at most. [-]

    Notes
    -----
    A step looks at all pairs of slots in all batches: ``batches * slots**2`` numbers.
    """
    rank = rank.copy()
    batches, slots = weights.shape
    every = np.arange(batches)
    loads = np.stack([np.bincount(rank, row, speeds.size) for row in weights])
    for _ in range(max_steps):
        times = loads / speeds
        now = times.max(axis=1).mean()
        rest = _largest_of_others(times)
        best, pair = now * (1 - LEAST_GAIN), None
        for one in range(slots):
            mine = rank[one]
            others = np.flatnonzero((rank != mine) & (np.arange(slots) > one))
            if not others.size:
                continue
            theirs = rank[others]
            shift = weights[:, others] - weights[:, [one]]
            after = np.maximum(
                (loads[:, [mine]] + shift) / speeds[mine], (loads[:, theirs] - shift) / speeds[theirs]
            )
            mean = np.maximum(after, rest[:, mine, theirs]).mean(axis=0)
            at = int(mean.argmin())
            if mean[at] < best:
                best, pair = float(mean[at]), (one, int(others[at]))
        if pair is None:
            break
        one, two = pair
        shift = weights[:, two] - weights[:, one]
        loads[every, rank[one]] += shift
        loads[every, rank[two]] -= shift
        rank[one], rank[two] = rank[two], rank[one]
    return rank


def _largest_of_others(times: Floats) -> Floats:
    """Largest time when two ranks are left out, ``(batches, ranks, ranks)``; -inf if none is left."""
    batches, ranks = times.shape
    top = np.full((batches, 3), -np.inf)
    order = np.argsort(-times, axis=1)[:, :3]
    top[:, : order.shape[1]] = np.take_along_axis(times, order, axis=1)
    first, second = order[:, 0], order[:, min(1, ranks - 1)]
    rest = np.repeat(top[:, 0], ranks * ranks).reshape(batches, ranks, ranks)
    number = np.arange(ranks)
    is_first, is_second = number == first[:, None], number == second[:, None]
    one_gone = is_first[:, :, None] | is_first[:, None, :]
    both_gone = one_gone & (is_second[:, :, None] | is_second[:, None, :])
    rest = np.where(one_gone, top[:, 1][:, None, None], rest)
    return np.asarray(np.where(both_gone, top[:, 2][:, None, None], rest), np.float64)
