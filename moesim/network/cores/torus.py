"""Torus of one to three dimensions: nodes linked to their neighbours, one dimension after another."""

from __future__ import annotations

from functools import cached_property
from itertools import product

import numpy as np

from moesim.network.cores.base import Link, LinkPath, Wiring, cores


@cores.register("torus")
class Torus:
    """A ring along each dimension; the shorter way round, both where they are equally long."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._shape = wiring.scale_out.dimensions or (wiring.num_leaves,)

    @cached_property
    def _index(self) -> dict[tuple[int, int], int]:
        return {(int(tail[4:]), int(head[4:])): place for place, (tail, head, _) in enumerate(self.links())}

    def links(self) -> list[Link]:
        """Node by node: one to each different neighbour."""
        ratio = self._wiring.scale_out.oversubscription_ratio
        found: dict[tuple[int, int], float] = {}
        for node in range(self._wiring.num_leaves):
            for axis in range(len(self._shape)):
                for step in (1, -1):
                    other = self._moved(node, axis, step)
                    if other != node:
                        found[node, other] = float(self._wiring.down_bytes_per_s[node]) / ratio
        return [(f"leaf{tail}", f"leaf{head}", rate) for (tail, head), rate in found.items()]

    def _moved(self, node: int, axis: int, step: int) -> int:
        place = list(np.unravel_index(node, self._shape))
        place[axis] = (place[axis] + step) % self._shape[axis]
        return int(np.ravel_multi_index(place, self._shape))

    def paths(self, source: int, destination: int) -> list[LinkPath]:
        """Dimension by dimension; a half turn may go either way."""
        here, there = (np.unravel_index(node, self._shape) for node in (source, destination))
        ways: list[list[int]] = []
        for axis, size in enumerate(self._shape):
            turn = int(there[axis] - here[axis]) % size
            ways.append([0] if turn == 0 else [turn] if 2 * turn < size else [turn - size])
            if turn and 2 * turn == size and size > 2:
                ways[-1] = [turn, -turn]
        return [self._walk(source, turns) for turns in product(*ways)]

    def _walk(self, node: int, turns: tuple[int, ...]) -> LinkPath:
        steps = []
        for axis, turn in enumerate(turns):
            for _ in range(abs(turn)):
                other = self._moved(node, axis, 1 if turn > 0 else -1)
                steps.append(self._index[node, other])
                node = other
        return tuple(steps)
