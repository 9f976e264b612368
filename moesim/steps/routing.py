"""A routed batch on a placement: which rank computes which token, and what crosses between ranks.

Counts are exact: tokens are assigned to expert copies one by one (vectorised), so histograms and
traffic are those of the replayed tokens and not of an average.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.kernels.histogram import ExpertLoad
from moesim.network.traffic import Deduplication, PortTokens, Traffic, routed_traffic

LinkLoads = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""``(layer, rank, rank) -> (layer, link)``."""

GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, spread evenly: a random-free way to share tokens over copies."""


@dataclass(frozen=True)
class CopyTable:
    """Where the copies of each expert are, for one placement.

    Attributes
    ----------
    slots : ndarray of int, ``(layer, expert, copy)``
        Physical slot of each copy, -1 where an expert has fewer copies.
    upto : ndarray, ``(layer, expert, copy)``
        Share of the expert's tokens that goes to this copy or an earlier one; 1 at the last.
    """

    slots: NDArray[np.int64]
    upto: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        physical_to_logical: NDArray[np.int64],
        num_experts: int,
        split: NDArray[np.float64] | None = None,
    ) -> CopyTable:
        """Table of ``physical_to_logical[layer, slot]``, negative where a slot is empty.

        ``split[layer, slot]`` defaults to even shares.
        """
        num_layers = len(physical_to_logical)
        layer, slot = np.nonzero(physical_to_logical >= 0)
        expert = physical_to_logical[layer, slot]
        order = np.lexsort((slot, expert, layer))
        key = layer[order] * num_experts + expert[order]
        first = np.searchsorted(key, key)
        copy = np.arange(len(key)) - first
        copies = np.bincount(key, minlength=num_layers * num_experts)
        shape = (num_layers, num_experts, int(copies.max()))
        slots = np.full(shape, -1, dtype=np.int64)
        slots[layer[order], expert[order], copy] = slot[order]
        shares = np.zeros(shape)
        share = 1 / copies[key] if split is None else split[layer, slot][order]
        shares[layer[order], expert[order], copy] = share
        upto = np.cumsum(shares, axis=-1)
        last = np.arange(shape[2]) >= copies.reshape(num_layers, num_experts, 1) - 1
        return cls(slots, np.where(last, 1.0, upto))

    def slot_of(self, expert_ids: NDArray[np.int64], ordinal: NDArray[np.int64]) -> NDArray[np.int64]:
        """Slot of each choice, ``(token, layer, choice)``; -1 where the choice is empty (negative).

        ``ordinal[token]`` numbers the tokens; a token uses the same position of the shares everywhere.
        """
        layer = np.arange(expert_ids.shape[1])[:, None]
        known = np.maximum(expert_ids, 0)
        if self.slots.shape[2] == 1:
            chosen = self.slots[layer, known, 0]
        else:
            position = (ordinal * GOLDEN) % 1.0
            copy = (self.upto[layer, known, :-1] <= position[:, None, None, None]).sum(-1)
            chosen = self.slots[layer, known, copy]
        return np.where(expert_ids >= 0, chosen, -1)


@dataclass(frozen=True)
class RoutedBatch:
    """What one routed batch asks of every rank of one expert-parallel stage.

    Attributes
    ----------
    load : ExpertLoad, each ``(layer, rank)``
        Condensed histogram of each rank's experts.
    ports : PortTokens, each ``(layer, rank)``
        Tokens that dispatch moves through each rank's ports.
    traffic : Traffic, each ``(rank, rank)``
        Tokens that dispatch moves between ranks, all layers together.
    shared, shared_back : ndarray, ``(layer, shared link)``, optional
        Tokens that dispatch and combine move over each shared link of the topology.
    links, links_back : ndarray, ``(layer, link)``, optional
        The same over every link of a pool that others use too.
    expert_counts : ndarray, ``(layer, expert)``
        Tokens of each logical expert.
    """

    load: ExpertLoad
    ports: PortTokens
    traffic: Traffic
    expert_counts: NDArray[np.int64]
    shared: NDArray[np.float64] | None = None
    shared_back: NDArray[np.float64] | None = None
    links: NDArray[np.float64] | None = None
    links_back: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class ExpertRanks:
    """How the ranks of one stage share the expert slots.

    Attributes
    ----------
    ep_rank : ndarray of int, ``(rank,)``
        Expert-parallel index of each rank; ranks of one index are tensor-parallel inside the experts.
    domain : ndarray of int, ``(rank,)``
        Scale-up domain of each rank, counted within the stage.
    num_slots : int
        Physical slots a layer, a multiple of the expert-parallel ranks.
    """

    ep_rank: NDArray[np.int64]
    domain: NDArray[np.int64]
    num_slots: int

    @property
    def slots_per_rank(self) -> int:
        """Slots of one expert-parallel rank."""
        return self.num_slots // (int(self.ep_rank.max()) + 1)

    def holders(self) -> NDArray[np.int64]:
        """Ranks of each expert-parallel index, ``(ep, moe_tp)``."""
        order = np.argsort(self.ep_rank, kind="stable")
        return order.reshape(int(self.ep_rank.max()) + 1, -1)


def route(
    expert_ids: NDArray[np.int64],
    source: NDArray[np.int64],
    table: CopyTable,
    ranks: ExpertRanks,
    deduplicate: Deduplication,
    shared_loads: LinkLoads | None = None,
    link_loads: LinkLoads | None = None,
) -> RoutedBatch:
    """Routed batch of the given tokens.

    Parameters
    ----------
    expert_ids : ndarray of int, ``(token, layer, choice)``
        Logical experts; negative where a choice is empty.
    source : ndarray of int, ``(token,)``
        Rank that holds each token.
    table : CopyTable
        The placement.
    ranks : ExpertRanks
        Who holds the slots.
    deduplicate : {'expert', 'rank', 'node'}
        What dispatch sends once.
    shared_loads : callable, optional
        ``(layer, rank, rank) -> (layer, shared link)``, where links beside the ports can hold traffic back.
    link_loads : callable, optional
        The same for every link, where others are on them too.
    """
    num_tokens, num_layers, _ = expert_ids.shape
    num_experts = table.slots.shape[1]
    slot = table.slot_of(expert_ids, np.arange(num_tokens))
    taken = slot >= 0
    counts = _count_by_layer(slot, ranks.num_slots).reshape(num_layers, -1, ranks.slots_per_rank)
    holders = ranks.holders()
    destination = holders[np.maximum(slot, 0) // ranks.slots_per_rank]
    destination = np.where(taken[..., None], destination, -1).reshape(num_tokens, num_layers, -1)
    traffic = routed_traffic(source, destination, ranks.domain, deduplicate)
    return RoutedBatch(
        load=ExpertLoad.of(counts[:, ranks.ep_rank, :]),
        ports=traffic.ports(),
        traffic=Traffic(traffic.scale_up.sum(axis=0), traffic.scale_out.sum(axis=0)),
        expert_counts=_count_by_layer(expert_ids, num_experts),
        **_both_ways("shared", traffic, shared_loads),
        **_both_ways("links", traffic, link_loads),
    )


def _both_ways(name: str, traffic: Traffic, loads: LinkLoads | None) -> dict[str, NDArray[np.float64]]:
    if loads is None:
        return {}
    pairs = traffic.scale_up + traffic.scale_out
    return {name: loads(pairs), f"{name}_back": loads(pairs.swapaxes(-1, -2))}


def _count_by_layer(values: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """How often each of ``0 .. size - 1`` stands in ``values[token, layer, choice]``, ``(layer, size)``."""
    num_layers = values.shape[1]
    # negative values land in an own bin at the end of their layer
    bins = np.where(values >= 0, values, size) + np.arange(num_layers)[:, None] * (size + 1)
    counts = np.bincount(bins.ravel(), minlength=num_layers * (size + 1))
    return counts.reshape(num_layers, size + 1)[:, :-1]
