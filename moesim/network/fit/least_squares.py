"""Damped Gauss-Newton for a handful of positive parameters, forgiving outliers; numpy only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ITERATIONS = 80
STEP = 1e-5
"""Of the forward differences, in ln of a parameter."""

OUTLIER = 0.1
"""Residual (ln) from which a row pulls less than in proportion."""

ENOUGH = 1e-7
"""Relative improvement below which the search ends."""

LEAST_CURVATURE = 1e-11
"""Of a parameter that no row feels: keeps its step finite."""

WIDEST = 2.0
"""Largest change of ln of a parameter in one step."""


def fit_positive(residual: Callable[[Floats], Floats], start: Floats, low: Floats, high: Floats) -> Floats:
    r"""Positive parameters that make residuals small.

    Parameters
    ----------
    residual : callable
        ``(parameter,) -> (row,)``, ln(predicted / measured).
    start, low, high : ndarray, ``(parameter,)``
        Where to begin and the range; all above 0.

    Notes
    -----
    Levenberg-Marquardt in the logarithms, with the loss :math:`2(\sqrt{1 + (r/0.1)^2} - 1)`.
    """
    place, bounds = np.log(start), (np.log(low), np.log(high))
    damping = 1e-2
    rows = residual(np.exp(place))
    cost = _loss(rows)
    for _ in range(ITERATIONS):
        weight = (1 + (rows / OUTLIER) ** 2) ** -0.25
        slopes = np.stack([_slope(residual, place, rows, i) for i in range(len(place))], axis=1)
        weighted = slopes * weight[:, None]
        gram, pull = weighted.T @ weighted, weighted.T @ (rows * weight)
        improved = False
        while damping < 1e8:
            scale = np.diag(np.maximum(np.diag(gram), LEAST_CURVATURE)) * damping
            step = np.clip(-np.linalg.lstsq(gram + scale, pull, rcond=None)[0], -WIDEST, WIDEST)
            trial = np.clip(place + step, *bounds)
            new_rows = residual(np.exp(trial))
            new_cost = _loss(new_rows)
            if np.isfinite(new_cost) and new_cost < cost:
                improved = cost - new_cost > ENOUGH * cost
                place, rows, cost, damping = trial, new_rows, new_cost, damping / 5
                break
            damping *= 4
        if not improved:
            break
    return np.exp(place)


def _slope(residual: Callable[[Floats], Floats], place: Floats, rows: Floats, index: int) -> Floats:
    moved = place.copy()
    moved[index] += STEP
    return (residual(np.exp(moved)) - rows) / STEP


def _loss(rows: Floats) -> float:
    return float(np.sum(np.sqrt(1 + (rows / OUTLIER) ** 2) - 1))
