"""Greedy building blocks, over all layers at once: who is replicated, and what goes where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moesim.placement.placed import EMPTY, Floats, Ints
from moesim.placement.problem import Problem


def replicate(loads: Floats, num_slots: int) -> tuple[Ints, Ints]:
    """Copies of experts: one each, then one at a time for the expert with most tokens per copy.

    Parameters
    ----------
    loads : ndarray of float64, ``(rows, experts)``
        Tokens. [tokens]
    num_slots : int
        Copies of a row in total, at least the number of experts. [-]

    Returns
    -------
    items : ndarray of int64, ``(rows, num_slots)``
        Expert of each copy: all experts in order, then the replicas in the order they were given.
    copies : ndarray of int64, ``(rows, experts)``
        Copies of each expert. [-]
    """
    rows, experts = loads.shape
    copies = np.ones((rows, experts), np.int64)
    items = np.empty((rows, num_slots), np.int64)
    items[:, :experts] = np.arange(experts)
    every = np.arange(rows)
    for slot in range(experts, num_slots):
        hottest = (loads / copies).argmax(axis=1)
        items[:, slot] = hottest
        copies[every, hottest] += 1
    return items, copies


def pack(
    weights: Floats,
    num_packs: int,
    names: Ints | None = None,
    *,
    room: Ints | None = None,
    speeds: Floats | None = None,
) -> Ints:
    """Order of items that fills packs: heaviest first onto the lightest pack with room.

    Parameters
    ----------
    weights : ndarray of float64, ``(rows, items)``
        Weight of each item; without ``room`` their number is a multiple of ``num_packs``.
    num_packs : int
        Packs. [-]
    names : ndarray of int64, ``(rows, items)``, optional
        A pack takes two items of one name only if no pack with room lacks that name.
    room : ndarray of int64, ``(rows, packs)``, optional
        Places of each pack, at least as many as items in all; default equal packs. [-]
    speeds : ndarray of float64, ``(packs,)``, optional
        The pack that would be done first with the item takes it; default the lightest pack. [-]

    Returns
    -------
    ndarray of int64, ``(rows, packs * size)``
        Item at each place, :data:`EMPTY` for none; places ``p * size`` to ``(p + 1) * size - 1`` are
        pack ``p``, where ``size`` is that of the widest pack.
    """
    rows, items = weights.shape
    if room is None:
        room = np.full((rows, num_packs), items // num_packs, np.int64)
    size = int(room.max())
    every = np.arange(rows)
    load = np.zeros((rows, num_packs))
    filled = np.zeros((rows, num_packs), np.int64)
    places = np.full((rows, num_packs * size), EMPTY, np.int64)
    holds = None if names is None else np.zeros((rows, int(names.max()) + 1, num_packs), np.bool_)
    for item in np.argsort(-weights, axis=1, kind="stable").T:
        done = load if speeds is None else (load + weights[every, item][:, None]) / speeds
        open_load = np.where(filled < room, done, np.inf)
        if holds is not None and names is not None:
            name = names[every, item]
            apart = np.where(holds[every, name], np.inf, open_load)
            has_apart = np.isfinite(apart.min(axis=1, keepdims=True))
            open_load = np.where(has_apart, apart, open_load)
        pack_index = open_load.argmin(axis=1)
        if holds is not None and names is not None:
            holds[every, names[every, item], pack_index] = True
        places[every, pack_index * size + filled[every, pack_index]] = item
        load[every, pack_index] += weights[every, item]
        filled[every, pack_index] += 1
    return places


def filled_in_order(capacity: Ints, rows: Sequence[Ints]) -> Ints:
    """Slots ``(layers, ranks * widest)`` that hold the entries of ``rows``, rank after rank.

    Parameters
    ----------
    capacity : ndarray of int64, ``(layers, ranks)``
        Slots of each rank. [-]
    rows : sequence of ndarray of int64
        As many experts a layer as it has slots.
    """
    widest = int(capacity.max())
    exists = (np.arange(widest) < capacity[:, :, None]).reshape(len(capacity), -1)
    held = np.full(exists.shape, EMPTY, np.int64)
    held[exists] = np.concatenate(rows)
    return held


def packed(problem: Problem) -> Ints:
    """Expert in each slot, ``(layers, slots)``, after replication and packing, heaviest first.

    Works for ranks that differ in slots and in speed, and layers that differ in slots.
    """
    totals = problem.capacity.sum(axis=1)
    speeds = None if problem.speeds is None else problem.relative_speeds
    held = np.full((problem.num_layers, problem.num_slots), EMPTY, np.int64)
    for total in np.unique(totals):
        rows = np.flatnonzero(totals == total)
        loads, room = problem.loads[rows], problem.capacity[rows]
        items, copies = replicate(loads, int(total))
        weights = np.take_along_axis(loads / copies, items, axis=1)
        places = pack(weights, problem.num_ranks, items, room=room, speeds=speeds)
        found = np.where(places == EMPTY, EMPTY, np.take_along_axis(items, np.maximum(places, 0), axis=1))
        wide = held[rows].reshape(len(rows), problem.num_ranks, -1)
        wide[:, :, : found.shape[1] // problem.num_ranks] = found.reshape(len(rows), problem.num_ranks, -1)
        held[rows] = wide.reshape(len(rows), -1)
    return held
