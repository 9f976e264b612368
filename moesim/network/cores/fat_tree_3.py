"""Three-tier fat tree: leaves, pods, core; the equal links of a switch are one of their joint rate."""

from __future__ import annotations

from moesim.network.cores.base import Link, LinkPath, Wiring, cores


@cores.register("fat_tree_3")
class FatTree3:
    """Leaves under pods under a core, each tier with its own oversubscription."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._size = wiring.scale_out.leaves_per_pod or 1

    def links(self) -> list[Link]:
        """Leaves up, leaves down, pods up, pods down."""
        scale_out, down = self._wiring.scale_out, self._wiring.down_bytes_per_s
        up = [
            (f"leaf{leaf}", f"pod{leaf // self._size}", float(rate) / scale_out.oversubscription_ratio)
            for leaf, rate in enumerate(down)
        ]
        rates = [sum(rate for _, head, rate in up if head == f"pod{pod}") for pod in range(self._pods)]
        above = [
            (f"pod{pod}", "core", rate / scale_out.upper_oversubscription_ratio)
            for pod, rate in enumerate(rates)
        ]
        return [*up, *_back(up), *above, *_back(above)]

    @property
    def _pods(self) -> int:
        return -(-self._wiring.num_leaves // self._size)

    def paths(self, source: int, destination: int) -> list[LinkPath]:
        """Through the pod, or the core between pods."""
        leaves = self._wiring.num_leaves
        pods = source // self._size, destination // self._size
        if pods[0] == pods[1]:
            return [(source, leaves + destination)]
        up, down = 2 * leaves + pods[0], 2 * leaves + self._pods + pods[1]
        return [(source, up, down, leaves + destination)]


def _back(links: list[Link]) -> list[Link]:
    return [(head, tail, rate) for tail, head, rate in links]
