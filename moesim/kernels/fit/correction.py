"""Fit of a form and of what it leaves over: robust ridge regression, as strong as unseen shapes bear."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import rng_for
from moesim.hardware.schema import Device
from moesim.kernels.fit.optimise import FIT_ROWS, Solution, fit_rows, form_parts, subsample
from moesim.kernels.forms.correction import (
    NODES,
    SIDE,
    TIME,
    WORK,
    Coordinates,
    Correction,
    basis,
    coordinates,
    from_coefficients,
)
from moesim.kernels.forms.families import form_of
from moesim.kernels.measured import MeasuredTable

STRENGTHS = (3.0, 10.0, 30.0, 100.0, 300.0)
"""Rows that the pull of a coefficient to 0 weighs as much as. [-]"""

FOLDS = 4
ROUNDS, LATER_ROUNDS = 6, 2
"""Of reweighting; fewer where the outliers are known already."""

HUBER = 1.5
"""Residuals above this many typical ones count linearly, not squared."""

LEAST_TYPICAL = 0.001
"""Below a residual of this size nothing is an outlier."""

FAR = 0.3
"""No residual counts for more than this in the choice of a strength: an outlier is not to be explained."""

LEAST_ROWS = 40
MOST_ROWS = 3000
ROWS_OF_COEFFICIENT = 3
"""With fewer rows a coefficient than this, coordinates are also tried one by one, without their products."""

LEAST_GAIN = 0.03
"""Fraction of the mean error that a correction must take away to be kept."""


class Learnt(NamedTuple):
    """A fit, and rows with ln(predicted / measured) of which the correction's fold saw nothing.

    Where there is a correction every row counts twice: as one of a shape that the fold saw, and as one of
    a shape that it did not see. The first alone would promise too much, the second too little.
    """

    solution: Solution
    rows: MeasuredTable
    errors: tuple[NDArray[np.float64], ...]


def learn(table: MeasuredTable, device: Device, *, max_rows: int = FIT_ROWS) -> Learnt:
    """Form and correction of (a subsample of) some rows.

    Raises
    ------
    InputError
        Too few rows.
    """
    solution = fit_rows(table, device, max_rows=max_rows)
    form = form_of(table.family)
    rows = subsample(table, max(MOST_ROWS, max_rows), "correction")
    parts = form_parts(solution, rows, device)
    residuals = np.log(rows.seconds) - np.log(parts.seconds)
    found = coordinates(rows.columns, parts)
    corrected = fit_correction(rows, found, residuals, form.correction_columns, form.shape_columns)
    errors = tuple(-residuals for residuals in corrected.residuals)
    return Learnt(replace(solution, correction=corrected.correction), rows, errors)


class Corrected(NamedTuple):
    """A correction and the residuals ln(measured / predicted) of rows that their fold did not see.

    One array for each kind of fold: whole shapes, random rows.
    """

    correction: Correction | None
    residuals: tuple[NDArray[np.float64], ...]


def fit_correction(
    table: MeasuredTable,
    found: Coordinates,
    residuals: NDArray[np.float64],
    names: tuple[str, ...],
    shape_names: tuple[str, ...],
) -> Corrected:
    """Correction of a form on the rows it was fitted to, or none where it does not help on others.

    Parameters
    ----------
    table : MeasuredTable
        Rows, ``(num_rows,)``.
    residuals : ndarray, ``(num_rows,)``
        ln(measured / form).
    names : tuple of str
        Columns that it may depend on.
    shape_names : tuple of str
        Columns of a weight or head shape: a fold holds whole shapes where there are enough of them.
    """
    ranges = {n: _range(found[n]) for n in (*names, TIME, SIDE) if np.ptp(found[n]) > 0}
    if table.num_rows < LEAST_ROWS or not ranges:
        return Corrected(None, (residuals,))
    everything = basis(ranges, found)
    matrices = [everything]
    if table.num_rows < ROWS_OF_COEFFICIENT * everything.shape[1]:
        matrices.append(everything[:, : 1 + NODES * len(ranges)])
    folds, random = _folds(table, shape_names), _folds(table, ())
    plain = _cost(residuals)
    matrix, best, left = everything, None, residuals
    for tried in matrices:
        for strength, errors in zip(STRENGTHS, _unseen(tried, residuals, folds, STRENGTHS), strict=True):
            if _cost(errors) < min(_cost(left), (1 - LEAST_GAIN) * plain):
                matrix, best, left = tried, strength, errors
    if best is None:
        return Corrected(None, (residuals,))
    values, _ = _solved(matrix, residuals, best, np.ones(len(residuals)))
    correction = from_coefficients(ranges, float(np.max(found[WORK])), values)
    return Corrected(correction, (left, *_unseen(matrix, residuals, random, (best,))))


def _unseen(
    matrix: NDArray[np.float64],
    residuals: NDArray[np.float64],
    folds: NDArray[np.intp],
    strengths: tuple[float, ...],
) -> NDArray[np.float64]:
    """What corrections of each strength, in which its fold took no part, leave of each row.

    ``(strengths, rows)``. Each strength starts from the outliers that the one before it found.
    """
    errors = np.empty((len(strengths), len(residuals)))
    for fold in range(FOLDS):
        own = folds == fold
        seen, target = matrix[~own], residuals[~own]
        weights = np.ones(len(target))
        for i, strength in enumerate(strengths):
            rounds = LATER_ROUNDS if i else ROUNDS
            values, weights = _solved(seen, target, strength, weights, rounds)
            errors[i, own] = residuals[own] - matrix[own] @ values
    return errors


def _range(column: NDArray[np.float64]) -> tuple[float, float]:
    positive = column[column > 0]
    return float(positive.min()), float(positive.max())


def _folds(table: MeasuredTable, shape_names: tuple[str, ...]) -> NDArray[np.intp]:
    """Fold of each row; whole shapes together where there are enough of them."""
    rng = rng_for(0, f"calibration/correction/{table.name}")
    varying = [n for n in shape_names if np.ptp(table.columns[n]) > 0]
    if varying:
        shapes = np.stack([table.columns[n] for n in varying], axis=1)
        _, which = np.unique(shapes, axis=0, return_inverse=True)
        which = which.reshape(-1)
        if which.max() + 1 >= 2 * FOLDS:
            return np.asarray(rng.permutation(which.max() + 1)[which] % FOLDS)
    return np.asarray(rng.permutation(table.num_rows) % FOLDS)


def _cost(errors: NDArray[np.float64]) -> float:
    return float(np.mean(np.minimum(np.abs(errors), FAR)))


def _solved(
    matrix: NDArray[np.float64],
    target: NDArray[np.float64],
    strength: float,
    weights: NDArray[np.float64],
    rounds: int = ROUNDS,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coefficients, and the weights of the rows that they leave for a next solution."""
    solution: NDArray[np.float64] = np.zeros(matrix.shape[1])
    for _ in range(rounds):
        normal = matrix.T @ (matrix * weights[:, None])
        normal[np.diag_indices_from(normal)] += strength
        solution = np.asarray(np.linalg.solve(normal, matrix.T @ (weights * target)), dtype=np.float64)
        errors = np.abs(target - matrix @ solution)
        typical = max(float(np.median(errors)), LEAST_TYPICAL)
        weights = 1 / np.maximum(1.0, errors / (HUBER * typical))
    return solution, weights
