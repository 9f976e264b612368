"""Greedy building blocks, over all layers at once: who is replicated, and what goes where."""

from __future__ import annotations

import numpy as np

from moesim.placement.problem import Floats, Ints


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


def pack(weights: Floats, num_packs: int, names: Ints | None = None) -> Ints:
    """Order of items that fills equal packs: heaviest first onto the lightest pack with room.

    Parameters
    ----------
    weights : ndarray of float64, ``(rows, items)``
        Weight of each item; the number of items is a multiple of ``num_packs``.
    num_packs : int
        Packs. [-]
    names : ndarray of int64, ``(rows, items)``, optional
        A pack takes two items of one name only if no pack with room lacks that name.

    Returns
    -------
    ndarray of int64, ``(rows, items)``
        Item at each place; places ``p * size`` to ``(p + 1) * size - 1`` are pack ``p``.
    """
    rows, items = weights.shape
    size = items // num_packs
    every = np.arange(rows)
    load = np.zeros((rows, num_packs))
    filled = np.zeros((rows, num_packs), np.int64)
    places = np.empty((rows, items), np.int64)
    holds = None if names is None else np.zeros((rows, int(names.max()) + 1, num_packs), np.bool_)
    for item in np.argsort(-weights, axis=1, kind="stable").T:
        open_load = np.where(filled < size, load, np.inf)
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
