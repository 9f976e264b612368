"""What a core network is made from and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesim.hardware.schema import ScaleOut
from moesim.registry import Registry

Link: TypeAlias = tuple[str, str, float]
"""Tail, head and rate of one direction. [bytes/s]"""

LinkPath: TypeAlias = tuple[int, ...]

HASH_PRIMES = (73856093, 19349663)
"""Spread pairs of ports over equal paths: large primes, exclusive or, remainder."""


@dataclass(frozen=True)
class Wiring:
    """Leaves of a network.

    Attributes
    ----------
    scale_out : ScaleOut
        Its description.
    down_bytes_per_s : ndarray, ``(leaf,)``
        Joint rate of the ports below each leaf, one direction. [bytes/s]
    """

    scale_out: ScaleOut
    down_bytes_per_s: NDArray[np.float64]

    @property
    def num_leaves(self) -> int:
        """Leaf switches, or routers."""
        return len(self.down_bytes_per_s)


class Core(Protocol):
    """Links above the leaves; made from a :class:`Wiring`."""

    def __init__(self, wiring: Wiring) -> None: ...

    def links(self) -> list[Link]:
        """Every link, in a fixed order."""
        ...

    def paths(self, source: int, destination: int) -> list[LinkPath]:
        """Equally good paths between two different leaves, as places in :meth:`links`."""
        ...


cores: Registry[Core] = Registry("core_network", "moesim.network.cores")


def hashed(source: NDArray[np.int64], destination: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Which of ``count`` equal paths each pair of ports takes, the same each time."""
    first, second = HASH_PRIMES
    return np.asarray(((source + 1) * first ^ (destination + 1) * second) % count)
