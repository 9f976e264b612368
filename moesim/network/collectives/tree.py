"""Double binary tree: latency grows with the logarithm of the ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Estimate, Seconds
from moesim.network.collectives.base import Group, all_reduces, started
from moesim.network.fabric import Fabric


def tree_all_reduce_s(
    payload_bytes: Seconds, num_ranks: int, *, bandwidth_bytes_per_s: float, latency_s: float = 0.0
) -> Seconds:
    r"""Time of a pipelined double-binary-tree all-reduce.

    Parameters
    ----------
    payload_bytes : float or ndarray, ``(...)``
        Buffer of each rank. [bytes]
    num_ranks : int
        Participants, >= 1.
    bandwidth_bytes_per_s : float
        One direction, per rank. [bytes/s]
    latency_s : float
        Per hop. [s]

    Returns
    -------
    float or ndarray, ``(...)``
        0 for one rank. [s]

    Notes
    -----
    Every rank is an inner node of one tree and a leaf of the other, so both directions are full:

    .. math:: t = 2 \lceil \log_2 p \rceil \alpha + 2 \frac{n}{\beta}

    References
    ----------
    .. [1] Sanders, Speck, Traeff, "Two-tree algorithms for full bandwidth broadcast, reduction and
       scan," Parallel Computing 35(12), 2009.
    """
    if num_ranks == 1:
        return 0.0 * payload_bytes
    return 2 * math.ceil(math.log2(num_ranks)) * latency_s + 2 * payload_bytes / bandwidth_bytes_per_s


def tree_broadcast_s(
    payload_bytes: Seconds, num_ranks: int, *, bandwidth_bytes_per_s: float, latency_s: float = 0.0
) -> Seconds:
    r"""Time of a pipelined binary-tree broadcast: half an all-reduce.

    Notes
    -----
    .. math:: t = \lceil \log_2 p \rceil \alpha + \frac{n}{\beta}

    Parameters and reference as in :func:`tree_all_reduce_s`.
    """
    link = {"bandwidth_bytes_per_s": bandwidth_bytes_per_s, "latency_s": latency_s}
    return tree_all_reduce_s(payload_bytes, num_ranks, **link) / 2


@all_reduces.register("tree")
@dataclass(frozen=True)
class TreeAllReduce:
    """Up and down a double binary tree; fewer steps than a ring."""

    is_usual: ClassVar[bool] = True

    def price(self, payload_bytes: Seconds, ranks: NDArray[np.int64], fabric: Fabric) -> Estimate:
        """As :func:`tree_all_reduce_s`."""
        group = Group.of(ranks, fabric, "all_reduce")
        link = {"bandwidth_bytes_per_s": group.bytes_per_s, "latency_s": group.hop_s}
        return started(tree_all_reduce_s(payload_bytes, group.num_ranks, **link), group, fabric)
