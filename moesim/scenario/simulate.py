"""A built scenario to its result: programs, makespans over routed batches, bands, and what limits it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesim.engine import events, vector
from moesim.engine.contention import LinkUse
from moesim.engine.durations import durations_ps
from moesim.engine.program import Program
from moesim.engine.spans import Recorded
from moesim.evidence import draw_errors
from moesim.scenario.background import Background, alone
from moesim.scenario.build import Built
from moesim.steps.layers import Lane
from moesim.steps.program import StepProgram, step_program
from moesim.units import PS_PER_S

Draws: TypeAlias = dict[str, NDArray[np.float64]]
"""Standard-normal errors of each operation family, ``(sample,)``."""


@dataclass(frozen=True)
class StepTimes:
    """Times of one step.

    Attributes
    ----------
    latency_s : ndarray, ``(sample,)``
        One microbatch through all stages. [s]
    period_s : ndarray, ``(sample,)``
        Between two steps in steady state; the latency without a pipeline. [s]
    """

    latency_s: NDArray[np.float64]
    period_s: NDArray[np.float64]


@dataclass(frozen=True)
class Simulated:
    """A step on all its routed batches.

    Attributes
    ----------
    batches : StepTimes
        Without calibration error, one sample a routed batch.
    errors : StepTimes
        The median batch under drawn calibration errors.
    nominal : StepTimes
        The median batch without error, one sample.
    program, recorded
        The median batch's latency program and what each rank did when.
    median : int
        Which batch that is.
    alone_s : float
        Its latency if nobody else were on the links. [s]
    link_use : LinkUse or None
        What its latency program and the traffic of others made of the links; None without others.
    """

    batches: StepTimes
    errors: StepTimes
    nominal: StepTimes
    program: Program
    recorded: Recorded
    median: int
    alone_s: float
    link_use: LinkUse | None


def simulate(built: Built, batches: Sequence[Sequence[Sequence[Lane]]]) -> Simulated:
    """Step times over routed ``batches`` (``[batch][stage][half]``), with bands from calibration errors."""
    interpreter, background = built.scenario.interpreter, built.machine.background
    steps = [step_program(built.stages(), lanes, built.overlap) for lanes in batches]
    each = [times_of(step, interpreter, background=background) for step in steps]
    over_batches = StepTimes(
        np.concatenate([t.latency_s for t in each]), np.concatenate([t.period_s for t in each])
    )
    median = int(np.argsort(over_batches.period_s, kind="stable")[(len(steps) - 1) // 2])
    step = steps[median]
    draws = draw_errors(step.latency.families(), built.scenario.bands.samples, built.scenario.seed)
    recorded, link_use = _record(step.latency, interpreter, background)
    errors, without = times_of(step, "vector", draws), times_of(step, "vector")
    if background is not None:
        errors = _in_proportion(errors, without, each[median])
    alone_s = float(without.latency_s[0])
    return Simulated(over_batches, errors, each[median], step.latency, recorded, median, alone_s, link_use)


def _in_proportion(errors: StepTimes, without: StepTimes, nominal: StepTimes) -> StepTimes:
    """Drawn times of a step without others on its links, as much longer as the median one is with them."""
    return StepTimes(
        errors.latency_s * (nominal.latency_s / without.latency_s),
        errors.period_s * (nominal.period_s / without.period_s),
    )


def times_of(
    step: StepProgram,
    interpreter: str,
    draws: Draws | None = None,
    *,
    background: Background | None = None,
) -> StepTimes:
    """Latency and period of one step, one sample a draw (``vector``) or one (``events``).

    Only ``events`` hears of the traffic of others; ``vector`` takes every transfer to be alone.
    """
    latency = latency_s(step, interpreter, draws, background=background)
    if step.longer is None:
        return StepTimes(latency, latency)
    return StepTimes(latency, period_s(step, interpreter, draws, background=background))


def latency_s(
    step: StepProgram, interpreter: str, draws: Draws | None = None, *, background: Background | None = None
) -> NDArray[np.float64]:
    """Latency alone, as of :func:`times_of`, ``(sample,)``. [s]"""
    return _makespan_s(step.latency, interpreter, draws, background)


def period_s(
    step: StepProgram, interpreter: str, draws: Draws | None = None, *, background: Background | None = None
) -> NDArray[np.float64]:
    """Period alone, as of :func:`times_of`, ``(sample,)``. [s]"""
    if step.shorter is None or step.longer is None:
        return latency_s(step, interpreter, draws, background=background)
    longer, shorter = (
        _makespan_s(program, interpreter, draws, background) for program in (step.longer, step.shorter)
    )
    return longer - shorter


def _makespan_s(
    program: Program, interpreter: str, draws: Draws | None, background: Background | None
) -> NDArray[np.float64]:
    if interpreter == "events":
        return np.array([_events(program, background).makespan_ps / PS_PER_S])
    compiled = _compiled(program)
    return vector.run(compiled, durations_ps(compiled.program, draws)).makespan_ps / PS_PER_S


@lru_cache(maxsize=4)
def _compiled(program: Program) -> vector.Compiled:
    """Programs are told apart by identity; a step runs its own without errors, with errors, and recorded."""
    return vector.compile(alone(program))


def _events(program: Program, background: Background | None) -> events.EventRun:
    whole = program if background is None else background.beside(program)
    return events.simulate(whole, durations_ps(whole))


def _record(
    program: Program, interpreter: str, background: Background | None
) -> tuple[Recorded, LinkUse | None]:
    """What each rank did when, and what became of the links where others are on them."""
    if interpreter == "events":
        run, own = _events(program, background), len(program.instructions)
        recorded = Recorded(run.recorded.starts_ps[:own], run.recorded.ends_ps[:own])
        return recorded, run.link_use[0] if run.link_use else None
    found = vector.run(_compiled(program), durations_ps(program), record=True).recorded
    assert found is not None  # asked for
    return found, None
