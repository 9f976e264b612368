"""Dragonfly: routers of a group all linked, every two groups by one link, minimal routes."""

from __future__ import annotations

from functools import cached_property
from itertools import permutations

from moesim.network.cores.base import Link, LinkPath, Wiring, cores


@cores.register("dragonfly")
class Dragonfly:
    """Groups of fully linked routers; a route crosses at most one link between groups.

    References
    ----------
    .. [1] Kim, Dally, Scott, Abts, "Technology-Driven, Highly-Scalable Dragonfly Topology," ISCA 2008.
    """

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._size = wiring.scale_out.leaves_per_pod or 1
        self._groups = [
            list(range(first, min(first + self._size, wiring.num_leaves)))
            for first in range(0, wiring.num_leaves, self._size)
        ]

    @cached_property
    def _index(self) -> dict[tuple[int, int], int]:
        """Place of each link by its two routers."""
        return {(int(tail[4:]), int(head[4:])): place for place, (tail, head, _) in enumerate(self.links())}

    def links(self) -> list[Link]:
        """Links inside the groups, then between groups."""
        scale_out, down = self._wiring.scale_out, self._wiring.down_bytes_per_s
        inside = [
            (f"leaf{a}", f"leaf{b}", float(down[a]) / scale_out.oversubscription_ratio / (len(group) - 1))
            for group in self._groups
            for a, b in permutations(group, 2)
        ]
        others = max(len(self._groups) - 1, 1)
        between = []
        for one, two in permutations(range(len(self._groups)), 2):
            total = float(sum(down[leaf] for leaf in self._groups[one]))
            rate = total / scale_out.oversubscription_ratio / scale_out.upper_oversubscription_ratio / others
            between.append((f"leaf{self._gate(one, two)}", f"leaf{self._gate(two, one)}", rate))
        return inside + between

    def _gate(self, of: int, to: int) -> int:
        """Router of one group that holds its link to another."""
        members = self._groups[of]
        return members[(to - (to > of)) % len(members)]

    def paths(self, source: int, destination: int) -> list[LinkPath]:
        """To the gate, over the one link between the groups, from the gate."""
        groups = source // self._size, destination // self._size
        if groups[0] == groups[1]:
            return [(self._index[source, destination],)]
        out, into = self._gate(groups[0], groups[1]), self._gate(groups[1], groups[0])
        steps = [(source, out), (out, into), (into, destination)]
        return [tuple(self._index[step] for step in steps if step[0] != step[1])]
