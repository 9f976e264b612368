"""Ring algorithms: bandwidth-optimal, latency grows with the ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Estimate, Seconds
from moesim.network.collectives.base import Group, all_reduces, started
from moesim.network.fabric import Fabric


def ring_all_reduce_s(
    payload_bytes: Seconds, num_ranks: int, *, bandwidth_bytes_per_s: float, latency_s: float = 0.0
) -> Seconds:
    r"""Time of a ring all-reduce (reduce-scatter, then all-gather).

    Parameters
    ----------
    payload_bytes : float or ndarray, ``(...)``
        Buffer of each rank. [bytes]
    num_ranks : int
        Participants, >= 1.
    bandwidth_bytes_per_s : float
        One direction, per rank. [bytes/s]
    latency_s : float
        Per step of the ring. [s]

    Returns
    -------
    float or ndarray, ``(...)``
        0 for one rank. [s]

    Notes
    -----
    .. math:: t = 2 (p-1) \alpha + 2 \frac{p-1}{p} \frac{n}{\beta}

    References
    ----------
    .. [1] Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in
       MPICH," IJHPCA 19(1), 2005.

    Examples
    --------
    >>> ring_all_reduce_s(8e6, 4, bandwidth_bytes_per_s=1e9)
    0.012
    """
    return 2 * ring_all_gather_s(
        payload_bytes, num_ranks, bandwidth_bytes_per_s=bandwidth_bytes_per_s, latency_s=latency_s
    )


def ring_all_gather_s(
    payload_bytes: Seconds, num_ranks: int, *, bandwidth_bytes_per_s: float, latency_s: float = 0.0
) -> Seconds:
    r"""Time of a ring all-gather whose output is ``payload_bytes``; the same for a reduce-scatter.

    Notes
    -----
    .. math:: t = (p-1) \alpha + \frac{p-1}{p} \frac{n}{\beta}

    Parameters and reference as in :func:`ring_all_reduce_s`.
    """
    steps = num_ranks - 1
    return steps * latency_s + steps / num_ranks * payload_bytes / bandwidth_bytes_per_s


@all_reduces.register("ring")
@dataclass(frozen=True)
class RingAllReduce:
    """Chunks go round a ring twice; least bytes, most steps."""

    is_usual: ClassVar[bool] = True

    def price(self, payload_bytes: Seconds, ranks: NDArray[np.int64], fabric: Fabric) -> Estimate:
        """As :func:`ring_all_reduce_s`."""
        group = Group.of(ranks, fabric, "all_reduce")
        link = {"bandwidth_bytes_per_s": group.bytes_per_s, "latency_s": group.hop_s}
        return started(ring_all_reduce_s(payload_bytes, group.num_ranks, **link), group, fabric)
