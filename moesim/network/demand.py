"""What a group's exchange asks of the links while it lasts, for the event interpreter's contention."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.engine.program import Demand
from moesim.network.topology import Topology

Floats = NDArray[np.float64]

CLASSES = (("scale_up_out", "scale_up_in"), ("pcie_out", "pcie_in"), ("nic_out", "nic_in"))
"""Ports that a rank sends and receives through, by class of link."""


def demand_of_traffic(topology: Topology, traffic: Floats, seconds: float | Floats) -> Demand:
    """Demand of an exchange: each rank on the ports that limit it, at the rate that its bytes need.

    Demands made from one topology share its capacities, so that they slow one another down where they meet.

    Parameters
    ----------
    topology : Topology
        Every link.
    traffic : ndarray, ``(source, destination)``
        Bytes from rank to rank. [bytes]
    seconds : float or ndarray, ``(rank,)``
        Duration of the exchange when alone, above 0. [s]

    Notes
    -----
    Of the classes of ports (scale-up, PCIe, network) a rank is held to the one whose links its bytes keep
    busiest; the joint links of its leaf count too where they are crossed. Bytes that take a small part of a
    duration (fixed costs dominate) ask for little, and are slowed only when little is left.
    """
    size = len(traffic)
    ranks = np.arange(size)
    loads = topology.link_bytes(traffic)
    duration = np.broadcast_to(np.asarray(seconds, dtype=np.float64), (size,))
    links = np.full((size, 4), -1, dtype=np.int64)
    rate, busiest = np.zeros(size), np.zeros(size)
    for out, into in CLASSES:
        if out not in topology.blocks:
            continue
        place = topology.layout.port[ranks] if out == "nic_out" else ranks
        ports = np.stack([topology.blocks[out].start + place, topology.blocks[into].start + place], axis=1)
        own = loads[ports]
        if out == "nic_out":  # a shared port carries the bytes of several ranks: each asks for its own
            is_remote = topology.layout.domain[:size, None] != topology.layout.domain[:size]
            remote = traffic * is_remote
            own = np.stack([remote.sum(1), remote.sum(0)], axis=1)
        busy = (own / topology.capacity_bytes_per_s[ports]).max(axis=1)
        chosen = busy > busiest
        links[chosen, :2] = ports[chosen]
        rate = np.where(chosen, own.max(axis=1) / duration, rate)
        busiest = np.maximum(busiest, busy)
        if out == "nic_out" and "leaf_out" in topology.blocks:
            leaf = topology.layout.leaf_of_ports()[place]
            crossed = chosen & (loads[topology.blocks["leaf_out"].start + leaf] > 0)
            for column, block in ((2, "leaf_out"), (3, "leaf_in")):
                links[crossed, column] = topology.blocks[block].start + leaf[crossed]
    return Demand(topology.capacity_bytes_per_s, links, rate)
