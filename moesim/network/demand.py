"""Links that transfers meet on: what a transfer asks of them, and how long it takes beside others.

A :class:`LinkPool` holds every link of a cluster at the rate that traffic reaches, the host's links of each
device included. A :class:`Transfer` is bytes on those links and the seconds they take alone. As a
:class:`~moesim.engine.program.Demand` it slows, and is slowed by, all else in the event interpreter;
:func:`together_s` says the same of a few transfers that start at once, without a program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.engine import events
from moesim.engine.durations import durations_ps
from moesim.engine.program import Demand, Part, Program, Run
from moesim.errors import InputError
from moesim.evidence import Estimate
from moesim.hardware.schema import Cluster
from moesim.network.fabric import Fabric, roofline_efficiencies
from moesim.network.topology import Topology
from moesim.units import PS_PER_S

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FABRIC_BLOCKS = ("scale_up_out", "scale_up_in", "mesh", "pair")
FABRIC_FAMILY = "all_reduce"
"""Its reached fraction is the most that any collective reaches of a link inside a node."""


@dataclass(frozen=True, eq=False)
class Transfer:
    """Bytes on every link of a pool, and the time they take when alone.

    Attributes
    ----------
    link_bytes : ndarray, ``(link,)``
        What crosses each link. [bytes]
    seconds : float
        Duration without anybody else on the links, above 0. [s]
    """

    link_bytes: Floats
    seconds: float


@dataclass(frozen=True, eq=False)
class LinkPool:
    """Links of a cluster at reached rates: those of its topology, then what its topology leaves out.

    Attributes
    ----------
    topology : Topology
        Its links come first, under the same numbers.
    names : tuple of str
        Of all links.
    capacity_bytes_per_s : ndarray, ``(link,)``
        Reached fraction of the datasheet rate; demands of one pool share this array. [bytes/s]
    blocks : dict of slice
        Those of the topology and, after them, ``host_out`` and ``host_in`` (link of each device to its host,
        where the topology has no PCIe) and ``host_memory`` (of each node).
    """

    topology: Topology
    names: tuple[str, ...]
    capacity_bytes_per_s: Floats
    blocks: dict[str, slice]

    @classmethod
    def of(cls, cluster: Cluster, fabric: Fabric) -> LinkPool:
        """Pool of a cluster, with the faults of its fabric."""
        topology, node, efficiencies = fabric.topology, cluster.node, roofline_efficiencies()
        # what was seen of ports stands for the host's links as well: both carry large packets
        usual = efficiencies.nic_bandwidth_fraction
        reached = np.full(len(topology.link_names), usual)
        for block in FABRIC_BLOCKS:
            if block in topology.blocks:
                reached[topology.blocks[block]] = efficiencies.families[FABRIC_FAMILY].bandwidth_fraction
        names, rates = list(topology.link_names), [topology.capacity_bytes_per_s * reached]
        blocks = dict(topology.blocks)

        def add(block: str, labels: list[str], rate: float) -> None:
            blocks[block] = slice(len(names), len(names) + len(labels))
            names.extend(labels)
            rates.append(np.full(len(labels), rate * usual))

        ranks, of_node = range(cluster.num_devices), topology.layout.node
        if "pcie_out" not in blocks and node.host.pcie is not None:
            rate = node.host.pcie.bandwidth_bytes_per_s
            add("host_out", [f"rank{r} -> host{of_node[r]}" for r in ranks], rate)
            add("host_in", [f"host{of_node[r]} -> rank{r}" for r in ranks], rate)
        memory = [f"host{n} memory" for n in range(cluster.num_nodes)]
        add("host_memory", memory, node.host.dram.bandwidth_bytes_per_s)
        return cls(topology, tuple(names), np.concatenate(rates), blocks)

    def link_bytes(self, traffic: Floats) -> Floats:
        """Bytes on each link for ``(..., source, destination)``, as :meth:`Topology.link_bytes` counts them.

        Bytes over a network port also cross the device's own link to its host, which the port hangs on.
        """
        loads = np.zeros((*traffic.shape[:-2], len(self.names)))
        loads[..., : len(self.topology.link_names)] = self.topology.link_bytes(traffic)
        if "host_out" in self.blocks:
            size = traffic.shape[-1]
            domain = self.topology.layout.domain[:size]
            remote = traffic * (domain[:, None] != domain)
            for block, axis in (("host_out", -1), ("host_in", -2)):
                start = self.blocks[block].start
                loads[..., start : start + size] = remote.sum(axis)
        return loads

    def layer_loads(self, traffic: Floats, ranks: Ints) -> Floats:
        """Load of each link, ``(layer, member, member) -> (layer, link)``, for members of these ranks."""
        whole, place = np.zeros((self.topology.num_ranks,) * 2), np.ix_(ranks, ranks)
        loads = np.zeros((len(traffic), len(self.names)))
        for layer, own in enumerate(traffic):
            whole[place] = own
            loads[layer] = self.link_bytes(whole)
        return loads

    def host_copy(self, rank: int, num_bytes: float, *, to_device: bool) -> Floats:
        """Bytes on each link of a copy between a device and the memory of its host, ``(link,)``."""
        layout, loads = self.topology.layout, np.zeros(len(self.names))
        way = "in" if to_device else "out"
        crossed = [("host_memory", int(layout.node[rank]))]
        if f"host_{way}" in self.blocks:
            crossed.append((f"host_{way}", rank))
        if f"pcie_{way}" in self.blocks:
            crossed.append((f"pcie_{way}", rank))
            if layout.num_switches:
                crossed.append((f"switch_{way}", int(layout.switch[rank])))
        for block, index in crossed:
            loads[self.blocks[block].start + index] = num_bytes
        return loads

    def transfer(
        self, link_bytes: Floats, *, seconds: float | None = None, most_bytes_per_s: float | None = None
    ) -> Transfer:
        """Transfer of these bytes: in the given time, or as fast as its links or ``most_bytes_per_s`` let it.

        Raises
        ------
        InputError
            Negative bytes, or none at all.
        """
        if not (link_bytes >= 0).all() or not link_bytes.any():
            raise InputError.at("link_bytes", float(link_bytes.min()), "0 or more, and some on a link")
        if seconds is None:
            seconds = float((link_bytes / self.capacity_bytes_per_s).max())
            if most_bytes_per_s is not None:
                seconds = max(seconds, float(link_bytes.max()) / most_bytes_per_s)
        return Transfer(link_bytes, seconds)

    def demand(self, transfer: Transfer, members: Ints, num_ranks: int) -> Demand | None:
        """Demand of a transfer that ``members`` of a program's ranks make as one; None where no link is used.

        A transfer asks of each link for its bytes over its seconds, at most what the link carries: fixed
        costs ask for nothing, so a short message is slowed only when little is left.
        """
        used = np.flatnonzero(transfer.link_bytes > 0)
        if not len(used):
            return None
        rate = np.minimum(transfer.link_bytes[used] / transfer.seconds, self.capacity_bytes_per_s[used])
        most = -(-len(used) // len(members))
        links, rates = np.full((num_ranks, most), -1, dtype=np.int64), np.zeros((num_ranks, most))
        # the engine adds up what members of a collective use: it does not matter which of them names a link
        who, column = members[np.arange(len(used)) // most], np.arange(len(used)) % most
        links[who, column], rates[who, column] = used, rate
        return Demand(self.capacity_bytes_per_s, links, rates)

    def demand_to_peers(self, peer: Ints, bytes_each: float, seconds: float | Floats) -> Demand | None:
        """Demand where every rank with ``peer[rank] >= 0`` sends so many bytes there, ``(rank,)``.

        For messages of a pipeline, and for collectives on rings: each member to the next one.
        """
        own = [
            (rank, self.shares(rank, int(to)))
            for rank, to in enumerate(peer.tolist())
            if to >= 0 and to != rank
        ]
        most = max((len(path) for _, path in own), default=0)
        if not most or not bytes_each:
            return None
        links = np.full((len(peer), most), -1, dtype=np.int64)
        rates = np.zeros((len(peer), most))
        lasting = np.broadcast_to(np.asarray(seconds, dtype=np.float64), (len(peer),))
        for rank, path in own:
            crossed = [link for link, _ in path]
            links[rank, : len(path)] = crossed
            wanted = np.array([share for _, share in path]) * bytes_each / lasting[rank]
            rates[rank, : len(path)] = np.minimum(wanted, self.capacity_bytes_per_s[crossed])
        return Demand(self.capacity_bytes_per_s, links, rates)

    def shares(self, source: int, destination: int) -> list[tuple[int, float]]:
        """Links between two ranks with the share of their bytes on each, as :meth:`Topology.shares`."""
        path = self.topology.shares(source, destination)
        domain = self.topology.layout.domain
        if "host_out" in self.blocks and domain[source] != domain[destination]:
            path.append((self.blocks["host_out"].start + source, 1.0))
            path.append((self.blocks["host_in"].start + destination, 1.0))
        return path


def ring_traffic(ranks: Sequence[int] | Ints, payload_bytes: float, num_ranks: int) -> Floats:
    """Bytes of a ring all-reduce of ``payload_bytes`` among ``ranks``, ``(source, destination)``.

    Half of it is a reduce-scatter or an all-gather. Gradients of several replicas: the sum over their rings.
    """
    traffic, members = np.zeros((num_ranks, num_ranks)), np.asarray(ranks)
    if len(members) > 1:
        traffic[members, np.roll(members, -1)] = 2 * (1 - 1 / len(members)) * payload_bytes
    return traffic


def together_s(pool: LinkPool, transfers: Sequence[Transfer]) -> Floats:
    """When each of the transfers is through if all start at once on the pool's links, ``(transfer,)``. [s]

    Shares are max-min fair and change whenever one of them ends. With gradients beside a dispatch:

    ``together_s(pool, [pool.transfer(pool.link_bytes(ring)), pool.transfer(pool.link_bytes(tokens))])``
    """
    one = np.zeros(1, dtype=np.int64)
    streams = tuple(f"transfer {number}" for number in range(len(transfers)))
    instructions = tuple(
        Run(
            stream,
            (Part(stream, "transfer", Estimate(transfer.seconds, "send", "assumed", 0.0)),),
            demand=pool.demand(transfer, one, 1),
        )
        for stream, transfer in zip(streams, transfers, strict=True)
    )
    if not instructions:
        return np.zeros(0)
    program = Program(1, streams, instructions)
    return np.asarray(events.simulate(program, durations_ps(program)).clocks_ps[:, 0] / PS_PER_S)
