"""ZB-V: zero bubble over two chunks a stage that lie like a V."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

from moesim.training.schedules.base import Geometry, Orders, Pass, Task, part_on_a_v, schedules, wants_a_v


@schedules.register("zb_v")
@dataclass(frozen=True)
class ZeroBubbleV:
    """Up through chunk 0 and down through chunk 1, split backwards; no stage idles if F, B and W are equal.

    References
    ----------
    .. [1] P. Qi, X. Wan, G. Huang, M. Lin, "Zero Bubble Pipeline Parallelism," arXiv:2401.10241, section 6
       (ZB-V), 2023.
    """

    splits_backward: ClassVar[bool] = True
    pairs: ClassVar[bool] = False

    def problems(self, geometry: Geometry) -> list[str]:
        """It wants two chunks a stage and at least two microbatches a stage."""
        return wants_a_v(geometry)

    def part_of(self, stage: int, chunk: int, geometry: Geometry) -> int:
        """Up through chunk 0, down through chunk 1."""
        return part_on_a_v(stage, chunk, geometry)

    def orders(self, geometry: Geometry) -> Orders:
        """Order of each stage."""
        return tuple(tuple(_order(stage, geometry)) for stage in range(geometry.num_stages))


def _order(stage: int, geometry: Geometry) -> Iterator[Task]:
    """Fill the V, then rounds of F, B, W through each chunk, then input gradients before what is left."""
    stages, total = geometry.num_stages, geometry.num_microbatches
    numbers = {(kind, chunk): count() for kind in Pass for chunk in (0, 1)}

    def take(kinds: str, chunk: int, times: int = 1) -> Iterator[Task]:
        for _ in range(times):
            for kind in kinds:
                yield Task(Pass(kind), next(numbers[Pass(kind), chunk]), chunk)

    yield from take("F", 0, 2 * (stages - stage) - 1)
    for _ in range(stage):
        yield from take("F", 1)
        yield from take("F", 0)
    yield from take("FBW", 1, stages - stage)
    forwards_left = total - 2 * stages + stage + 1
    for i in range(total - stages):
        yield from take("FBW" if i < forwards_left else "BW", 0)
        yield from take("FBW", 1)
    for _ in range(stage):
        yield from take("B", 0)
        yield from take("B", 1)
    yield from take("BW", 0, stages - stage)
    yield from take("W", 1, stage)
    yield from take("W", 0, stage)
