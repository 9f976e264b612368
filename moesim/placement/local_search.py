"""Improving a placement by exchanging copies between ranks, over all layers at once.

Copies keep their weight when they move (under the even split a copy weighs its expert's tokens
over its number of copies, wherever it lives), so this is packing of numbers. Rows below are
layers, or several variants of each layer.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from moesim.placement.placed import Floats, Ints

LEAST_GAIN = 1e-10
"""Relative gain below which an exchange is rounding, not progress."""
MAX_STEPS = 100_000
BLOCK_EXCHANGES = 200_000
"""Exchanges looked at together: more do not fit the cache."""
MAX_PAIR_SLOTS = 8
"""Slots a rank up to which two copies at a time are exchanged."""


def swap_search(
    weights: Floats, node_of_rank: Ints, target: Floats, *, max_steps: int = MAX_STEPS, pairs: bool = False
) -> tuple[Ints, int]:
    """Best exchanges with the most loaded rank, until none helps.

    In every step, and in every row still improving, the most loaded rank exchanges one copy (with
    ``pairs`` also two) for as many of another rank of its node, choosing the exchange that leaves
    the smaller maximum over both. Each step lowers the sorted vector of rank loads, so it ends.

    Parameters
    ----------
    weights : ndarray of float64, ``(rows, ranks, slots)``
        Weight of the copy in each slot. [tokens]
    node_of_rank : ndarray of int64, ``(ranks,)``
        Copies do not leave their node.
    target : ndarray of float64, ``(rows,)``
        Largest rank load at which a row is finished. [tokens]
    max_steps : int
        Exchanges per row at most. [-]
    pairs : bool
        Also exchange two for two, where a rank has at most :data:`MAX_PAIR_SLOTS` slots.

    Returns
    -------
    order : ndarray of int64, ``(rows, ranks * slots)``
        Old slot of the copy that is now in each slot.
    steps : int
        Exchanges in the row that took most.
    """
    rows, ranks, slots = weights.shape
    tables = [np.arange(slots)[:, None]]
    if pairs and 1 < slots <= MAX_PAIR_SLOTS:
        tables.append(np.array(list(combinations(range(slots), 2))))
    block = max(1, BLOCK_EXCHANGES // (ranks * max(map(len, tables)) ** 2))
    found = [
        _searched(weights[i : i + block], node_of_rank, target[i : i + block], max_steps, tables)
        for i in range(0, rows, block)
    ]
    return np.concatenate([order for order, _ in found]), max(steps for _, steps in found)


def _searched(
    weights: Floats, node_of_rank: Ints, target: Floats, max_steps: int, tables: list[Ints]
) -> tuple[Ints, int]:
    """Search of a block of rows that fits the processor's cache."""
    rows, ranks, slots = weights.shape
    held = np.array(weights, np.float64)
    order = np.tile(np.arange(ranks * slots).reshape(ranks, slots), (rows, 1, 1))
    active = np.arange(rows)
    steps = 0
    while steps < max_steps:
        loads = held[active].sum(axis=2)
        unfinished = loads.max(axis=1) > target[active] * (1 + LEAST_GAIN)
        active, loads = active[unfinished], loads[unfinished]
        if not active.size:
            break
        improved = np.zeros(active.size, np.bool_)
        for table in tables:
            left = np.flatnonzero(~improved)
            if not left.size:
                break
            top, mine, rank, theirs, gain = _best_exchange(
                held[active[left]], loads[left], node_of_rank, table
            )
            better = gain > LEAST_GAIN * loads[left].max(axis=1)
            row, top, mine, rank, theirs = (a[better] for a in (active[left], top, mine, rank, theirs))
            _exchange((held, order), row[:, None], top[:, None], mine, rank[:, None], theirs)
            improved[left[better]] = True
        active = active[improved]
        steps += bool(active.size)
    return order.reshape(rows, -1), steps


def _best_exchange(
    held: Floats, loads: Floats, node_of_rank: Ints, table: Ints
) -> tuple[Ints, Ints, Ints, Ints, Floats]:
    """Most loaded rank ``(rows,)`` and its slots ``(rows, n)``, the partner and its slots, the gain.

    ``table`` lists the sets of ``n`` slots that may be exchanged, ``(sets, n)``.
    """
    rows, ranks, _ = held.shape
    every = np.arange(rows)
    top = loads.argmax(axis=1)
    peak = loads[every, top]
    sums = held[:, :, table].sum(axis=-1)
    shift = sums[every, top][:, None, :, None] - sums[:, :, None, :]
    after = np.maximum(peak[:, None, None, None] - shift, loads[:, :, None, None] + shift)
    barred = (node_of_rank[None, :] != node_of_rank[top][:, None]) | (
        np.arange(ranks)[None, :] == top[:, None]
    )
    after[barred] = np.inf
    flat = after.reshape(rows, -1)
    best = flat.argmin(axis=1)
    rank, mine, theirs = np.unravel_index(best, (ranks, table.shape[0], table.shape[0]))
    return top, table[mine], rank, table[theirs], peak - flat[every, best]


def _exchange(
    arrays: tuple[Floats, Ints], row: Ints, top: Ints, mine: Ints, rank: Ints, theirs: Ints
) -> None:
    for array in arrays:
        given, taken = array[row, top, mine].copy(), array[row, rank, theirs].copy()
        array[row, top, mine], array[row, rank, theirs] = taken, given


def restarted_search(
    loads: Floats,
    experts: Ints,
    node_of_rank: Ints,
    target: Floats,
    rng: np.random.Generator,
    *,
    variants: int,
    rounds: int,
    kicks: int,
) -> Ints:
    """Iterated local search: disturb the best placement in several ways, search each, keep the best.

    A disturbance gives one replica to another expert (where there are replicas, in half of the
    variants) and exchanges random copies; both stay inside a node. Rows that have reached their
    target are left alone.

    Parameters
    ----------
    loads : ndarray of float64, ``(layers, experts)``
        Tokens. [tokens]
    experts : ndarray of int64, ``(layers, ranks * slots)``
        Placement to start from.
    node_of_rank : ndarray of int64, ``(ranks,)``
        Node of each rank, in equal runs.
    target : ndarray of float64, ``(layers,)``
        Largest rank load that is good enough. [tokens]
    rng : numpy.random.Generator
        Source of the disturbances.
    variants, rounds, kicks : int
        Disturbed placements per layer and round, rounds, random exchanges in a disturbance. [-]

    Returns
    -------
    ndarray of int64, ``(layers, ranks * slots)``
        Placement with a largest rank load not above that of the start, layer by layer.
    """
    best = experts.copy()
    ranks, nodes = node_of_rank.size, int(node_of_rank[-1]) + 1
    weights = copy_weights(loads, best)
    peak = weights.reshape(len(best), ranks, -1).sum(axis=2).max(axis=1)
    for _ in range(rounds):
        open_rows = np.flatnonzero(peak > target * (1 + LEAST_GAIN))
        if not open_rows.size:
            break
        of_row = np.repeat(open_rows, variants)
        tried = best[of_row]
        _move_replica(tried, weights[of_row], nodes, rng)
        _kick(tried, nodes, kicks, rng)
        tried_weights = copy_weights(loads[of_row], tried).reshape(len(tried), ranks, -1)
        order, _ = swap_search(tried_weights, node_of_rank, target[of_row], pairs=True)
        found = np.take_along_axis(tried_weights.reshape(len(tried), -1), order, axis=1)
        peaks = found.reshape(len(tried), ranks, -1).sum(axis=2).max(axis=1).reshape(-1, variants)
        winner = peaks.argmin(axis=1) + np.arange(len(open_rows)) * variants
        gained = peaks.min(axis=1) < peak[open_rows] * (1 - LEAST_GAIN)
        row, winner = open_rows[gained], winner[gained]
        best[row] = np.take_along_axis(tried[winner], order[winner], axis=1)
        weights[row] = found[winner]
        peak[row] = peaks.min(axis=1)[gained]
    return best


def copy_weights(loads: Floats, experts: Ints) -> Floats:
    """Tokens of each slot under the even split, ``(rows, slots)``. [tokens]"""
    rows, num_experts = loads.shape
    cells = np.arange(rows)[:, None] * num_experts + experts
    copies = np.bincount(cells.ravel(), minlength=rows * num_experts)
    return np.asarray(loads.ravel()[cells] / copies[cells], np.float64)


def _move_replica(experts: Ints, weights: Floats, nodes: int, rng: np.random.Generator) -> None:
    """In every second row, a random slot of a replicated expert takes an expert of its own node.

    The new expert is the heavier copy of two random slots: what is hot is worth replicating.
    """
    rows, slots = experts.shape
    row = np.arange(0, rows, 2)
    slot: Ints = np.asarray(rng.integers(slots, size=row.size), np.int64)
    first, second = (_same_node(slot, slots, nodes, rng) for _ in range(2))
    heavier = np.where(weights[row, first] >= weights[row, second], first, second)
    replicated = (experts[row] == experts[row, slot][:, None]).sum(axis=1) > 1
    row, slot, heavier = row[replicated], slot[replicated], heavier[replicated]
    experts[row, slot] = experts[row, heavier]


def _kick(experts: Ints, nodes: int, kicks: int, rng: np.random.Generator) -> None:
    """Random exchanges between two slots of a node, in place."""
    rows, slots = experts.shape
    every = np.arange(rows)
    for _ in range(kicks):
        one: Ints = np.asarray(rng.integers(slots, size=rows), np.int64)
        two = _same_node(one, slots, nodes, rng)
        experts[every, one], experts[every, two] = experts[every, two], experts[every, one]


def _same_node(slot: Ints, slots: int, nodes: int, rng: np.random.Generator) -> Ints:
    """Random slots on the nodes of the given ones."""
    per_node = slots // nodes
    return slot // per_node * per_node + rng.integers(per_node, size=slot.size)
