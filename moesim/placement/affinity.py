"""Traffic between layers: what a placement keeps on its rank, what no placement can, and how to lower it.

A token that chose expert ``i`` in one layer and ``j`` in the next goes from the rank of ``i`` to the
rank of ``j``. Only the pair counts of neighbouring layers matter, not the single tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moesim.placement.local_search import LEAST_GAIN
from moesim.placement.location_search import Copies, Costs, descend
from moesim.placement.placed import Floats, Ints, Placement

SQUARE_ROUNDING = 1e-7
"""Relative error of singular values that come from a square, on the side of a weaker bound."""
KICKED_LAYERS, KICKS = 3, 4
"""Neighbouring layers that are disturbed together, and random exchanges in each."""
RENAMED_ROUNDS = 4
"""Every so many rounds the ranks of all layers are named anew."""


def transition_cost(transitions: Floats, placement: Placement, distances: Floats) -> Floats:
    """Tokens times link cost between neighbouring layers, ``(layers - 1,)``. [tokens]

    Copies serve their shares independently of each other.

    Parameters
    ----------
    transitions : ndarray of float64, ``(layers - 1, experts, experts)``
        Pair counts. [tokens]
    placement : Placement
        Its layers and experts.
    distances : ndarray of float64, ``(ranks, ranks)``
        Cost of a token between two ranks. [-]
    """
    share = placement.rank_share
    # one product a layer: numpy multiplies a stack of transposed matrices without BLAS
    flows = [share[layer].T @ counts @ share[layer + 1] for layer, counts in enumerate(transitions)]
    return np.array([float((flow * distances).sum()) for flow in flows])


def same_rank_share(transitions: Floats, placement: Placement) -> float:
    """Share of next-layer pairs whose experts are on one rank; 1 without any pair. [-]"""
    total = float(transitions.sum())
    if total <= 0:
        return 1.0
    crossing = transition_cost(transitions, placement, 1.0 - np.eye(placement.num_ranks))
    return 1.0 - float(crossing.sum()) / total


def spectral_bound(transitions: Floats, num_ranks: int) -> Floats:
    r"""Most tokens that any placement without replicas keeps on their rank, ``(layers - 1,)``. [tokens]

    With equal ranks, indicator vectors of ranks are orthogonal with norm :math:`\sqrt{E/G}`. Their sum
    is the all-ones vector, which keeps exactly the mean; the rest lives in ``G - 1`` directions of
    the doubly centred counts :math:`\tilde W`, so

    .. math:: \mathrm{kept} \le \frac{\sum W}{G} + \frac{E}{G} \sum_{i=1}^{G-1} \sigma_i(\tilde W)

    No placement keeps more than every pair of experts, which caps it.
    """
    layers, experts, _ = transitions.shape
    bound = np.zeros(layers)
    for layer, counts in enumerate(transitions):
        centred = (
            counts - counts.mean(axis=0, keepdims=True) - counts.mean(axis=1, keepdims=True) + counts.mean()
        )
        # singular values from the symmetric square: several times faster, right to half the digits
        squares = np.linalg.eigvalsh(centred @ centred.T)[::-1]
        values = np.sqrt(np.maximum(squares[: num_ranks - 1], 0.0)) * (1 + SQUARE_ROUNDING)
        spectral = counts.sum() / num_ranks + experts / num_ranks * values.sum()
        bound[layer] = min(spectral, _row_bound(counts, num_ranks))
    return bound


def _row_bound(counts: Floats, num_ranks: int) -> float:
    """Each expert keeps at most its heaviest ``E/G`` partners, seen from either layer. [tokens]"""
    room = counts.shape[0] // num_ranks
    ends = [np.sort(side, axis=1)[:, -room:].sum() for side in (counts, counts.T)]
    return float(min(ends))


def block_descent(
    copies: Copies,
    loads: Floats,
    transitions: Floats,
    distances: Floats,
    caps: Floats,
    *,
    sweeps: int,
    attraction: Floats | None = None,
    stale: set[int] | None = None,
) -> Copies:
    """Layer after layer moved to where its neighbours are, until no layer has a neighbour that moved.

    Parameters
    ----------
    copies : Copies
        Start.
    loads : ndarray of float64, ``(layers, experts)``
        For the caps. [tokens]
    transitions, distances
        As in :func:`transition_cost`.
    caps : ndarray of float64, ``(layers,)``
        Largest rank load of each layer. [tokens]
    sweeps : int
        At most. [-]
    attraction : ndarray of float64, ``(layers, experts, experts)``, optional
        What experts of a layer save on one rank. [tokens]
    stale : set of int, optional
        Layers that may improve; default all. The others are looked at once a neighbour moves.
    """
    layers = len(copies.rank)
    rank = [ranks.copy() for ranks in copies.rank]
    state = replace(copies, rank=rank)
    order = [*range(0, layers, 2), *range(1, layers, 2)]
    left = set(order) if stale is None else set(stale)
    for _ in range(sweeps):
        for layer in order:
            if layer not in left:
                continue
            left.discard(layer)
            table = _table(state, layer, transitions, distances)
            costs = Costs(state.spread(layer, table), _attraction(state, layer, attraction))
            weights = state.spread(layer, loads[layer][:, None])[:, 0]
            found = descend(rank[layer], weights, costs, float(caps[layer]))
            if not np.array_equal(found, rank[layer]):
                left |= {layer - 1, layer + 1} & set(order)
            rank[layer][:] = found
        if not left:
            break
    return state


def _table(state: Copies, layer: int, transitions: Floats, distances: Floats) -> Floats:
    """Cost of each expert on each rank beside fixed neighbours, ``(experts, ranks)``."""
    table = np.zeros((state.num_experts, state.num_ranks))
    if layer < len(transitions):
        table += transitions[layer] @ state.shares(layer + 1) @ distances.T
    if 0 < layer <= len(transitions):
        table += transitions[layer - 1].T @ state.shares(layer - 1) @ distances
    return table


def _attraction(state: Copies, layer: int, attraction: Floats | None) -> Floats | None:
    if attraction is None:
        return None
    expert, weight = np.maximum(state.expert[layer], 0), state.weight[layer]
    pairs = attraction[layer][np.ix_(expert, expert)] * np.outer(weight, weight)
    np.fill_diagonal(pairs, 0.0)
    return np.asarray(pairs, np.float64)


def iterated_descent(
    start: Copies,
    loads: Floats,
    transitions: Floats,
    distances: Floats,
    caps: Floats,
    rng: np.random.Generator,
    *,
    sweeps: int,
    rounds: int,
) -> Copies:
    """Block descent, then rounds of: disturb a few layers, rename ranks, descend; the best is kept.

    Parameters are those of :func:`block_descent`; a placement above a cap is never kept, except that
    the first descent keeps what the start had.
    """
    best = block_descent(start, loads, transitions, distances, caps, sweeps=sweeps)
    number_of_layers = len(best.rank)
    cost = [_boundary_cost(best, layer, transitions, distances) for layer in range(len(transitions))]
    for number in range(rounds):
        ranks = [rank.copy() for rank in best.rank]
        at = int(rng.integers(number_of_layers))
        disturbed = range(at, min(at + KICKED_LAYERS, number_of_layers))
        for layer in disturbed:
            ranks[layer] = kicked(ranks[layer], rng, KICKS)
        tried = replace(best, rank=ranks)
        stale = {layer for near in disturbed for layer in (near - 1, near, near + 1)}
        if number % RENAMED_ROUNDS == RENAMED_ROUNDS - 1:
            rename_ranks(tried, transitions, distances)
            stale = set(range(number_of_layers))
        stale &= set(range(number_of_layers))
        tried = block_descent(tried, loads, transitions, distances, caps, sweeps=sweeps, stale=stale)
        new = [not np.array_equal(a, b) for a, b in zip(tried.rank, best.rank, strict=True)]
        found = [
            _boundary_cost(tried, layer, transitions, distances) if new[layer] or new[layer + 1] else before
            for layer, before in enumerate(cost)
        ]
        if sum(found) < sum(cost) * (1 - LEAST_GAIN) and _within(tried, loads, caps, new):
            best, cost = tried, found
    return best


def _boundary_cost(copies: Copies, layer: int, transitions: Floats, distances: Floats) -> float:
    """Tokens times link cost from a layer to the next. [tokens]"""
    flow = copies.shares(layer).T @ transitions[layer] @ copies.shares(layer + 1)
    return float((flow * distances).sum())


def _within(copies: Copies, loads: Floats, caps: Floats, new: Sequence[bool]) -> bool:
    """Whether no rank of the new layers is above its cap."""
    return all(
        (loads[layer] @ copies.shares(layer)).max() <= caps[layer] * (1 + LEAST_GAIN)
        for layer, is_new in enumerate(new)
        if is_new
    )


def rename_ranks(copies: Copies, transitions: Floats, distances: Floats) -> None:
    """Give the ranks of each layer, in place, the names that lower the cost to the layer before.

    Which copies share a rank stays as it is, so rank loads only change their places. A new name
    holds for all later layers too: only one boundary changes at a time.
    """
    ranks = np.arange(copies.num_ranks)
    for layer in range(1, len(copies.rank)):
        flow = copies.shares(layer - 1).T @ transitions[layer - 1] @ copies.shares(layer)
        cost, name = flow.T @ distances, ranks.copy()
        while True:
            named = cost[:, name]
            own = named[ranks, ranks]
            change = named + named.T - own[:, None] - own[None, :]
            one, two = np.unravel_index(change.argmin(), change.shape)
            if change[one, two] >= -LEAST_GAIN * max(float(cost.max()), 1e-300):
                break
            name[[one, two]] = name[[two, one]]
        for later in range(layer, len(copies.rank)):
            copies.rank[later] = name[copies.rank[later]]


def capped(loads: Floats, num_ranks: int, largest: Floats, slack_fraction: float) -> Floats:
    """Cap of each layer, ``(layers,)``: some above the mean, but no less than ``largest``. [tokens]"""
    mean = loads.sum(axis=1) / num_ranks
    return np.asarray(np.maximum(mean * (1 + slack_fraction), largest), np.float64)


def kicked(rank: Ints, rng: np.random.Generator, exchanges: int) -> Ints:
    """Ranks after some random exchanges."""
    rank = rank.copy()
    for _ in range(exchanges):
        one, two = rng.integers(rank.size, size=2)
        rank[one], rank[two] = rank[two], rank[one]
    return rank
