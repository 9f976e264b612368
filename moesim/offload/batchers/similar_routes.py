"""Samples of similar routes together (ExpertFlow's token scheduling)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from moesim.offload.batchers import Batches, Routes, batchers

ROUNDS = 10
"""Most rounds of moving centres; the assignment mostly rests after four."""


@batchers.register("similar_routes")
@dataclass(frozen=True)
class SimilarRoutes:
    """Clusters of equal size by the distance between routes; samples change batches within the pool.

    ExpertFlow (arXiv 2410.17954): Hamming distance on layers times experts, balanced k-means. The keys and
    values of exchanged samples stay where they are, which its authors pay in copies.
    """

    pool: Annotated[int, Field(ge=1)] = 4

    def batches(self, routes: Routes, size: int) -> Batches:
        """Clusters of the waiting samples."""
        points = routes.reshape(len(routes), -1).astype(np.float32)
        count = -(-len(points) // size)
        centres = _spread(points, count)
        member = _balanced(points, centres, size)
        for _ in range(ROUNDS):
            centres = np.stack([points[member == k].mean(axis=0) for k in range(count)])
            moved = _balanced(points, centres, size)
            if (moved == member).all():
                break
            member = moved
        return [np.flatnonzero(member == k) for k in range(count)]


def _spread(points: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """First centres: the first sample, then each time the one farthest from those."""
    chosen = [0]
    nearest = _distances(points, points[:1])[:, 0]
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, _distances(points, points[chosen[-1:]])[:, 0])
        nearest[chosen] = -1
    return points[chosen]


def _distances(points: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared distances ``(points, centres)``; between binary vectors the Hamming distance."""
    squares = (points**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1)
    return np.asarray(squares - 2 * points @ centres.T, np.float32)


def _balanced(points: NDArray[np.float32], centres: NDArray[np.float32], size: int) -> NDArray[np.int64]:
    """Centre of every sample, none with more than its share: nearest pairs first."""
    distances = _distances(points, centres)
    count = len(centres)
    # sizes differ by one at most, so none is empty
    room = np.full(count, len(points) // count)
    room[: len(points) % count] += 1
    member = np.full(len(points), -1, np.int64)
    for pair in np.argsort(distances, axis=None, kind="stable").tolist():
        point, centre = divmod(pair, count)
        if member[point] < 0 and room[centre] > 0:
            member[point] = centre
            room[centre] -= 1
    return member
