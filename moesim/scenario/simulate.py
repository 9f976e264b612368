"""A built scenario to its result: programs, makespans over routed batches, bands, and what limits it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.engine import events, vector
from moesim.engine.durations import Durations, durations_ps
from moesim.engine.program import Program
from moesim.engine.spans import Recorded
from moesim.evidence import draw_errors
from moesim.scenario.build import Built
from moesim.steps.layers import Lane
from moesim.steps.program import StepProgram, step_program
from moesim.units import PS_PER_S


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
    """

    batches: StepTimes
    errors: StepTimes
    nominal: StepTimes
    program: Program
    recorded: Recorded
    median: int


def simulate(built: Built, batches: Sequence[Sequence[Sequence[Lane]]]) -> Simulated:
    """Step times over routed ``batches`` (``[batch][stage][half]``), with bands from calibration errors."""
    steps = [step_program(built.stages(), lanes, built.overlap) for lanes in batches]
    each = [times_of(step, built.scenario.interpreter) for step in steps]
    over_batches = StepTimes(
        np.concatenate([t.latency_s for t in each]), np.concatenate([t.period_s for t in each])
    )
    median = int(np.argsort(over_batches.period_s, kind="stable")[(len(steps) - 1) // 2])
    step = steps[median]
    draws = draw_errors(step.latency.families(), built.scenario.bands.samples, built.scenario.seed)
    recorded = _record(step.latency, built.scenario.interpreter)
    return Simulated(
        over_batches, times_of(step, "vector", draws), each[median], step.latency, recorded, median
    )


def times_of(
    step: StepProgram, interpreter: str, draws: dict[str, NDArray[np.float64]] | None = None
) -> StepTimes:
    """Latency and period of one step, one sample a draw."""
    latency = _makespan_s(step.latency, interpreter, draws)
    if step.shorter is None or step.longer is None:
        return StepTimes(latency, latency)
    period = _makespan_s(step.longer, interpreter, draws) - _makespan_s(step.shorter, interpreter, draws)
    return StepTimes(latency, period)


def _makespan_s(
    program: Program, interpreter: str, draws: dict[str, NDArray[np.float64]] | None
) -> NDArray[np.float64]:
    durations = durations_ps(program, draws)
    if interpreter == "events":
        return np.array([events.simulate(program, durations).makespan_ps / PS_PER_S])
    return vector.run(vector.compile(program), durations).makespan_ps / PS_PER_S


def _record(program: Program, interpreter: str) -> Recorded:
    durations: Durations = durations_ps(program)
    if interpreter == "events":
        return events.simulate(program, durations).recorded
    recorded = vector.run(vector.compile(program), durations, record=True).recorded
    assert recorded is not None  # asked for
    return recorded
