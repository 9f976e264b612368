"""Improving one layer by steps that load few experts: exchanges of copies, replicas given anew."""

from __future__ import annotations

import numpy as np

from moesim.placement.local_search import LEAST_GAIN
from moesim.placement.placed import EMPTY, Floats, Ints


def improve_within(loads: Floats, held: Ints, speeds: Floats, budget: int) -> Ints:
    """Slots after the best steps within a budget of loaded experts.

    Parameters
    ----------
    loads : ndarray of float64, ``(experts,)``
        Tokens. [tokens]
    held : ndarray of int64, ``(ranks, slots)``
        Present expert of each slot, :data:`EMPTY` for none.
    speeds : ndarray of float64, ``(ranks,)``
        Relative to the mean. [-]
    budget : int
        Experts on ranks that do not hold them now, at most. [-]

    Returns
    -------
    ndarray of int64, ``(ranks, slots)``
        As many filled slots on every rank as before.
    """
    here = held.copy()
    before = _resident(held, loads.size)
    while True:
        peak = _times(loads, here, speeds).max()
        options = [_best_exchange(loads, here, speeds, before, budget)]
        options.append(_best_replica(loads, here, speeds, before, budget))
        after, found = min(options, key=lambda option: option[0])
        if found is None or after >= peak * (1 - LEAST_GAIN):
            return here
        here = found


def _resident(held: Ints, experts: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    there = np.zeros((experts, len(held)), np.bool_)
    rank, slot = np.nonzero(held != EMPTY)
    there[held[rank, slot], rank] = True
    return there


def _times(loads: Floats, held: Ints, speeds: Floats) -> Floats:
    """Time of each rank under the even split, ``(ranks,)``. [tokens at mean speed]"""
    filled = held != EMPTY
    copies = np.bincount(held[filled], minlength=loads.size)
    weight = np.where(filled, (loads / np.maximum(copies, 1))[np.maximum(held, 0)], 0.0)
    return np.asarray(weight.sum(axis=1) / speeds, np.float64)


def _moved(held: Ints, before: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> int:
    return int((_resident(held, len(before)) & ~before).sum())


def _best_exchange(
    loads: Floats,
    held: Ints,
    speeds: Floats,
    before: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    budget: int,
) -> tuple[float, Ints | None]:
    """Exchange of a copy of the slowest rank that leaves the smallest largest time, and that time."""
    ranks, slots = held.shape
    filled = held != EMPTY
    copies = np.bincount(held[filled], minlength=loads.size)
    weight = np.where(filled, (loads / np.maximum(copies, 1))[np.maximum(held, 0)], 0.0)
    load = weight.sum(axis=1)
    top = int((load / speeds).argmax())
    rest = np.array(
        [np.delete(load / speeds, [top, g]).max(initial=0.0) if g != top else np.inf for g in range(ranks)]
    )
    shift = weight[top][:, None, None] - weight[None]
    after = np.maximum((load[top] - shift) / speeds[top], (load[:, None] + shift) / speeds[:, None])
    after = np.maximum(after, rest[:, None])
    after[~filled[top]] = np.inf
    after[:, ~filled] = np.inf
    for flat in np.argsort(after, axis=None, kind="stable")[: ranks * slots * slots]:
        mine, rank, theirs = np.unravel_index(int(flat), after.shape)
        if not after[mine, rank, theirs] < load[top] / speeds[top]:
            break
        tried = held.copy()
        tried[top, mine], tried[rank, theirs] = held[rank, theirs], held[top, mine]
        if _moved(tried, before) <= budget:
            return float(after[mine, rank, theirs]), tried
    return np.inf, None


def _best_replica(
    loads: Floats,
    held: Ints,
    speeds: Floats,
    before: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    budget: int,
) -> tuple[float, Ints | None]:
    """Best replica slot given to an expert of the slowest rank, and the largest time after it."""
    filled = held != EMPTY
    copies = np.bincount(held[filled], minlength=loads.size)
    top = int(_times(loads, held, speeds).argmax())
    best: tuple[float, Ints | None] = (np.inf, None)
    spare = np.argwhere(filled & (copies[np.maximum(held, 0)] > 1))
    for expert in np.unique(held[top][filled[top]]):
        for rank, slot in spare:
            if held[rank, slot] == expert or (held[rank] == expert).any():
                continue
            tried = held.copy()
            tried[rank, slot] = expert
            after = float(_times(loads, tried, speeds).max())
            if after < best[0] and _moved(tried, before) <= budget:
                best = (after, tried)
    return best
