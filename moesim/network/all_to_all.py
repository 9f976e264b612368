"""Time of an uneven all-to-all: what its busiest port needs, and when each rank is through."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.network.topology import Topology


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


def uneven_all_to_all_s(
    traffic: NDArray[np.float64],
    topology: Topology,
    *,
    reached_fraction: float = 1.0,
    per_peer_s: float = 0.0,
) -> NDArray[np.float64]:
    """When each rank has everything that others send it and has sent everything, ``(rank,)``. [s]

    Parameters
    ----------
    traffic : ndarray, ``(source, destination)``
        Bytes from rank to rank, all sent at once; the diagonal is free. [bytes]
    topology : Topology
        Every link; the ranks are its first ones.
    reached_fraction : float, default 1
        Reached over datasheet rate of every link. [-]
    per_peer_s : float, default 0
        Started one after another: a message to each peer. [s]

    Returns
    -------
    ndarray
        0 for a rank that neither sends nor receives.

    Raises
    ------
    InputError
        A negative message, more ranks than the cluster has, or a rank without a route.

    Notes
    -----
    A link is through when all bytes that cross it are; a rank when the links of all its messages are, after
    their latency. So the slowest sender, the slowest receiver and the slowest shared link all count, and the
    maximum over ranks is what the busiest link needs: on a full-rate fabric exactly the port bound.
    """
    link_s = topology.link_bytes(traffic) / (topology.capacity_bytes_per_s * reached_fraction)
    done = np.zeros(len(traffic))
    peers = np.zeros(len(traffic), dtype=np.int64)
    for source, destination in np.argwhere(traffic > 0).tolist():
        if source == destination:
            continue
        path = topology.shares(source, destination)
        busiest = max((link_s[link] for link, _ in path), default=0.0)
        seconds = float(busiest) + topology.path_latency_s(source, destination)
        for rank in (source, destination):
            done[rank] = max(done[rank], seconds)
        peers[source] += 1
    return done + per_peer_s * peers
