"""The kind of policy that orders a stage's passes, and the words that it uses.

A *stage* is a place in the pipeline, a *chunk* one of the pieces of the model that it holds, a *part* a piece
counted from the embedding (0) to the head. A schedule knows neither seconds nor layers: it says which passes
a stage launches and in which order, and where each part of the model lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Protocol, TypeAlias

from moesim.errors import InputError, Problem
from moesim.registry import Registry


class Pass(StrEnum):
    """What a stage does with a microbatch; ``B`` is the gradient of the input alone."""

    FORWARD = "F"
    INPUT_GRADIENT = "B"
    WEIGHT_GRADIENT = "W"
    BACKWARD = "BW"
    """Both gradients in one pass."""
    PAIR = "FB"
    """A forward of one microbatch beside a whole backward of another."""


@dataclass(frozen=True, slots=True)
class Task:
    """One pass of one microbatch through one chunk.

    Attributes
    ----------
    kind : Pass
        What is done.
    microbatch, chunk : int
        Whose forward or backward, and through which chunk of the stage.
    other_microbatch, other_chunk : int
        Those of the backward in a :attr:`Pass.PAIR`; -1 otherwise.
    """

    kind: Pass
    microbatch: int
    chunk: int = 0
    other_microbatch: int = -1
    other_chunk: int = -1

    @property
    def forward(self) -> tuple[int, int] | None:
        """Microbatch and chunk that this task takes forward, if any."""
        return (self.microbatch, self.chunk) if self.kind in FORWARDS else None

    @property
    def backward(self) -> tuple[int, int] | None:
        """Microbatch and chunk whose input gradient this task computes, if any."""
        if self.kind is Pass.PAIR:
            return self.other_microbatch, self.other_chunk
        return (self.microbatch, self.chunk) if self.kind in (Pass.INPUT_GRADIENT, Pass.BACKWARD) else None

    @property
    def weights(self) -> tuple[int, int] | None:
        """Microbatch and chunk whose weight gradient this task computes, if any."""
        if self.kind is Pass.WEIGHT_GRADIENT:
            return self.microbatch, self.chunk
        return None if self.kind is Pass.INPUT_GRADIENT else self.backward


FORWARDS = (Pass.FORWARD, Pass.PAIR)

Orders: TypeAlias = tuple[tuple[Task, ...], ...]
"""Tasks of every stage in the order in which it launches them."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Size of a pipeline.

    Attributes
    ----------
    num_stages : int
        Places in the pipeline (PP).
    num_microbatches : int
        Microbatches of a step that pass through it.
    num_chunks : int
        Pieces of the model that each stage holds (VPP).
    """

    num_stages: int
    num_microbatches: int
    num_chunks: int = 1


class Schedule(Protocol):
    """An order of passes; its dataclass fields are its parameters.

    Attributes
    ----------
    splits_backward : bool
        Whether it uses ``B`` and ``W`` beside or instead of ``BW``.
    pairs : bool
        Whether it uses ``FB``.
    """

    splits_backward: ClassVar[bool]
    pairs: ClassVar[bool]

    def __hash__(self) -> int:
        """Equal schedules have equal orders: what is derived from them is kept."""
        ...

    def problems(self, geometry: Geometry) -> list[str]:
        """Why it cannot run on ``geometry``, with what is accepted; empty if it can."""
        ...

    def part_of(self, stage: int, chunk: int, geometry: Geometry) -> int:
        """Which part of the model a chunk is: 0 holds the embedding, the largest one the head."""
        ...

    def orders(self, geometry: Geometry) -> Orders:
        """Tasks of each stage, in launch order."""
        ...


schedules: Registry[Schedule] = Registry("schedule", "moesim.training.schedules")


def num_parts(schedule: Schedule, geometry: Geometry) -> int:
    """Parts that the model is cut into; two stages may hold the same one (DualPipe)."""
    places = ((s, c) for s in range(geometry.num_stages) for c in range(geometry.num_chunks))
    return 1 + max(schedule.part_of(stage, chunk, geometry) for stage, chunk in places)


def check(schedule: Schedule, geometry: Geometry, *, field: str = "schedule") -> None:
    """Make sure that a schedule can run.

    Raises
    ------
    InputError
        With every problem, each under ``field``.
    """
    sizes = {name: getattr(geometry, name) for name in Geometry.__slots__}
    wrong = [f"{name}: got {size}; accepted: at least 1" for name, size in sizes.items() if size < 1]
    wrong = wrong or schedule.problems(geometry)
    if wrong:
        raise InputError([Problem(field, text) for text in wrong])


def wants_chunks(geometry: Geometry, count: int) -> list[str]:
    """Problem of a schedule for which a stage must hold ``count`` chunks."""
    found = geometry.num_chunks
    return [] if found == count else [f"got {found} chunks a stage; accepted: {count}"]


def in_turn(forwards: Sequence[Task], backwards: Sequence[Task], ahead: int) -> list[Task]:
    """Forwards and backwards of one stage in turn, the forwards up to ``ahead`` in front."""
    tasks = list(forwards[:ahead])
    for i, backward in enumerate(backwards):
        tasks += [*forwards[i + ahead : i + ahead + 1], backward]
    return tasks


def wants_a_v(geometry: Geometry) -> list[str]:
    """Problems of a schedule whose two chunks a stage lie like a V: two microbatches a stage fill it."""
    found = wants_chunks(geometry, 2)
    least = 2 * geometry.num_stages
    if geometry.num_microbatches < least:
        found.append(f"got {geometry.num_microbatches} microbatches; accepted: at least {least}")
    return found


def part_on_a_v(stage: int, chunk: int, geometry: Geometry) -> int:
    """Part of the model on a V: up through chunk 0, down through chunk 1."""
    return 2 * geometry.num_stages - 1 - stage if chunk else stage
