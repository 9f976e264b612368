"""Robust deterministic search for the parameters of a form: soft-L1 on the logarithm of time.

Parameters are searched as logarithms inside their bounds; discrete choices are tried one axis at a
time on a subsample and the best by training error is refined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from moesim.errors import InputError
from moesim.evidence import rng_for
from moesim.hardware.schema import Device
from moesim.kernels.forms.base import Machine
from moesim.kernels.forms.families import Form, form_of
from moesim.kernels.measured import MeasuredTable

LEAST_ROWS = 8
"""Fewer rows than this cannot say anything about the parameters."""

TRIAL_ROWS = 400
TRIAL_CALLS = 12
FIT_ROWS = 1500
FIT_CALLS = 40
SOFT_RESIDUAL = 0.1
"""Residuals above this count linearly, not squared."""

INSIDE = 1e-5
"""Least distance of a start from its bounds, as a fraction of their distance."""

PRIOR_SIGMA = 0.5
"""Standard deviation of ln(parameter) about the nearest device's, where a prior is used."""


@dataclass(frozen=True)
class Solution:
    """Parameters and choices found, and the objective they reach (mean over rows)."""

    parameters: Any
    choice: Any
    objective: float


@dataclass(frozen=True)
class Prior:
    """Parameters and choices of a kernel fitted before, as a start and a pull.

    ``error_sigma`` is the residual of a row that weighs as much as one standard deviation of a parameter.
    """

    parameters: Any
    choice: Any
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
    rows = subsample(table, max_rows, "fit")
    if prior is not None:
        return _searched(form, rows, machine, prior.choice, prior.parameters, prior)
    few = subsample(table, TRIAL_ROWS, "trial")
    axes = form.axes(machine, table.dtype, float(np.quantile(table.seconds, 0.02)))
    best = _searched(form, few, machine, _first(form, axes), None, None, TRIAL_CALLS)
    for name, values in axes.items():
        for value in values:
            if value == getattr(best.choice, name):
                continue
            choice = replace(best.choice, **{name: value})
            trial = _searched(form, few, machine, choice, best.parameters, None, TRIAL_CALLS)
            best = min(best, trial, key=lambda s: s.objective)
    return _searched(form, rows, machine, best.choice, best.parameters, None)


def subsample(table: MeasuredTable, most: int, name: str) -> MeasuredTable:
    """At most ``most`` random rows, the same ones each time."""
    if table.num_rows <= most:
        return table
    rng = rng_for(0, f"calibration/{name}/{table.name}")
    return table.at(np.sort(rng.choice(table.num_rows, most, replace=False)))


def predict_s(solution: Solution, table: MeasuredTable, device: Device) -> NDArray[np.float64]:
    """Times of the rows of ``table``, ``(num_rows,)``. [s]"""
    form = form_of(table.family)
    machine = form.machine(device, table.dtype)
    work = form.work(table.columns, table.dtype)
    return np.asarray(form.seconds(work, machine, solution.parameters, solution.choice).seconds)


def _first(form: Form, axes: Mapping[str, tuple[Any, ...]]) -> Any:
    return form.choice(**{name: values[0] for name, values in axes.items()})


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
    centre = None if prior is None else np.log([getattr(prior.parameters, n) for n in names])

    def residuals(x: NDArray[np.float64]) -> NDArray[np.float64]:
        parameters = replace(fixed, **dict(zip(names, np.exp(x).tolist(), strict=True)))
        seconds = form.seconds(work, machine, parameters, choice).seconds
        error = np.log(seconds) - log_measured
        if centre is None or prior is None:
            return np.asarray(error)
        return np.concatenate([error, (x - centre) * (prior.error_sigma / PRIOR_SIGMA)])

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
