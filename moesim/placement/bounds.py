"""What no placement can beat, whatever its split of tokens over copies.

Each bound is on the largest rank load of a layer, valid for any assignment of experts to slots
and any split (so for the even split too), and needs no solver.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.placement.placed import Floats
from moesim.placement.problem import Problem


def lower_bounds(problem: Problem) -> dict[str, Floats]:
    """Every combinatorial bound by name, each ``(layers,)``. [tokens]

    Without replicas rank loads are sums of whole experts; where these are whole numbers the
    bounds are rounded up. Where ranks differ in speed, loads are those of a rank of mean speed:
    only the mean, and the hottest copy on the fastest rank, remain as bounds.
    """
    loads, ranks = problem.loads, problem.num_ranks
    hottest = hottest_bound(loads, ranks, problem.num_replicas)
    if problem.speeds is not None:
        return {"mean": mean_bound(loads, ranks), "hottest": hottest / problem.relative_speeds.max()}
    bounds = {"mean": mean_bound(loads, ranks), "hottest": hottest}
    if problem.rank_slots is None or (problem.rank_slots == problem.slots_per_rank).all():
        bounds["cardinality"] = cardinality_bound(loads, ranks, problem.slots_per_rank)
        bounds["company"] = company_bound(loads, ranks, problem.slots_per_rank)
    return {name: rounded_up(loads, problem.num_replicas, bound) for name, bound in bounds.items()}


def best_bound(problem: Problem, proven: Floats | None = None) -> Floats:
    """Largest of all bounds, and of one that a method has proven, ``(layers,)``. [tokens]"""
    best: Floats = np.max(list(lower_bounds(problem).values()), axis=0)
    return best if proven is None else np.maximum(best, proven)


def rounded_up(loads: Floats, num_replicas: int, bound: Floats) -> Floats:
    """Bound raised to the next whole number in layers whose rank loads must be whole. [tokens]"""
    if num_replicas:
        return bound
    whole = np.all(loads == np.rint(loads), axis=1)
    slack = 1e-8 * np.maximum(bound, 1.0)
    return np.where(whole, np.maximum(bound, np.ceil(bound - slack)), bound)


def mean_bound(loads: Floats, num_ranks: int) -> Floats:
    """Tokens per rank if they could be spread freely, ``(layers,)``. [tokens]"""
    return np.asarray(loads.sum(axis=1) / num_ranks, np.float64)


def hottest_bound(loads: Floats, num_ranks: int, num_replicas: int) -> Floats:
    """Smallest possible load of the hottest copy, ``(layers,)``. [tokens]

    An expert on ``c`` ranks loads one of them with at least ``1/c`` of its tokens. Giving each
    replica to the expert with the most tokens per copy minimises the largest such share exactly
    (exchange argument), so no allocation of copies does better.

    Parameters
    ----------
    loads : ndarray of float64, ``(layers, experts)``
        Tokens. [tokens]
    num_ranks, num_replicas : int
        Ranks, and copies beyond the first of each expert. More copies than ranks do not help. [-]
    """
    per_copy, copies = loads.copy(), np.ones_like(loads)
    rows = np.arange(loads.shape[0])
    for _ in range(num_replicas):
        hottest = per_copy.argmax(axis=1)
        copies[rows, hottest] = np.minimum(copies[rows, hottest] + 1, num_ranks)
        per_copy[rows, hottest] = loads[rows, hottest] / copies[rows, hottest]
    return np.asarray(per_copy.max(axis=1), np.float64)


def cardinality_bound(loads: Floats, num_ranks: int, slots_per_rank: int) -> Floats:
    r"""Bound from counting heavy experts, ``(layers,)``. [tokens]

    At most ``R`` experts have more than one copy, where ``R`` is the number of replicas. Of the
    ``R + G j + 1`` heaviest, ``G j + 1`` or more therefore live on a single rank each, and some of
    the ``G`` ranks holds ``j + 1`` of these. It carries at least the ``j + 1`` lightest of that set.
    Without spare slots it holds ``S - j - 1`` further whole experts, at least the lightest of all:

    .. math:: M \ge \max_j \Bigl(\sum_{i=R+Gj-j}^{R+Gj} w_{(i)} + [R = 0] \sum_{i=E-S+j+1}^{E-1} w_{(i)}\Bigr)

    with loads :math:`w_{(0)} \ge w_{(1)} \ge \ldots`.

    Parameters
    ----------
    loads : ndarray of float64, ``(layers, experts)``
        Tokens. [tokens]
    num_ranks, slots_per_rank : int
        ``G`` and ``S``. [-]
    """
    layers, experts = loads.shape
    replicas = num_ranks * slots_per_rank - experts
    down = -np.sort(-loads, axis=1)
    upto = np.concatenate([np.zeros((layers, 1)), np.cumsum(down, axis=1)], axis=1)
    best = np.zeros(layers)
    for j in range(slots_per_rank):
        last = replicas + num_ranks * j
        if last >= experts:
            break
        bound = upto[:, last + 1] - upto[:, last - j]
        if not replicas:
            bound = bound + upto[:, experts] - upto[:, experts - (slots_per_rank - j - 1)]
        best = np.maximum(best, bound)
    return _lowered(best)


def company_bound(loads: Floats, num_ranks: int, slots_per_rank: int) -> Floats:
    r"""Bound from the company that heavy experts must keep, ``(layers,)``. [tokens]

    Without spare slots, the ``m`` ranks that hold the ``k`` heaviest experts hold ``m S`` experts in
    all, so besides them at least the ``m S - k`` lightest. One of these ranks carries the mean of that:

    .. math:: M \ge \max_{k \le G} \; \min_{\lceil k/S \rceil \le m \le k} \;
              \frac{1}{m} \Bigl(\sum_{i < k} w_{(i)} + \sum_{i \ge E - mS + k} w_{(i)}\Bigr)

    Zero when there are spare slots.

    Parameters
    ----------
    loads : ndarray of float64, ``(layers, experts)``
        Tokens. [tokens]
    num_ranks, slots_per_rank : int
        ``G`` and ``S``. [-]
    """
    layers, experts = loads.shape
    best = np.zeros(layers)
    if num_ranks * slots_per_rank != experts:
        return best
    down = -np.sort(-loads, axis=1)
    upto = np.concatenate([np.zeros((layers, 1)), np.cumsum(down, axis=1)], axis=1)
    for k in range(1, num_ranks + 1):
        m = np.arange(-(-k // slots_per_rank), k + 1)
        lightest = upto[:, experts, None] - upto[:, experts - m * slots_per_rank + k]
        best = np.maximum(best, ((upto[:, k, None] + lightest) / m).min(axis=1))
    return _lowered(best)


def _lowered(bound: Floats) -> NDArray[np.float64]:
    """Bound less the rounding of its cumulative sums."""
    return bound * (1 - 1e-13)
