"""DualPipe: two pipelines through the same stages in opposite directions, forwards beside backwards."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from moesim.training.schedules.base import Geometry, Orders, Pass, Task, schedules, wants_chunks


@schedules.register("dualpipe")
@dataclass(frozen=True)
class DualPipe:
    """Microbatches enter at both ends; a stage holds two parts and pairs forwards with backwards.

    The first half of the microbatches runs from stage 0 up through chunk 0, the other half from the last
    stage down through chunk 1. Bubbles are filled by split backwards. Weights are held twice.

    References
    ----------
    .. [1] DeepSeek-AI, "DeepSeek-V3 Technical Report," arXiv:2412.19437, section 3.2.1, 2024.
    .. [2] DeepSeek-AI, DualPipe (github.com/deepseek-ai/DualPipe), 2025: eight phases of a stage.
    """

    splits_backward: ClassVar[bool] = True
    pairs: ClassVar[bool] = True

    def problems(self, geometry: Geometry) -> list[str]:
        """It wants an even number of stages and an even number of microbatches, at least two a stage."""
        found = wants_chunks(geometry, 2)
        least = 2 * geometry.num_stages
        if geometry.num_stages % 2:
            found.append(f"got {geometry.num_stages} stages; accepted: an even number")
        if geometry.num_microbatches % 2 or geometry.num_microbatches < least:
            accepted = f"an even number of at least {least} (two a stage)"
            found.append(f"got {geometry.num_microbatches} microbatches; accepted: {accepted}")
        return found

    def part_of(self, stage: int, chunk: int, geometry: Geometry) -> int:
        """Chunk 0 counts from the first stage, chunk 1 from the last."""
        return geometry.num_stages - 1 - stage if chunk else stage

    def orders(self, geometry: Geometry) -> Orders:
        """A stage counts its place from the nearer end and calls that end's direction its first."""
        half = geometry.num_microbatches // 2
        orders = []
        for stage in range(geometry.num_stages):
            mirrored = geometry.num_stages - 1 - stage
            is_upper = stage > mirrored

            def name(direction: int, number: int, is_upper: bool = is_upper) -> tuple[int, int]:
                chunk = direction ^ is_upper
                return chunk * half + number, chunk

            orders.append(eight_phases(min(stage, mirrored), geometry.num_stages // 2, half, name))
        return tuple(orders)


Name = Callable[[int, int], tuple[int, int]]
"""Microbatch and chunk of the n-th microbatch of direction 0 or 1."""


def eight_phases(place: int, length: int, count: int, name: Name) -> tuple[Task, ...]:
    """Tasks of one stage of a pipeline that is run through in two directions.

    Parameters
    ----------
    place : int
        Of the stage, counted from the end at which its direction 0 enters.
    length : int
        Stages from there to where the directions meet.
    count : int
        Microbatches of each direction, at least ``2 * length``.
    name : callable
        How the n-th microbatch of a direction is called.
    """
    tasks = _Emitter(name)
    left = length - 1 - place
    for _ in range(2 * left):
        tasks.forward(0)
    for _ in range(place + 1):
        tasks.forward(0)
        tasks.forward(1)
    for _ in range(left):
        tasks.backward(1, split=True)
        tasks.weights()
        tasks.forward(1)
    for i in range(count - 2 * length + place + 1):
        if i == 0 and left == 0:  # where the directions meet, pairing would delay the first backward
            tasks.forward(0)
            tasks.backward(1)
        else:
            tasks.pair(0, 1)
        tasks.pair(1, 0)
    for _ in range(left):
        tasks.backward(1)
        tasks.pair(1, 0)
    for i in range(2 * (place + 1)):  # the later half leaves its weight gradients for the end
        tasks.backward(1 - i % 2, split=i > place)
    for _ in range(left):
        tasks.weights()
        tasks.backward(0, split=True)
    for _ in range(place + 1):
        tasks.weights()
    return tuple(tasks.tasks)


@dataclass
class _Emitter:
    """Appends tasks, counting the microbatches of each direction; weight gradients first in, first out."""

    name: Name
    tasks: list[Task] = field(default_factory=list)
    forwards: list[int] = field(default_factory=lambda: [0, 0])
    backwards: list[int] = field(default_factory=lambda: [0, 0])
    open_weights: deque[tuple[int, int]] = field(default_factory=deque)

    def forward(self, direction: int) -> None:
        self.tasks.append(Task(Pass.FORWARD, *self._next(self.forwards, direction)))

    def backward(self, direction: int, *, split: bool = False) -> None:
        who = self._next(self.backwards, direction)
        self.tasks.append(Task(Pass.INPUT_GRADIENT if split else Pass.BACKWARD, *who))
        if split:
            self.open_weights.append(who)

    def pair(self, forward: int, backward: int) -> None:
        ahead = self._next(self.forwards, forward)
        self.tasks.append(Task(Pass.PAIR, *ahead, *self._next(self.backwards, backward)))

    def weights(self) -> None:
        self.tasks.append(Task(Pass.WEIGHT_GRADIENT, *self.open_weights.popleft()))

    def _next(self, counts: list[int], direction: int) -> tuple[int, int]:
        counts[direction] += 1
        return self.name(direction, counts[direction] - 1)
