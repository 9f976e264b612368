"""What follows from a schedule's orders alone: whether they can run, in which sequence, what is alive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem
from moesim.training.schedules.base import Geometry, Orders, Pass, Schedule, Task, check, num_parts

Deed: TypeAlias = tuple[str, int, int]
"""Forward, input gradient or weight gradient (``F``, ``B``, ``W``), microbatch, part of the model."""

Done: TypeAlias = list[list[tuple[Deed, ...]]]
"""Deeds of every task of every stage, in launch order."""

SHOWN = 8
"""Problems of an order that are told; a wrong schedule has them by the hundred."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A task in the sequence that all stages together follow.

    Attributes
    ----------
    level : int
        Tasks of lower levels come first; at most one task of a stage has a level.
    stage : int
        Who does it.
    task : Task
        What.
    deeds : tuple of (str, int, int)
        What it does.
    needs : tuple of (str, int, int)
        Deeds of other stages whose results it waits for.
    """

    level: int
    stage: int
    task: Task
    deeds: tuple[Deed, ...]
    needs: tuple[Deed, ...]


@dataclass(frozen=True, slots=True)
class PassSequence:
    """Tasks of all stages in an order that keeps every dependency.

    Attributes
    ----------
    placed : tuple of Placed
        By level, then stage.
    stage_of : dict
        Which stage does a deed.
    parts : ndarray of int, ``(stage, chunk)``
        Which part of the model each chunk is.
    """

    placed: tuple[Placed, ...]
    stage_of: dict[Deed, int]
    parts: NDArray[np.int64]

    @property
    def kinds(self) -> frozenset[Pass]:
        """Kinds of passes that occur."""
        return frozenset(placed.task.kind for placed in self.placed)

    @property
    def num_parts(self) -> int:
        """Parts that the model is cut into."""
        return int(self.parts.max()) + 1


def deeds(task: Task, parts: Sequence[int]) -> tuple[Deed, ...]:
    """What a task does, in the order of Deed's names, on a stage whose chunks are ``parts`` of the model."""
    named = (("F", task.forward), ("B", task.backward), ("W", task.weights))
    return tuple((name, what[0], parts[what[1]]) for name, what in named if what is not None)


@lru_cache(maxsize=64)
def sequence(schedule: Schedule, geometry: Geometry) -> PassSequence:
    """The schedule's tasks in a sequence that can run.

    Raises
    ------
    InputError
        If the schedule cannot have this geometry, its orders leave out or repeat a pass, or stages wait for
        each other for ever.
    """
    check(schedule, geometry)
    orders = schedule.orders(geometry)
    chunks = range(geometry.num_chunks)
    parts = [[schedule.part_of(s, c, geometry) for c in chunks] for s in range(geometry.num_stages)]
    done = [[deeds(task, own) for task in tasks] for tasks, own in zip(orders, parts, strict=True)]
    stage_of = _stages_of_deeds(done, geometry, num_parts(schedule, geometry))
    return PassSequence(_in_sequence(orders, done, stage_of), stage_of, np.array(parts))


def _stages_of_deeds(done: Done, geometry: Geometry, count: int) -> dict[Deed, int]:
    """Which stage does each deed, after making sure that each is done once and at one place."""
    found = Counter(deed for tasks in done for own in tasks for deed in own)
    place = {deed: stage for stage, tasks in enumerate(done) for own in tasks for deed in own}
    wanted = {
        (name, microbatch, part)
        for name in "FBW"
        for microbatch in range(geometry.num_microbatches)
        for part in range(count)
    }
    wrong = [f"{_told(deed)} is missing" for deed in sorted(wanted - found.keys())]
    wrong += [f"{_told(deed)} does not belong there" for deed in sorted(found.keys() - wanted)]
    wrong += [f"{_told(deed)} is done {n} times" for deed, n in sorted(found.items()) if n > 1]
    wrong += [
        f"{_told(deed)} is on stage {place[deed]}, its forward on stage {place['F', *deed[1:]]}"
        for deed in sorted(wanted & found.keys())
        if place[deed] != place.get(("F", *deed[1:]), place[deed])
    ]
    if wrong:
        raise InputError([Problem("schedule", text) for text in _few(wrong)])
    return place


def _needs(done: tuple[Deed, ...], last: int) -> Iterator[Deed]:
    """Deeds that must be done before those of one task, wherever they are."""
    for name, microbatch, part in done:
        if name == "F" and part > 0:
            yield "F", microbatch, part - 1
        elif name == "B":
            yield "F", microbatch, part
            if part < last:
                yield "B", microbatch, part + 1
        elif name == "W" and len(done) == 1:
            yield "B", microbatch, part


def _in_sequence(orders: Orders, done: Done, stage_of: dict[Deed, int]) -> tuple[Placed, ...]:
    """Tasks at the earliest level that dependencies allow: stages go on as far as they can, in turn."""
    level_of: dict[Deed, int] = {}
    level, at = [-1] * len(orders), [0] * len(orders)
    last = max(part for _, _, part in stage_of)
    needs = [[tuple(_needs(own, last)) for own in tasks] for tasks in done]
    placed: list[Placed] = []
    moved = True
    while moved:
        moved = False
        for stage, tasks in enumerate(orders):
            while at[stage] < len(tasks) and all(deed in level_of for deed in needs[stage][at[stage]]):
                own, needed = done[stage][at[stage]], needs[stage][at[stage]]
                level[stage] = 1 + max(level[stage], *(level_of[deed] for deed in needed), -1)
                remote = tuple(deed for deed in needed if stage_of[deed] != stage)
                placed.append(Placed(level[stage], stage, tasks[at[stage]], own, remote))
                level_of.update(dict.fromkeys(own, level[stage]))
                at[stage] += 1
                moved = True
    stuck = [stage for stage, tasks in enumerate(orders) if at[stage] < len(tasks)]
    if stuck:
        texts = [_stuck(s, orders[s][at[s]], needs[s][at[s]], level_of) for s in stuck]
        raise InputError([Problem("schedule", text) for text in _few(texts)])
    return tuple(sorted(placed, key=lambda p: (p.level, p.stage)))


def _stuck(stage: int, task: Task, needs: tuple[Deed, ...], done: dict[Deed, int]) -> str:
    missing = ", ".join(_told(deed) for deed in needs if deed not in done)
    return (
        f"deadlock: stage {stage} stands before {task.kind} of microbatch {task.microbatch}, needs {missing}"
    )


def _told(deed: Deed) -> str:
    name, microbatch, part = deed
    return f"{name} of microbatch {microbatch} through part {part}"


def _few(texts: list[str]) -> list[str]:
    more = len(texts) - SHOWN
    return texts[:SHOWN] + ([f"and {more} more"] if more > 0 else [])


def in_flight(
    schedule: Schedule,
    geometry: Geometry,
    *,
    until: Pass = Pass.WEIGHT_GRADIENT,
    weights: NDArray[np.float64] | None = None,
) -> NDArray[np.int64]:
    """Microbatches whose activations are alive when a stage holds most, ``(stage, chunk)``. [-]

    Parameters
    ----------
    schedule, geometry
        Which pipeline.
    until : Pass, default W
        Activations live until the weight gradient is done, or with ``B`` until the input gradient is.
    weights : ndarray, ``(stage, chunk)``, optional
        What a microbatch takes in each chunk; the moment is that of the largest weighted sum, the first of
        several. One each by default. [bytes]

    Notes
    -----
    A microbatch lives from the start of its forward to the end of its backward, so the forward of a pair
    meets the activations of the backward beside it.
    """
    moments = _moments(schedule, geometry, until)
    if weights is None:
        weights = np.ones((geometry.num_stages, geometry.num_chunks))
    return np.array(
        [alive[np.argmax(alive @ own)] for alive, own in zip(moments, np.asarray(weights), strict=True)]
    )


@lru_cache(maxsize=256)
def _moments(schedule: Schedule, geometry: Geometry, until: Pass) -> tuple[NDArray[np.int64], ...]:
    """What is alive on each stage after its forwards, ``(moment, chunk)``, equal moments once."""
    check(schedule, geometry)
    found = []
    for tasks in schedule.orders(geometry):
        alive = [0] * geometry.num_chunks
        seen = {tuple(alive): None}
        for task in tasks:
            if task.forward is not None:
                alive[task.forward[1]] += 1
                seen[tuple(alive)] = None
            ended = task.backward if until is Pass.INPUT_GRADIENT else task.weights
            if ended is not None:
                alive[ended[1]] -= 1
        found.append(np.array(list(seen), dtype=np.int64))
    return tuple(found)
