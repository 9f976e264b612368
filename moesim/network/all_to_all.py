"""Time of an uneven all-to-all from what its ports carry."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Estimate
from moesim.network.fabric import Fabric
from moesim.network.traffic import PortTokens


def port_bound_s(
    port_bytes: NDArray[np.float64], *, bandwidth_bytes_per_s: float, latency_s: float = 0.0
) -> NDArray[np.float64]:
    """Time for the busiest port to carry its bytes; 0 where nothing is carried.

    Parameters
    ----------
    port_bytes : ndarray, ``(...)``
        Bytes through the busiest port of a link class. [bytes]
    bandwidth_bytes_per_s : float
        One direction, per rank. [bytes/s]
    latency_s : float
        Paid once when anything is carried. [s]

    Notes
    -----
    On a full-rate fabric the last byte of any set of flows leaves no earlier than the busiest port
    needs, and fair sharing reaches that bound; so for a phase that ends at a barrier it is the answer.
    """
    return np.where(port_bytes > 0, latency_s + port_bytes / bandwidth_bytes_per_s, 0.0)


def all_to_all(tokens: PortTokens, bytes_per_token: float, num_peers: int, fabric: Fabric) -> Estimate:
    """Duration of a dispatch or combine until every rank of the group has everything.

    Parameters
    ----------
    tokens : PortTokens, each ``(..., rank)``
        Tokens through each port of the ranks of one group.
    bytes_per_token : float
        Payload of one token on the wire. [bytes]
    num_peers : int
        Other ranks in the group: each costs a message.
    fabric : Fabric
        Link classes; scale-up and NIC traffic proceed side by side.

    Returns
    -------
    Estimate
        ``seconds`` has shape ``(...)``: the slowest port of the slowest link class.
    """
    efficiency = fabric.efficiencies.families["all_to_all"]
    scale_up_s = port_bound_s(
        tokens.worst_scale_up() * bytes_per_token,
        bandwidth_bytes_per_s=fabric.scale_up_bytes_per_s * efficiency.bandwidth_fraction,
        latency_s=fabric.scale_up_latency_s,
    )
    scale_out_s = port_bound_s(
        tokens.worst_scale_out() * bytes_per_token,
        bandwidth_bytes_per_s=fabric.nic_rate,
        latency_s=fabric.scale_out_latency_s,
    )
    overhead_s = efficiency.base_s + efficiency.per_peer_s * num_peers if num_peers else 0.0
    return fabric.estimate(overhead_s + np.maximum(scale_up_s, scale_out_s), "all_to_all")
