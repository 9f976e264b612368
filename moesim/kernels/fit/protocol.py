"""From a measured table to a fit whose errors were counted on rows that it did not see.

Three splits, each with a fit of its own: *random* (30 % of the rows; these parameters are the ones
kept), *new shapes* (weight or head shapes held out as a whole), *larger shapes* (the largest fifth by
datasheet time held out). A small table is too dear for that: its parameters come from all rows, and its
errors from fits on four fifths, each tested on the fifth that it did not see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import BAND_Z, Score, covering_sigma, rng_for
from moesim.hardware.schema import Device
from moesim.kernels.fit.correction import Learnt, learn
from moesim.kernels.fit.optimise import (
    LEAST_ROWS,
    Prior,
    Solution,
    datasheet_s,
    fit_rows,
    form_parts,
    predict_s,
)
from moesim.kernels.fit_file import REGIMES, Fit, Regime
from moesim.kernels.forms.families import form_of
from moesim.kernels.forms.regime import regime_of
from moesim.kernels.measured import IN_EXPERT_ORDER, MeasuredTable

TRAIN_FRACTION = 0.3
SMALL_TABLE_ROWS = 400
FOLDS = 5
"""Parts that a smaller table is cut into for cross-validation."""

PROTOCOL_ROWS = 600
"""Rows of the side fits; they only serve to count errors."""

OUTLIER = 0.7
"""|ln residual| of a row that is called an outlier and counted, never silently left out of a score."""

LARGEST = 0.8
LARGER_FROM = 0.8
FAR_LARGER_FROM = 0.5
"""Quantiles of datasheet time: rows tested lie above the first, rows fitted below the others."""

UNTESTED_RATIO, MOST_RATIO = 1.5, 10.0
"""Widening beyond the shapes seen where it was not tested; the most that is believed."""

LEAST_REGIME_ROWS = 25


class Start(NamedTuple):
    """What is known of a kernel from another device, and the least sigma that such a fit may claim."""

    device: str
    prior: Prior
    least_sigma: float


class _Unseen(NamedTuple):
    """ln(predicted / measured), sigma and regime of rows that no parameter saw, each ``(num_rows,)``."""

    error: NDArray[np.float64]
    width: NDArray[np.float64]
    kinds: NDArray[np.str_]


def fit_table(
    table: MeasuredTable,
    device: Device,
    *,
    variant: str = "",
    evidence: str,
    side_fits: bool = True,
    start: Start | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[Fit, Solution]:
    """Fit of one kernel, with its held-out errors; from the fits of another device where rows are few.

    Raises
    ------
    InputError
        Too few rows.
    """
    if table.num_rows < SMALL_TABLE_ROWS:
        solution, sigma, unseen, train = _cross_validated(table, device, start)
    else:
        train, test = random_split(table)
        learnt = learn(table.at(train), device)
        solution, sigma = learnt.solution, regime_sigma(learnt, device)
        unseen = _unseen(solution, table.at(test), device, sigma)
    new_shapes = larger = far_larger = None
    ratio = far_ratio = UNTESTED_RATIO
    if side_fits:
        new_shapes, _ = _side_score(table, device, shape_split(table), widens=False)
        larger, ratio = _side_score(table, device, size_split(table, device, LARGER_FROM))
        far_larger, far_ratio = _side_score(table, device, size_split(table, device, FAR_LARGER_FROM))
    note(f"{table.name} {variant}: fitted on {int(train.sum())} of {table.num_rows} rows")
    names = form_of(table.family).free(solution.choice)
    residuals = _residuals(solution, table.at(train), device)
    fit = Fit(
        family=table.family,
        dtype=table.dtype,
        source=table.source,
        variant=variant,
        parameters={name: float(getattr(solution.parameters, name)) for name in names},
        choice=asdict(solution.choice),
        correction=solution.correction,
        permutes=table.family == "moe" and table.source not in IN_EXPERT_ORDER,
        sigma=sigma,
        seen=_seen(table.at(train)),
        larger_sigma_ratio=ratio,
        far_larger_sigma_ratio=max(ratio, far_ratio),
        num_rows=table.num_rows,
        num_fitted_rows=int(train.sum()),
        num_dropped_rows=int((np.abs(residuals) > OUTLIER).sum()),
        held_out=Score.of(unseen.error, unseen.width),
        regimes=_by_regime(unseen),
        new_shapes=new_shapes,
        larger_shapes=larger,
        far_larger_shapes=far_larger,
        evidence=evidence,
    )
    return fit, solution


def _cross_validated(
    table: MeasuredTable, device: Device, start: Start | None
) -> tuple[Solution, dict[Regime, float], _Unseen, NDArray[np.bool_]]:
    """Fit on all rows of a small table; sigma and score from rows that the fit of their fold did not see."""
    everything = np.ones(table.num_rows, dtype=bool)
    solution = _small_solution(table, device, start)
    folds = rng_for(0, f"calibration/folds/{table.name}").permutation(np.arange(table.num_rows) % FOLDS)
    error = np.empty(table.num_rows)
    for fold in range(FOLDS if table.num_rows >= 2 * LEAST_ROWS else 0):
        own = _small_solution(table.at(folds != fold), device, start)
        error[folds == fold] = _residuals(own, table.at(folds == fold), device)
    if table.num_rows < 2 * LEAST_ROWS:
        error = _residuals(solution, table, device) * FOLDS**0.5
    kinds = regimes(solution, table, device)
    least = 0.0 if start is None else start.least_sigma
    sigma = {regime: max(own, least) for regime, own in _sigma_of(np.abs(error), kinds).items()}
    return solution, sigma, _Unseen(error, _width_of(kinds, sigma), kinds), everything


def _small_solution(table: MeasuredTable, device: Device, start: Start | None) -> Solution:
    if start is None:
        return learn(table, device).solution
    return fit_rows(table, device, prior=start.prior)


def regimes(solution: Solution, table: MeasuredTable, device: Device) -> NDArray[np.str_]:
    """What bounds each row: ``launch``, ``memory`` or ``compute``."""
    return regime_of(form_parts(solution, table, device), solution.parameters.launch_s)


def regime_sigma(learnt: Learnt, device: Device) -> dict[Regime, float]:
    """Sigma by regime, such that the 80 % band holds 80 % of the residuals; pooled where rows are few.

    Tails are heavier than a normal distribution's: the sigma that covers is not the standard deviation.
    """
    kinds = regimes(learnt.solution, learnt.rows, device)
    return _sigma_of(np.abs(np.concatenate(learnt.errors)), np.tile(kinds, len(learnt.errors)))


def _sigma_of(error: NDArray[np.float64], kinds: NDArray[np.str_]) -> dict[Regime, float]:
    pooled = covering_sigma(error)
    sigma: dict[Regime, float] = {}
    for regime in REGIMES:
        own = error[kinds == regime]
        sigma[regime] = covering_sigma(own) if len(own) >= LEAST_REGIME_ROWS else pooled
    return sigma


def score(solution: Solution, table: MeasuredTable, device: Device, sigma: dict[Regime, float]) -> Score:
    """Errors of a solution on rows, and how many lie in its band."""
    rows = _unseen(solution, table, device, sigma)
    return Score.of(rows.error, rows.width)


def _by_regime(unseen: _Unseen) -> dict[Regime, Score]:
    found = [(regime, unseen.kinds == regime) for regime in REGIMES]
    return {regime: Score.of(unseen.error[own], unseen.width[own]) for regime, own in found if own.any()}


def _unseen(solution: Solution, table: MeasuredTable, device: Device, sigma: dict[Regime, float]) -> _Unseen:
    kinds = regimes(solution, table, device)
    return _Unseen(_residuals(solution, table, device), _width_of(kinds, sigma), kinds)


def _width_of(kinds: NDArray[np.str_], sigma: dict[Regime, float]) -> NDArray[np.float64]:
    """Sigma of each row, by its regime."""
    return np.select([kinds == r for r in REGIMES], [sigma[r] for r in REGIMES], 0.0)


def random_split(table: MeasuredTable) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks of the rows to fit and to test, the same ones each time."""
    count = max(int(round(TRAIN_FRACTION * table.num_rows)), min(LEAST_ROWS, table.num_rows))
    chosen = rng_for(0, f"calibration/split/{table.name}").permutation(table.num_rows)[:count]
    train = np.zeros(table.num_rows, dtype=bool)
    train[chosen] = True
    return train, ~train


def shape_split(table: MeasuredTable) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks with whole weight or head shapes on either side."""
    names = form_of(table.family).shape_columns
    if not names:
        return np.zeros(table.num_rows, dtype=bool), np.zeros(table.num_rows, dtype=bool)
    shapes = np.stack([table.columns[n] for n in names], axis=1)
    _, which = np.unique(shapes, axis=0, return_inverse=True)
    which = which.reshape(-1)
    order = rng_for(0, f"calibration/shapes/{table.name}").permutation(which.max() + 1)
    held_out = order[: max(int(round(TRAIN_FRACTION * len(order))), 1)]
    test = np.isin(which, held_out)
    return ~test, test


def size_split(
    table: MeasuredTable, device: Device, fitted_below: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks of the rows below a quantile and of the largest fifth, by the time a datasheet would give."""
    size = datasheet_s(table, form_of(table.family).machine(device, table.dtype))
    return size <= np.quantile(size, fitted_below), size > np.quantile(size, LARGEST)


def _side_score(
    table: MeasuredTable,
    device: Device,
    split: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    *,
    widens: bool = True,
) -> tuple[Score | None, float]:
    """Score of a fit on other rows, and by how much the band of that fit must be widened to cover 80 %.

    The widening is measured on every other row tested, and the coverage of the widened band on the rest.
    """
    train, test = split
    if train.sum() < LEAST_REGIME_ROWS or test.sum() < LEAST_ROWS:
        return None, UNTESTED_RATIO
    own = learn(table.at(train), device, max_rows=PROTOCOL_ROWS)
    rows = _unseen(own.solution, table.at(test), device, regime_sigma(own, device))
    found = Score.of(rows.error, rows.width)
    if not widens:
        return found, 1.0
    relative = np.abs(rows.error) / rows.width
    some = rng_for(0, f"calibration/widen/{table.name}").permutation(len(relative)) % 2 == 0
    ratio = float(np.clip(covering_sigma(relative[some]), 1.0, MOST_RATIO))
    inside = float(np.mean(relative[~some] <= BAND_Z * ratio))
    return found.model_copy(update={"coverage": inside}), ratio


def _residuals(solution: Solution, table: MeasuredTable, device: Device) -> NDArray[np.float64]:
    """ln(predicted / measured), ``(num_rows,)``."""
    return np.asarray(np.log(predict_s(solution, table, device)) - np.log(table.seconds))


def _seen(table: MeasuredTable) -> dict[str, tuple[float, float]]:
    return {n: (float(c.min()), float(c.max())) for n, c in table.columns.items() if c.dtype.kind == "f"}
