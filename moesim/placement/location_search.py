"""Which rank each copy lives on, by exchanges that lower a cost under a cap on rank loads.

The number of copies of every expert is given, and a copy serves an even share of its expert's
tokens. One layer at a time: what a copy costs on a rank is a table (traffic with fixed neighbours),
and copies of one layer may attract each other. Exchanges whose ranks are disjoint do not change
each other's gain, so many are made at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.placement.local_search import LEAST_GAIN
from moesim.placement.placed import EMPTY, Floats, Ints, Placement

MAX_ROUNDS = 10_000
"""Rounds of exchanges in a layer; each lowers the cost, so this strikes only by a defect."""


@dataclass(frozen=True, eq=False)
class Costs:
    """What placing the copies of one layer costs.

    Attributes
    ----------
    table : ndarray of float64, ``(slots, ranks)``
        Cost of the copy that is in each slot now, on each rank.
    attraction : ndarray of float64, ``(slots, slots)``, optional
        What two copies save when they share a rank; symmetric, zero diagonal.
    """

    table: Floats
    attraction: Floats | None = None


def descend(rank: Ints, weights: Floats, costs: Costs, cap: float) -> Ints:
    """Rank of each copy after exchanges of two, until none lowers the cost.

    Parameters
    ----------
    rank : ndarray of int64, ``(slots,)``
        Rank of each copy (or free slot, with weight and cost zero) at the start.
    weights : ndarray of float64, ``(slots,)``
        Tokens of each copy. [tokens]
    costs : Costs
        To be lowered.
    cap : float
        Largest rank load; a rank above it may only become lighter. [tokens]

    Returns
    -------
    ndarray of int64, ``(slots,)``
        Every rank has as many copies as before.
    """
    rank = rank.copy()
    ranks, slots = costs.table.shape[1], np.arange(rank.size)
    loads = np.bincount(rank, weights, ranks)
    table = costs.table if costs.attraction is None else costs.table - _pull(costs.attraction, rank, ranks)
    heavier = weights[None, :] - weights[:, None]
    scale = LEAST_GAIN * max(float(np.abs(costs.table).max(initial=0)), 1e-300)
    if costs.attraction is not None:
        scale = max(scale, LEAST_GAIN * float(costs.attraction.max(initial=0)))
    for _ in range(MAX_ROUNDS):
        moved = table[:, rank]
        own = moved[slots, slots]
        change = moved + moved.T - own[:, None] - own[None, :]
        if costs.attraction is not None:
            change = change + 2 * costs.attraction
        after = loads[rank][:, None] + heavier
        allowed = np.maximum(cap * (1 + LEAST_GAIN), loads[rank])
        fits = after <= allowed[:, None]
        change = np.where(fits & fits.T & (rank[:, None] != rank[None, :]), change, 0.0)
        partner = change.argmin(axis=1)
        best = change[slots, partner]
        made = _disjoint(np.argsort(best, kind="stable"), partner, best, rank, -scale, ranks)
        if not made:
            return rank
        for one, two in made:
            loads[rank[one]] += heavier[one, two]
            loads[rank[two]] -= heavier[one, two]
            if costs.attraction is not None:
                pull = costs.attraction[:, two] - costs.attraction[:, one]
                table[:, rank[one]] -= pull
                table[:, rank[two]] += pull
            rank[one], rank[two] = rank[two], rank[one]
    return rank


def _pull(attraction: Floats, rank: Ints, ranks: int) -> Floats:
    """What each copy saves on each rank beside the copies that are there, ``(slots, ranks)``."""
    on = np.zeros((rank.size, ranks))
    on[np.arange(rank.size), rank] = 1.0
    return attraction @ on


def _disjoint(
    order: Ints, partner: Ints, best: Floats, rank: Ints, below: float, ranks: int
) -> list[tuple[int, int]]:
    """Best exchanges first, none sharing a rank with an earlier one."""
    used = np.zeros(ranks, np.bool_)
    made = []
    for one in order.tolist():
        if best[one] >= below:
            break
        two = int(partner[one])
        if not used[rank[one]] and not used[rank[two]]:
            used[[rank[one], rank[two]]] = True
            made.append((one, two))
    return made


@dataclass(frozen=True, eq=False)
class Copies:
    """The copies of every layer and where they are; what location methods work on.

    Attributes
    ----------
    expert : list of ndarray of int64, ``(slots,)`` each
        Expert of each existing slot of a layer, :data:`EMPTY` where it is free.
    rank : list of ndarray of int64, ``(slots,)`` each
        Rank of each.
    weight : list of ndarray of float64, ``(slots,)`` each
        One over the copies of its expert; 0 where free. [-]
    num_experts, num_ranks, slots_per_rank : int
        Shape of the placements. [-]
    """

    expert: list[Ints]
    rank: list[Ints]
    weight: list[Floats]
    num_experts: int
    num_ranks: int
    slots_per_rank: int

    @classmethod
    def of(cls, placement: Placement, capacity: Ints) -> Copies:
        """Copies of a placement whose ranks have ``capacity`` slots, ``(layers, ranks)``."""
        width = placement.slots_per_rank
        grid = placement.physical_to_logical.reshape(placement.num_layers, placement.num_ranks, width)
        # a rank's free slots are its last ones
        exists = np.arange(width) < capacity[:, :, None]
        expert = [rows[there] for rows, there in zip(grid, exists, strict=True)]
        rank = [np.nonzero(there)[0] for there in exists]
        weight = [
            np.where(held == EMPTY, 0.0, 1.0 / np.maximum(copies[np.maximum(held, 0)], 1))
            for held, copies in zip(expert, placement.copies, strict=True)
        ]
        return cls(expert, rank, weight, placement.num_experts, placement.num_ranks, width)

    def shares(self, layer: int) -> Floats:
        """Share of each expert's tokens on each rank, ``(experts, ranks)``."""
        held = self.expert[layer] != EMPTY
        share = np.zeros((self.num_experts, self.num_ranks))
        np.add.at(share, (self.expert[layer][held], self.rank[layer][held]), self.weight[layer][held])
        return share

    def spread(self, layer: int, per_expert: Floats) -> Floats:
        """Rows of ``per_expert`` (``(experts, ...)``) for each slot, scaled to its share."""
        rows = per_expert[np.maximum(self.expert[layer], 0)]
        weight = self.weight[layer]
        return np.asarray(rows * weight.reshape((-1,) + (1,) * (rows.ndim - 1)), np.float64)

    def placement(self) -> Placement:
        """The placement with every copy on its rank."""
        held = np.full((len(self.rank), self.num_ranks, self.slots_per_rank), EMPTY, np.int64)
        for layer, (expert, rank) in enumerate(zip(self.expert, self.rank, strict=True)):
            order = np.argsort(rank, kind="stable")
            first = np.searchsorted(rank[order], rank[order])
            held[layer, rank[order], np.arange(rank.size) - first] = expert[order]
        return Placement(held.reshape(len(self.rank), -1), self.num_experts, self.num_ranks)
