"""Adaptive replacement: recency and frequency share the cache, ghosts of the evicted shift the split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from moesim.memory.caches.policies.base import Dynamic
from moesim.memory.caches.ranking import Ids, Ranking, Rows, Worth, cache_policies
from moesim.memory.demand import Demand

_UNKNOWN, _ONCE, _OFTEN, _GHOST_ONCE, _GHOST_OFTEN = range(5)
_APART = 2.0**40
"""More than any time of last use: keeps one list wholly below the other."""


class _Adaptive(Ranking):
    """Lists T1, T2, B1, B2 of the paper as one label an expert; order inside a list is the time of use."""

    def __init__(self, demand: Demand) -> None:
        super().__init__(demand)
        self.label = np.zeros(self.last_use.shape, np.int8)
        self.target = np.zeros(demand.num_layers)
        self.size = np.zeros(demand.num_layers)

    def touch(self, rows: Rows, ids: Ids, at: int, weights: NDArray[np.float32] | None) -> None:
        labels = self.label[rows, ids]
        line = rows[:, 0]
        ghosts = [(labels == kind).sum(axis=1) for kind in (_GHOST_ONCE, _GHOST_OFTEN)]
        held = [(self.label[line] == kind).sum(axis=1) for kind in (_GHOST_ONCE, _GHOST_OFTEN)]
        step_up = ghosts[0] * np.maximum(1.0, held[1] / np.maximum(held[0], 1))
        step_down = ghosts[1] * np.maximum(1.0, held[0] / np.maximum(held[1], 1))
        capacity = np.maximum(self.size[line], 1.0)
        self.target[line] = np.clip(self.target[line] + step_up - step_down, 0.0, capacity)
        self.label[rows, ids] = np.where(labels == _UNKNOWN, _ONCE, _OFTEN)
        super().touch(rows, ids, at, weights)

    def worth(self, rows: Rows, ids: Ids) -> Worth:
        once = self.label[rows, ids] == _ONCE
        used = self.last_use[rows, ids]
        rank = np.argsort(np.argsort(np.where(once, used, np.inf), axis=1), axis=1)
        surplus = once.sum(axis=1, keepdims=True) - self.target[rows[:, 0], None]
        return used + np.where(once & (rank < surplus), 0.0, np.where(once, 2 * _APART, _APART))

    def evicted(self, rows: Rows, ids: Ids) -> None:
        once = self.label[rows, ids] == _ONCE
        self.label[rows, ids] = np.where(once, _GHOST_ONCE, _GHOST_OFTEN)
        np.subtract.at(self.size, rows, 1)
        for row in np.unique(rows):
            self._forget(int(row))

    def inserted(self, rows: Rows, ids: Ids) -> None:
        fresh = (self.label[rows, ids] != _ONCE) & (self.label[rows, ids] != _OFTEN)
        self.label[rows[fresh], ids[fresh]] = _ONCE
        np.add.at(self.size, rows, 1)

    def _forget(self, row: int) -> None:
        """Ghosts beyond as many as the cache holds are dropped, oldest first."""
        for kind in (_GHOST_ONCE, _GHOST_OFTEN):
            ghosts = np.flatnonzero(self.label[row] == kind)
            surplus = ghosts.size - int(max(self.size[row], 1.0)) - 1
            if surplus > 0:
                oldest = ghosts[np.argsort(self.last_use[row, ghosts], kind="stable")[:surplus]]
                self.label[row, oldest] = _UNKNOWN


@cache_policies.register("arc")
@dataclass(frozen=True)
class Arc(Dynamic):
    """Experts seen once and experts seen again are kept apart; a miss on a ghost moves the boundary.

    Megiddo and Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache," FAST 2003; experts of one
    pass are treated together.
    """

    bypasses: ClassVar[bool] = False

    def ranking(self, demand: Demand, rng: np.random.Generator) -> Ranking:  # noqa: ARG002
        """The four lists."""
        return _Adaptive(demand)
