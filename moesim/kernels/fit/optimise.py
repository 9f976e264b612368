"""Robust deterministic search for the parameters of a form: soft-L1 on the logarithm of time.

Parameters are searched as logarithms inside their bounds; all discrete choices are screened on few
rows, the best few tried on more, and the best of those refined, always by training error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from moesim.errors import InputError
from moesim.evidence import rng_for
from moesim.hardware.schema import Device
from moesim.kernels.fit_file import Fit
from moesim.kernels.forms.base import Machine, Parts
from moesim.kernels.forms.correction import Correction, coordinates
from moesim.kernels.forms.families import Form, form_of
from moesim.kernels.measured import MeasuredTable

LEAST_ROWS = 8
"""Fewer rows than this cannot say anything about the parameters."""

FIT_ROWS = 2000
LEAN = 0.25
"""Rows are chosen in proportion to this power of their datasheet time: the tail, which extrapolates, is
learnt from the few large rows, not from the many that a launch bounds."""

FIT_CALLS = 80
STAGES = ((160, 8, 6), (500, 20, 2))
"""(rows, calls of the optimiser, how many choices go on) of each round of the search over choices."""
SOFT_RESIDUAL = 0.1
"""Residuals above this count linearly, not squared."""

INSIDE = 1e-5
"""Least distance of a start from its bounds, as a fraction of their distance."""

LEAST_SIZE = 2.0**-30
"""A row without work counts as this fraction of the largest."""

WEAK_PULL = 0.5
"""Residual that a parameter e times off its typical value counts as, where there is no prior: next to
hundreds of rows nothing, unless no row says anything about the parameter."""

PRIOR_SIGMA = 0.5
"""Standard deviation of ln(parameter) about the nearest device's, where a prior is used."""


@dataclass(frozen=True)
class Solution:
    """Parameters and choices found, and the objective they reach (mean over rows); what corrects them."""

    parameters: Any
    choice: Any
    objective: float
    correction: Correction | None = None

    @classmethod
    def of(cls, fit: Fit) -> Solution:
        """What a file of fits keeps of a solution; its objective is not kept."""
        return cls(fit.parameter_values(), fit.choice_values(), 0.0, fit.correction)


@dataclass(frozen=True)
class Prior:
    """Parameters, choices and correction of a kernel fitted before: start, pull, and kept.

    ``error_sigma`` is the residual of a row that weighs as much as one standard deviation of a parameter.
    """

    parameters: Any
    choice: Any
    correction: Correction | None = None
    error_sigma: float = 0.1


def fit_rows(
    table: MeasuredTable, device: Device, *, prior: Prior | None = None, max_rows: int = FIT_ROWS
) -> Solution:
    """Best parameters of the table's form on (a subsample of) its rows.

    Parameters
    ----------
    table : MeasuredTable
        Rows to learn from, all of one kernel.
    device : Device
        Datasheet figures.
    prior : Prior, optional
        Keeps its discrete choices and pulls parameters towards its own: for few rows.
    max_rows : int
        Most rows that enter the optimiser. [-]

    Raises
    ------
    InputError
        Too few rows.
    """
    least = LEAST_ROWS if prior is None else 1
    if table.num_rows < least:
        raise InputError.at("rows", table.num_rows, f"at least {least} to fit", where=table.name)
    form = form_of(table.family)
    machine = form.machine(device, table.dtype)
    rows = _leaning(table, machine, max_rows, "fit")
    if prior is not None:
        known = Solution(prior.parameters, prior.choice, 0.0, prior.correction)
        plain = replace(rows, seconds=rows.seconds * np.exp(-correction_of(known, rows, device)))
        moved = _searched(form, plain, machine, prior.choice, prior.parameters, prior)
        return replace(moved, correction=prior.correction)
    axes = form.axes(machine, table.dtype, float(np.quantile(table.seconds, 0.02)))
    left: list[tuple[Any, Any]] = [
        (form.choice(**dict(zip(axes, values, strict=True))), None) for values in product(*axes.values())
    ]
    for most, calls, kept in STAGES:
        if len(left) <= kept:
            continue
        few = _leaning(table, machine, most, f"trial/{most}")
        trials = [_searched(form, few, machine, choice, start, None, calls) for choice, start in left]
        trials.sort(key=lambda s: s.objective)
        left = [(trial.choice, trial.parameters) for trial in trials[:kept]]
    refined = [_searched(form, rows, machine, choice, start, None) for choice, start in left]
    return min(refined, key=lambda s: s.objective)


def subsample(
    table: MeasuredTable, most: int, name: str, weights: NDArray[np.float64] | None = None
) -> MeasuredTable:
    """At most ``most`` random rows, the same ones each time; all alike, or in proportion to weights."""
    if table.num_rows <= most:
        return table
    rng = rng_for(0, f"calibration/{name}/{table.name}")
    odds = None if weights is None else weights / weights.sum()
    return table.at(np.sort(rng.choice(table.num_rows, most, replace=False, p=odds)))


def datasheet_s(table: MeasuredTable, machine: Machine) -> NDArray[np.float64]:
    """Longer of the memory and the compute side of each row by the datasheet. [s]"""
    form = form_of(table.family)
    parts = form.seconds(form.work(table.columns, table.dtype), machine, form.parameters(), form.choice())
    return np.asarray(np.maximum(parts.memory_s, parts.compute_s), dtype=np.float64) + np.zeros(
        table.num_rows
    )


def _leaning(table: MeasuredTable, machine: Machine, most: int, name: str) -> MeasuredTable:
    """Rows to fit, the large ones likelier by :data:`LEAN`."""
    size = datasheet_s(table, machine)
    return subsample(table, most, name, np.maximum(size, size.max() * LEAST_SIZE) ** LEAN)


def predict_s(solution: Solution, table: MeasuredTable, device: Device) -> NDArray[np.float64]:
    """Times of the rows of ``table``, ``(num_rows,)``. [s]"""
    seconds = np.asarray(form_parts(solution, table, device).seconds)
    if solution.correction is None:
        return seconds
    return np.asarray(seconds * np.exp(correction_of(solution, table, device)))


def correction_of(solution: Solution, table: MeasuredTable, device: Device) -> NDArray[np.float64]:
    """ln(corrected / form) of the rows of ``table``, ``(num_rows,)``."""
    if solution.correction is None:
        return np.zeros(table.num_rows)
    found = coordinates(table.columns, form_parts(solution, table, device))
    return np.asarray(solution.correction.log(found))


def form_parts(solution: Solution, table: MeasuredTable, device: Device) -> Parts:
    """Times of the rows of ``table`` by the form alone, and their sides."""
    form = form_of(table.family)
    machine = form.machine(device, table.dtype)
    work = form.work(table.columns, table.dtype)
    return form.seconds(work, machine, solution.parameters, solution.choice)


def _searched(
    form: Form,
    table: MeasuredTable,
    machine: Machine,
    choice: Any,
    start: Any,
    prior: Prior | None,
    max_calls: int = FIT_CALLS,
) -> Solution:
    names = form.free(choice)
    bounds = form.bounds()
    low, high = (np.log([bounds[n][side] for n in names]) for side in (1, 2))
    begin = np.log([bounds[n][0] if start is None else getattr(start, n) for n in names])
    begin = np.clip(begin, low + INSIDE * (high - low), high - INSIDE * (high - low))
    fixed = form.parameters() if start is None else start
    work = form.work(table.columns, table.dtype)
    log_measured = np.log(table.seconds)
    pull = WEAK_PULL if prior is None else prior.error_sigma / PRIOR_SIGMA
    centre = np.log([bounds[n][0] if prior is None else getattr(prior.parameters, n) for n in names])

    def residuals(x: NDArray[np.float64]) -> NDArray[np.float64]:
        parameters = replace(fixed, **dict(zip(names, np.exp(x).tolist(), strict=True)))
        seconds = form.seconds(work, machine, parameters, choice).seconds
        return np.concatenate([np.log(seconds) - log_measured, (x - centre) * pull])

    found = least_squares(
        residuals,
        begin,
        bounds=(low, high),
        loss="soft_l1",
        f_scale=SOFT_RESIDUAL,
        x_scale=1.0,
        diff_step=1e-4,
        max_nfev=max_calls,
    )
    parameters = replace(fixed, **dict(zip(names, np.exp(found.x).tolist(), strict=True)))
    return Solution(parameters, choice, float(found.cost) / table.num_rows)
