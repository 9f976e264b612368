"""Seconds that a step takes at least: sums over layers instead of programs, for searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moesim.engine.program import Part
from moesim.training.blocks import Block, LaunchCost, backward_blocks, forward_blocks
from moesim.training.items import Item
from moesim.training.layout import Layout
from moesim.training.overlaps.base import run_s
from moesim.training.recompute import Recompute
from moesim.training.schedules.base import Pass
from moesim.training.step import TrainSetup
from moesim.training.work import LayerWork

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Least:
    """Least seconds of a run of layers in one pass.

    Attributes
    ----------
    device, compute, exchange : ndarray, ``(draw,)``
        Work and exchanges one after another; work alone; exchanges alone. [s]
    host : float
        Launching all of it. [s]
    """

    device: Floats
    compute: Floats
    exchange: Floats
    host: float

    def __add__(self, other: Least) -> Least:
        return Least(
            self.device + other.device,
            self.compute + other.compute,
            self.exchange + other.exchange,
            self.host + other.host,
        )

    @property
    def alone(self) -> Floats:
        """Of a pass that nothing runs beside, ``(draw,)``. [s]"""
        return np.maximum(self.device, self.host)


@dataclass
class LeastTimes:
    """Least seconds of steps; layers of one :class:`LayerWork` are summed up once for all of its plans."""

    work: LayerWork
    host: LaunchCost
    mtp: bool = False
    _known: dict[tuple[object, ...], Least] = field(default_factory=dict)

    def step_s(self, setup: TrainSetup) -> float:
        """Bound of a step under a plan with these groups: its busiest stage, filled and drained.

        A stage works through all of its passes. Where parts lie along the stages, those before it must pass
        the first microbatch up before it starts, and the last one's gradients down after it is done.
        """
        geometry, schedule = setup.geometry, setup.schedule
        part_of = [
            [schedule.part_of(stage, chunk, geometry) for chunk in range(geometry.num_chunks)]
            for stage in range(geometry.num_stages)
        ]
        passes = [self._part(setup.layout, part, setup.recompute) for part in range(len(setup.layout))]
        num_draws = self.work.num_draws
        draws = np.bincount(np.arange(setup.num_microbatches) % num_draws, minlength=num_draws)
        # a microbatch goes through each part once, be it held by one stage or by two
        holders = np.bincount(np.ravel(part_of), minlength=len(passes))
        busy_s = [
            sum(_busy_s(passes[part], draws, paired=schedule.pairs) / holders[part] for part in parts)
            for parts in part_of
        ]
        if schedule.pairs:
            busy_s = [float(busy.max()) for busy in busy_s]
        if holders.max() > 1:
            return float(np.mean(busy_s))
        if schedule.splits_backward or schedule.pairs:
            return float(np.max(busy_s))
        ends_s = [sum(float(least.alone.min()) for least in passes[parts[0]]) for parts in part_of]
        before_s = np.concatenate([[0.0], np.cumsum(ends_s)[:-1]])
        return float(np.max(np.ravel(busy_s) + before_s))

    def _part(self, layout: Layout, part: int, recompute: Recompute) -> tuple[Least, Least]:
        """Forward and whole backward of one part of the model."""
        work, layers = self.work, layout[part]
        segments = [("embedding", list(work.embedding()))] if part == 0 else []
        segments += [(f"layer {index}", work.layer(index)) for index in layers]
        if part == len(layout) - 1:
            segments += [("head", work.head()), *([("mtp", work.mtp())] if self.mtp else [])]
        zeros = np.zeros(work.num_draws)
        nothing = Least(zeros, zeros, zeros, 0.0)
        forward = backward = nothing
        for position, (name, items) in enumerate(segments):
            forward = forward + self._forward(name, items)
            backward = backward + self._backward(name, items, recompute, position)
        return forward, backward

    def _forward(self, name: str, items: Sequence[Item]) -> Least:
        key = (name,)
        if key not in self._known:
            self._known[key] = self._sum(forward_blocks(items))
        return self._known[key]

    def _backward(self, name: str, items: Sequence[Item], recompute: Recompute, position: int) -> Least:
        """Of one segment; where it stands in its chunk matters only to policies that count layers."""
        whole = recompute.granularity != "full" or recompute.method == "uniform"
        key = (name, recompute, 0 if whole else position)
        if key not in self._known:
            blocks = backward_blocks(items, Pass.BACKWARD, recompute.at(position), self.host)
            self._known[key] = self._sum(blocks)
        return self._known[key]

    def _sum(self, blocks: Sequence[Block]) -> Least:
        """Blocks one after another; members of a group wait for their slowest before each exchange."""
        members = (self.work.num_draws, max(self.work.plan.ep, 1))
        device, exchange = np.zeros(members[0]), np.zeros(members[0])
        own, compute = np.zeros(members), np.zeros(members)
        for block in blocks:
            done = _seconds(block.work, members)
            own, compute = own + done, compute + done + _seconds(block.beside, members)
            if block.layer:
                # all meet in it, and leave it together or apart
                span = run_s(block.layer, np.prod(members, dtype=int)).reshape(members)
                least = span.min(axis=-1)
                device = device + own.max(axis=-1) + least
                own = span - least[:, np.newaxis]
            if block.link is None or block.moved is None:
                continue
            moved, beside = _seconds((block.moved,), members), _seconds(block.beside, members)
            exchange = exchange + moved.max(axis=-1)
            if block.link.everybody:
                slowest = own.max(axis=-1, keepdims=True) + moved.max(axis=-1, keepdims=True)
                device = device + slowest[:, 0]
                own = np.maximum(own + beside - slowest, 0.0)
            else:
                own = own + np.maximum(moved, beside)
        launches = sum(block.launches for block in blocks) * self.host.launch_s
        return Least(device + own.max(axis=-1), compute.max(axis=-1), exchange, float(launches))


def _busy_s(passes: tuple[Least, Least], draws: NDArray[np.int64], *, paired: bool) -> Floats:
    """Forward and backward of a part, once for each microbatch of each draw: ``(1,)``. [s]

    With pairs ``(3,)``, of work, exchanges and host: whatever lies beside whatever, each of them is done.
    """
    if not paired:
        return np.array([draws @ (passes[0].alone + passes[1].alone)])
    both = passes[0] + passes[1]
    return np.array([draws @ both.compute, draws @ both.exchange, draws.sum() * both.host])


def _seconds(parts: Sequence[Part], members: tuple[int, int]) -> Floats:
    """Of parts in a row, ``(draw, member)``. [s]"""
    total: Floats = np.zeros(members)
    for part in parts:
        seconds = np.asarray(part.estimate.seconds, np.float64)
        total = total + (seconds.reshape(members) if seconds.size > 1 else seconds)
    return total
