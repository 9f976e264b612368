"""Sums of traffic over the links of each block: class by class, never pair by pair."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.network.cores.base import Core, hashed
from moesim.network.layout import PCIE_KINDS, Layout, mesh_ends, pair_ends

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CorePaths:
    """Links above the leaves that each pair of leaves (of ports, where hashed) uses.

    Attributes
    ----------
    pair, link : ndarray of int, ``(use,)``
        ``source * size + destination``, and the link.
    share : ndarray, ``(use,)``
        Fraction of the pair's bytes.
    size, num_links : int
        Leaves or ports, and links.
    is_by_port : bool
        Pairs are of ports.
    """

    pair: Ints
    link: Ints
    share: Floats
    size: int
    num_links: int
    is_by_port: bool

    @classmethod
    def of(cls, core: Core, leaf_of_port: Ints, num_leaves: int, *, is_hashed: bool) -> CorePaths:
        """Paths of a core; ``leaf_of_port[port]`` says who hangs where."""
        pairs, links, shares = [], [], []
        for source in range(num_leaves):
            for destination in range(num_leaves):
                ways = core.paths(source, destination) if source != destination else []
                for number, way in enumerate(ways):
                    pair, share = np.array([source * num_leaves + destination]), 1 / len(ways)
                    if is_hashed:
                        pair, share = _hashed_pairs(leaf_of_port, source, destination, number, len(ways)), 1.0
                    pairs.append(np.repeat(pair, len(way)))
                    links.append(np.tile(np.array(way, dtype=np.int64), len(pair)))
                    shares.append(np.full(len(way) * len(pair), share))
        size = len(leaf_of_port) if is_hashed else num_leaves
        none = np.zeros(0, dtype=np.int64)
        return cls(
            np.concatenate([none, *pairs]),
            np.concatenate([none, *links]),
            np.concatenate([np.zeros(0), *shares]),
            size,
            len(core.links()),
            is_hashed,
        )

    def loads(self, between: Floats) -> Floats:
        """Bytes on each link from bytes between leaves or ports, ``(..., size, size) -> (..., link)``."""
        flat = between.reshape(-1, self.size * self.size)
        found = [
            np.bincount(self.link, row[self.pair] * self.share, minlength=self.num_links) for row in flat
        ]
        loads = np.array(found, dtype=np.float64)
        return np.asarray(loads.reshape(*between.shape[:-2], self.num_links))

    def used_by(self, source: int, destination: int) -> list[tuple[int, float]]:
        """Links of one pair with the share of its bytes on each."""
        own = np.flatnonzero(self.pair == source * self.size + destination)
        return [(int(self.link[at]), float(self.share[at])) for at in own]


def _hashed_pairs(leaf_of_port: Ints, source: int, destination: int, way: int, ways: int) -> Ints:
    """Pairs of ports under two leaves whose hash takes this way."""
    out, into = np.flatnonzero(leaf_of_port == source), np.flatnonzero(leaf_of_port == destination)
    first, second = np.repeat(out, len(into)), np.tile(into, len(out))
    taken = hashed(first, second, ways) == way
    return np.asarray(first[taken] * len(leaf_of_port) + second[taken])


def local_loads(layout: Layout, local: Floats) -> Iterator[tuple[str, Floats]]:
    """Loads of the links inside domains; ``local`` may be changed."""
    size = layout.devices_per_node
    if layout.kind == "nvswitch":
        yield "scale_up_out", local.sum(-1)
        yield "scale_up_in", local.sum(-2)
    elif layout.kind == "xgmi_mesh":
        source, destination = mesh_ends(layout.num_nodes, size)
        yield "mesh", local[..., source, destination]
    elif layout.kind in PCIE_KINDS:
        if layout.kind == "nvlink_pairs":
            left, right = pair_ends(layout.num_nodes, size)
            yield "pair", local[..., left, right]
            local[..., left, right] = 0.0
        yield "pcie_out", local.sum(-1)
        yield "pcie_in", local.sum(-2)
        if layout.num_switches:
            between = joined(local, layout.switch, layout.num_switches)
            yield "switch_out", between.sum(-1)
            yield "switch_in", between.sum(-2)
        if layout.num_sockets:
            source, destination = mesh_ends(layout.num_nodes, layout.num_sockets // layout.num_nodes)
            yield "socket", joined(local, layout.socket, layout.num_sockets)[..., source, destination]


def remote_loads(layout: Layout, remote: Floats, core: CorePaths | None) -> Iterator[tuple[str, Floats]]:
    """Loads of the links between domains."""
    if not layout.rails:
        return
    if layout.kind in PCIE_KINDS or layout.is_through_host:
        yield "pcie_out", remote.sum(-1)
        yield "pcie_in", remote.sum(-2)
        if layout.is_nic_at_root:
            members = one_hot(layout.switch, layout.num_switches)
            yield "switch_out", remote.sum(-1) @ members
            yield "switch_in", remote.sum(-2) @ members
    ports = layout.num_nodes * layout.rails
    between = joined(remote, layout.port, ports, keep_own=True)
    yield "nic_out", between.sum(-1)
    yield "nic_in", between.sum(-2)
    if layout.num_leaves < 2:
        return
    if core is not None and core.is_by_port:
        yield "core", core.loads(between)
        return
    between = joined(between, layout.leaf_of_ports(), layout.num_leaves)
    if core is not None:
        yield "core", core.loads(between)
        return
    yield "leaf_out", between.sum(-1)
    yield "leaf_in", between.sum(-2)


def joined(traffic: Floats, label: Ints, count: int, *, keep_own: bool = False) -> Floats:
    """Traffic between labelled groups, ``(..., count, count)``; what stays in a group is 0 unless kept."""
    members = one_hot(label, count)
    between = members.T @ traffic @ members
    if not keep_own:
        between[..., np.arange(count), np.arange(count)] = 0.0
    return np.asarray(between)


def one_hot(label: Ints, count: int) -> Floats:
    """1 where a row has a label, ``(row, count)``."""
    return np.asarray(np.asarray(label)[:, None] == np.arange(count), dtype=np.float64)
