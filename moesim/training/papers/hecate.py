"""Hecate: experts kept in shards, loaded ones materialised on more devices for a step (arXiv:2502.02581).

Everything is per layer; loads are rows of each expert that each device sends, ``(device, expert)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Holders = NDArray[np.bool_]


@dataclass(frozen=True)
class Routed:
    """Where rows go when each device prefers the nearest holder.

    Attributes
    ----------
    computed : ndarray, ``(device,)``
        Rows that each device's experts get. [rows]
    crossing, local : ndarray, ``(device,)``
        Rows that each device receives from other nodes; from its own node. [rows]
    """

    computed: Floats
    crossing: Floats
    local: Floats


def overlap_degree(idle_s: float, bandwidth_bytes_per_s: float, expert_bytes: float) -> int:
    """Experts that can be moved under other work of the layer (section 4.2). [-]"""
    return int(idle_s * bandwidth_bytes_per_s // expert_bytes)


def route(held: Holders, rows: Floats, node: NDArray[np.int64]) -> Routed:
    """Rows of every device to itself, else evenly over holders of its node, else over all holders.

    Parameters
    ----------
    held : ndarray, ``(device, expert)``
    rows : ndarray, ``(device, expert)``
        What each device sends to each expert. [rows]
    node : ndarray of int, ``(device,)``
    """
    same = (node[:, None] == node[None, :]).astype(np.float64)
    near = same @ held
    everywhere = held.sum(axis=0)
    own = held * rows
    in_node = np.where(~held & (near > 0), rows, 0.0)
    away = np.where(~held & (near == 0), rows, 0.0)
    from_node = held * (same @ np.divide(in_node, near, out=np.zeros_like(in_node), where=near > 0))
    spread = away / np.maximum(everywhere, 1)
    from_away = held * spread.sum(axis=0)
    received, local = from_away.sum(axis=1), from_node.sum(axis=1)
    return Routed(own.sum(axis=1) + local + received, received, local)


def reshard(loads: Floats, devices: int) -> Holders:
    """Equal numbers of experts a device, the loaded ones on different devices: greedy, most loaded first."""
    slots = loads.size // devices
    owned = np.zeros((devices, loads.size), np.bool_)
    total = np.zeros(devices)
    for expert in np.argsort(-loads, kind="stable"):
        free = np.flatnonzero(owned.sum(axis=1) < slots)
        device = free[np.argmin(total[free])]
        owned[device, expert] = True
        total[device] += loads[expert]
    return owned


def drifting_loads(
    steps: int, experts: int, deviation: float, memory: float, rng: np.random.Generator
) -> Floats:
    """Shares of each expert over steps, ``(step, expert)``: log-normal, and each step remembers the last.

    ``deviation`` is that of the logarithm, ``memory`` the correlation between neighbouring steps.
    """
    level = rng.normal(size=experts)
    found = np.empty((steps, experts))
    for step in range(steps):
        found[step] = np.exp(deviation * level)
        level = memory * level + np.sqrt(1 - memory**2) * rng.normal(size=experts)
    return np.asarray(found / found.sum(axis=1, keepdims=True))
