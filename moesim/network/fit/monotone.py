"""Non-decreasing piecewise-linear fit, by non-negative least squares with weights that forgive outliers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ROUNDS = 6
"""Re-weighted solves: enough for the median of the residuals to settle."""

SMALL_RESIDUAL = 0.01
"""Residuals (ln) below this are noise: all weigh the same."""

BEND_PENALTY = 0.05
"""Weight of a change of slope: keeps knots without data between their neighbours."""

TOLERANCE = 1e-10


def fit_monotone(x: Floats, y: Floats, knots: Floats, offsets: Floats) -> tuple[Floats, Floats]:
    """Values at the knots of a non-decreasing line through points, and a shift for each group of points.

    Parameters
    ----------
    x, y : ndarray, ``(point,)``
        Points. [-]
    knots : ndarray, ``(knot,)``
        Rising, from the least to the largest ``x``. [-]
    offsets : ndarray, ``(point, group - 1)``
        1 where a point belongs to a group other than the first. [-]

    Returns
    -------
    values : ndarray, ``(knot,)``
        Non-decreasing. [-]
    shifts : ndarray, ``(group - 1,)``
        Of either sign. [-]

    Notes
    -----
    Minimises the sum of absolute residuals by re-weighted least squares, plus a small penalty on bends.
    """
    ramps = ramp_basis(x, knots)
    free = np.hstack([np.ones((len(x), 1)), offsets])
    bends = np.zeros((len(knots) - 2, ramps.shape[1]))
    widths = np.diff(knots)
    for row in range(len(bends)):
        bends[row, row], bends[row, row + 1] = -1 / widths[row], 1 / widths[row + 1]
    penalty = np.hstack([np.zeros((len(bends), 2 * free.shape[1])), BEND_PENALTY * bends])
    # a free number is the difference of two non-negative ones
    design = np.hstack([free, -free, ramps])
    weight = np.ones(len(x))
    solution = np.zeros(design.shape[1])
    for _ in range(ROUNDS):
        rows = np.vstack([design * weight[:, None], penalty])
        solution = non_negative(rows, np.concatenate([y * weight, np.zeros(len(penalty))]))
        weight = 1 / np.sqrt(np.maximum(np.abs(y - design @ solution), SMALL_RESIDUAL))
    count = free.shape[1]
    levels = solution[:count] - solution[count : 2 * count]
    values = levels[0] + np.concatenate([[0.0], np.cumsum(solution[2 * count :])])
    return values, levels[1:]


def ramp_basis(x: Floats, knots: Floats) -> Floats:
    """How much of each interval between knots lies below each ``x``, ``(point, knot - 1)``, 0 to 1."""
    left, right = knots[:-1], knots[1:]
    return np.clip((x[:, None] - left) / (right - left), 0.0, 1.0)


def non_negative(design: Floats, target: Floats) -> Floats:
    """Least-squares solution with no negative entry, by the active-set method.

    References
    ----------
    .. [1] Lawson, Hanson, "Solving Least Squares Problems," 1974, chapter 23.
    """
    gram, right = design.T @ design, design.T @ target
    size = len(right)
    solution, passive = np.zeros(size), np.zeros(size, dtype=bool)
    limit = TOLERANCE * max(float(np.abs(right).max()), 1.0)
    for _ in range(10 * size):
        gradient = np.where(passive, -np.inf, right - gram @ solution)
        entering = int(np.argmax(gradient))
        if gradient[entering] <= limit:
            break
        passive[entering] = True
        while True:
            trial = np.zeros(size)
            chosen = np.flatnonzero(passive)
            trial[chosen] = np.linalg.lstsq(gram[np.ix_(chosen, chosen)], right[chosen], rcond=None)[0]
            if trial[chosen].min() > 0:
                break
            blocking = chosen[trial[chosen] <= 0]
            steps = solution[blocking] / np.maximum(solution[blocking] - trial[blocking], 1e-300)
            solution = solution + float(steps.min()) * (trial - solution)
            passive &= solution > TOLERANCE
            if not passive.any():
                trial = np.zeros(size)
                break
        solution = trial
    return solution
