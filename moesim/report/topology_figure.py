"""Picture of a cluster's links: devices below, ports and switches above, lines as wide as their rate."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from moesim.network.topology import Topology
from moesim.report.style import FAINT, PALETTE, new_figure, theme, title
from moesim.units import fmt_si

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_DEVICES = 64
"""Devices drawn; of a larger cluster the first nodes."""

TIERS = ("rank", "switch", "root", "domain", "node", "leaf", "pod", "spine", "core")
"""Kinds of points from the bottom to the top; ports of a node count as ``node``."""

CALLED = {
    "rank": "devices",
    "switch": "PCIe switches",
    "root": "host bridges",
    "domain": "scale-up fabric",
    "node": "network ports",
    "leaf": "leaf switches",
    "pod": "pods",
    "spine": "spine",
    "core": "core",
}
SIDEWAYS_BEND = 0.18


def topology_figure(topology: Topology, heading: str) -> Figure:
    """Graph of the first devices of a cluster, tier by tier."""
    with theme():
        nodes = max(MOST_DEVICES // topology.layout.devices_per_node, 1)
        devices = min(nodes * topology.layout.devices_per_node, topology.num_ranks)
        first = "" if devices == topology.num_ranks else f"first {devices} of "
        return _figure(_drawn(topology), f"{heading}: {first}{topology.num_ranks} devices")


def _figure(drawn: list[tuple[str, str, float]], heading: str) -> Figure:
    tiers = [tier for tier in TIERS if any(_tier(point) == tier for pair in drawn for point in pair[:2])]
    places = _places(drawn, tiers)
    figure, axes = new_figure(1.2 + 0.85 * len(tiers))
    fastest = max(rate for *_, rate in drawn)
    for tail, head, rate in drawn:
        start, end = places[tail], places[head]
        width = 0.4 + 2.2 * rate / fastest
        level = start[1] == end[1]
        axes.annotate(
            "",
            start,
            end,
            arrowprops={
                "arrowstyle": "-",
                "linewidth": width,
                "color": PALETTE[tiers.index(_tier(tail)) % len(PALETTE)],
                "alpha": 0.55,
                "connectionstyle": f"arc3,rad={SIDEWAYS_BEND if level else 0}",
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )
    for row, tier in enumerate(tiers):
        points = [place for point, place in places.items() if _tier(point) == tier]
        axes.plot(*zip(*points, strict=True), "s", color=PALETTE[row % len(PALETTE)], markersize=4.5)
        rates = sorted({rate for tail, head, rate in drawn if tier in (_tier(tail), _tier(head))})
        axes.text(1.02, row, _label(tier, len(points), rates), va="center", fontsize=9, color=FAINT)
    axes.set_xlim(-0.02, 1.32)
    axes.set_ylim(-0.4, len(tiers) - 0.6)
    axes.set_axis_off()
    title(figure, heading)
    return figure


def _drawn(topology: Topology) -> list[tuple[str, str, float]]:
    """Links of the first devices, one direction of each, rates joined over in and out faces of a port."""
    layout = topology.layout
    nodes = max(MOST_DEVICES // layout.devices_per_node, 1)
    found: dict[tuple[str, str], float] = {}
    for tail, head, link in topology.edges:
        if not (_is_near(tail, nodes, topology) and _is_near(head, nodes, topology)):
            continue
        low, high = sorted((_joined(tail), _joined(head)), key=lambda p: (TIERS.index(_tier(p)), p))
        ends = low, high
        rate = float(topology.capacity_bytes_per_s[link]) if link >= 0 else 0.0
        if ends[0] != ends[1]:
            found[ends] = max(found.get(ends, 0.0), rate)
    return [(tail, head, rate) for (tail, head), rate in found.items()]


def _is_near(point: str, nodes: int, topology: Topology) -> bool:
    """Whether a point belongs to the first nodes, or is a switch above them all."""
    tier, number, layout = _tier(point), _number(point), topology.layout
    near = layout.node < nodes
    owners = {
        "rank": np.arange(layout.num_ranks),
        "node": layout.node,
        "domain": layout.domain,
        "switch": layout.switch,
        "root": layout.socket if layout.num_sockets else layout.node,
    }
    if tier in owners:
        return bool((owners[tier][near] == number).any())
    if tier == "leaf" and topology.core is None:
        ports = min(nodes, layout.num_nodes) * layout.rails
        return number <= int(layout.leaf_of_ports()[:ports].max())
    return number < MOST_DEVICES


def _joined(point: str) -> str:
    """One point for both faces of a port."""
    return point.removesuffix(".out").removesuffix(".in")


def _tier(point: str) -> str:
    return next(tier for tier in TIERS if point.startswith(tier))


def _number(point: str) -> int:
    digits = re.search(r"\d+", point)
    return int(digits[0]) if digits else 0


def _order(point: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", point)]


def _places(drawn: Iterable[tuple[str, str, float]], tiers: list[str]) -> dict[str, tuple[float, float]]:
    points = {point for tail, head, _ in drawn for point in (tail, head)}
    places = {}
    for row, tier in enumerate(tiers):
        own = sorted((p for p in points if _tier(p) == tier), key=_order)
        for place, point in zip(np.linspace(0, 1, 2 * len(own) + 1)[1::2], own, strict=True):
            places[point] = (float(place), float(row))
    return places


def _label(tier: str, count: int, rates: list[float]) -> str:
    shown = [fmt_si(rate, "B/s") for rate in rates if rate > 0]
    text = f"{count} {CALLED[tier]}" if count > 1 else CALLED[tier]
    return f"{text}\n{', '.join(shown[:3])}" if shown and tier != "rank" else text
