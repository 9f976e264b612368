"""Who serves each expert's tokens in a step, and whose weights are sent for that."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moesim.network.traffic import PortTokens, Traffic

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Spread:
    """Shares of every expert's tokens over the ranks of its group.

    Attributes
    ----------
    served : ndarray, ``(draw, layer, expert, rank)``
        Summing to 1 over ranks. [-]
    home : ndarray of int, ``(layer, expert)``
        Rank that keeps the expert, its gradients and its optimizer states.
    """

    served: Floats
    home: NDArray[np.int64]
    _key: dict[int, bytes] = field(default_factory=dict)

    def key(self, row: int) -> bytes:
        """Equal for layers with equal shares."""
        if row not in self._key:
            self._key[row] = self.served[:, row].tobytes() + self.home[row].tobytes()
        return self._key[row]

    @cached_property
    def sent(self) -> Floats:
        """Experts whose weights a rank sends to another, ``(draw, layer, source, destination)``. [-]"""
        num_ranks = self.served.shape[-1]
        lives = (self.home[..., np.newaxis] == np.arange(num_ranks)).astype(np.float64)
        helps = ((self.served > 0) & (lives == 0)).astype(np.float64)
        return np.asarray(np.swapaxes(lives, -1, -2)[np.newaxis] @ helps)

    def sent_ports(self, domain: NDArray[np.int64]) -> PortTokens:
        """Those experts through each rank's ports, each ``(draw, layer, rank)``; ``domain``: of each rank."""
        near = domain[:, np.newaxis] == domain
        return Traffic(self.sent * near, self.sent * ~near).ports()
