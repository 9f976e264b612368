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
    held : ndarray of bool, ``(draw, layer, expert, rank)``, optional
        Where a rank with a copy serves its own tokens and others prefer copies of their node: the copies.
    ahead, twice : bool
        Copies travel under what comes before the experts; and again for the backward pass.
    passes_share : float
        Of the copies' way that one microbatch bears, where they are not sent twice. [-]
    """

    served: Floats
    home: NDArray[np.int64]
    held: NDArray[np.bool_] | None = None
    ahead: bool = False
    twice: bool = False
    passes_share: float = 1.0
    _key: dict[int, bytes] = field(default_factory=dict)

    def key(self, row: int) -> bytes:
        """Equal for layers with equal shares."""
        if row not in self._key:
            held = b"" if self.held is None else self.held[:, row].tobytes()
            self._key[row] = self.served[:, row].tobytes() + self.home[row].tobytes() + held
        return self._key[row]

    @cached_property
    def sent(self) -> Floats:
        """Experts whose weights a rank sends to another, ``(draw, layer, source, destination)``. [-]"""
        helps = (self._copies & ~self._lives).astype(np.float64)
        return np.asarray(np.swapaxes(self._lives, -1, -2).astype(np.float64)[np.newaxis] @ helps)

    def entering(self, domain: NDArray[np.int64]) -> Floats:
        """Most experts that any domain has copies of without being their home, ``(draw, layer)``. [-]"""
        inside = domain[:, np.newaxis] == np.unique(domain)
        there, home = (each.astype(np.float64) @ inside > 0 for each in (self._copies, self._lives))
        return np.asarray((there & ~home).sum(axis=-2).max(axis=-1), np.float64)

    @property
    def _copies(self) -> NDArray[np.bool_]:
        """Where each expert is in a draw, ``(draw, layer, expert, rank)``."""
        return self.served > 0 if self.held is None else self.held

    @property
    def _lives(self) -> NDArray[np.bool_]:
        """Where each expert lives, ``(layer, expert, rank)``."""
        return np.asarray(self.home[..., np.newaxis] == np.arange(self.served.shape[-1]))

    def sent_ports(self, domain: NDArray[np.int64]) -> PortTokens:
        """Those experts through each rank's ports, each ``(draw, layer, rank)``; ``domain``: of each rank."""
        near = domain[:, np.newaxis] == domain
        return Traffic(self.sent * near, self.sent * ~near).ports()
