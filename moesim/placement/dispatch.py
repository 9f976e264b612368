"""Placed tokens, one by one: who serves them, and what crosses between ranks and nodes.

A token's experts come from a routing trace, its own rank from where its request lives; copies are
chosen by a run-time split. Counts are exact, not expectations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.network.traffic import routed_traffic
from moesim.placement.placed import Floats, Ints, Placement
from moesim.placement.split_registry import Batch, Served, Split
from moesim.steps.routing import GOLDEN, CopyTable


@dataclass(frozen=True, eq=False)
class Dispatched:
    """A batch of tokens under one placement and split.

    Attributes
    ----------
    rank_loads : ndarray of float64, ``(layers, ranks)``
        Tokens each rank serves. [tokens]
    pairs : ndarray of float64, ``(ranks, ranks)``
        Tokens sent from rank to rank over all layers, once a rank that needs them. [tokens]
    ranks_per_token, nodes_per_token : float
        Distinct ranks and nodes that serve a token in a layer, mean. [-]
    cross_rank_tokens, cross_node_tokens : float
        Sends to another rank, and over the network once a node, a token and layer. [-]
    moved_experts : int
        Weights that ranks were sent for this batch alone. [-]
    """

    rank_loads: Floats
    pairs: Floats
    ranks_per_token: float
    nodes_per_token: float
    cross_rank_tokens: float
    cross_node_tokens: float
    moved_experts: int

    @property
    def imbalance(self) -> Floats:
        """Largest over mean rank load, ``(layers,)``; 1 for a layer without tokens. [-]"""
        mean: Floats = self.rank_loads.mean(axis=1)
        ratio = np.divide(self.rank_loads.max(axis=1), mean, out=np.ones_like(mean), where=mean > 0)
        return np.asarray(ratio, np.float64)


def dispatch(
    expert_ids: Ints,
    source: Ints,
    placement: Placement,
    split: Split,
    rng: np.random.Generator,
    *,
    ranks_per_node: int | None = None,
) -> Dispatched:
    """What a batch does.

    Parameters
    ----------
    expert_ids : ndarray of int64, ``(tokens, layers, choices)``
        Logical experts; negative where a choice is empty.
    source : ndarray of int64, ``(tokens,)``
        Rank that each token lives on.
    placement : Placement
        Of the same layers.
    split : Split
        Run-time policy.
    rng : numpy.random.Generator
        For policies that draw.
    ranks_per_node : int, optional
        Consecutive ranks of a node; all ranks without it.
    """
    ranks = placement.num_ranks
    node = np.arange(ranks) // (ranks_per_node or ranks)
    counts = _counts(expert_ids, source, placement)
    served = split.serve(Batch(counts, node), placement, rng)
    destination = _destinations(expert_ids, source, served)
    flat = np.where(destination >= 0, destination, ranks)
    layers = np.arange(placement.num_layers)[:, None] * (ranks + 1)
    loads = np.bincount((flat + layers).ravel(), minlength=placement.num_layers * (ranks + 1))
    by_rank = routed_traffic(source, destination, node, "rank")
    by_node = routed_traffic(source, destination, node, "node")
    cells = max(len(expert_ids) * placement.num_layers, 1)
    pairs = by_rank.scale_up + by_rank.scale_out
    nodes = np.where(destination >= 0, node[np.maximum(destination, 0)], -1)
    return Dispatched(
        loads.reshape(-1, ranks + 1)[:, :-1].astype(np.float64),
        pairs.sum(axis=0),
        _distinct(destination) / cells,
        _distinct(nodes) / cells,
        float(pairs.sum()) / cells,
        float(by_node.scale_out.sum()) / cells,
        served.placement.moved_experts(placement),
    )


def _counts(expert_ids: Ints, source: Ints, placement: Placement) -> Floats:
    """Tokens by source, layer and expert, ``(ranks, layers, experts)``."""
    shape = (placement.num_ranks, placement.num_layers, placement.num_experts + 1)
    known = np.where(expert_ids >= 0, expert_ids, placement.num_experts)
    layer = np.arange(placement.num_layers)[:, None]
    cells = (source[:, None, None] * shape[1] + layer) * shape[2] + known
    counts = np.bincount(cells.ravel(), minlength=int(np.prod(shape))).reshape(shape)
    return np.asarray(counts[..., :-1], np.float64)


def _destinations(expert_ids: Ints, source: Ints, served: Served) -> Ints:
    """Rank that serves each choice, ``(tokens, layers, choices)``; -1 where it is empty."""
    placed = served.placement
    if len(served.split) == 1:
        return _slots(expert_ids, placed, served.split[0], 0.0) // placed.slots_per_rank
    found = np.full(expert_ids.shape, -1, np.int64)
    for rank in np.unique(source):
        rows = np.flatnonzero(source == rank)
        # every source starts elsewhere in its shares, so that single tokens do not all meet
        slots = _slots(expert_ids[rows], placed, served.split[rank], rank * GOLDEN)
        found[rows] = slots // placed.slots_per_rank
    return found


def _slots(expert_ids: Ints, placed: Placement, split: Floats, offset: float) -> Ints:
    """Slot of each choice: the tokens of an expert, in order, fill the shares of its copies; -1 if empty."""
    table = CopyTable.of(placed.physical_to_logical, placed.num_experts, split)
    layer = np.arange(placed.num_layers)[:, None]
    known = np.maximum(expert_ids, 0)
    if table.slots.shape[2] == 1:
        chosen = table.slots[layer, known, 0]
    else:
        position = (_place_in_order(expert_ids, placed) + offset) % 1.0
        copy = (table.upto[layer, known, :-1] <= position[..., None]).sum(-1)
        chosen = table.slots[layer, known, copy]
    return np.where(expert_ids >= 0, chosen, -1)


def _place_in_order(expert_ids: Ints, placed: Placement) -> NDArray[np.float64]:
    """Where each choice stands among all of its expert in its layer, 0 to 1."""
    wide = placed.num_experts + 1
    layer = np.arange(placed.num_layers)[:, None] * wide
    key = (np.where(expert_ids >= 0, expert_ids, placed.num_experts) + layer).ravel()
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    first = np.searchsorted(ordered, ordered)
    count = np.bincount(key, minlength=placed.num_layers * wide)
    place = np.empty(key.size)
    place[order] = (np.arange(key.size) - first + 0.5) / count[ordered]
    return place.reshape(expert_ids.shape)


def _distinct(values: Ints) -> int:
    """Different non-negative values along the last axis, summed."""
    ordered = np.sort(values, axis=-1)
    fresh = np.ones(ordered.shape, np.bool_)
    fresh[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    return int((fresh & (ordered >= 0)).sum())
