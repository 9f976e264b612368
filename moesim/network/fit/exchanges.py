"""Parameters of the exchange forms from measured tables, with errors on rows that no parameter saw.

Three tenths of the rows are fitted and the rest tested; of a tiny table each row in turn. Where several
numbers of ranks were measured, each is also left out whole in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Score, covering_sigma, rng_for
from moesim.network.fit.least_squares import fit_positive
from moesim.network.fit.tables import Table
from moesim.network.fit_file import ExchangeFit
from moesim.network.forms import FORMS, Form, Moved

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

FORM_OF = {"nvlink_one_sided": "nvlink", "nvlink_two_sided": "nvlink", "pplx": "queued"}
"""Form of a kernel that is not named as its form."""

TRAIN_FRACTION = 0.3
LEAST_ROWS = 60
"""Fitted at least, or half of a table that is small."""

TINY_TABLE_ROWS = 20
"""A smaller table is fitted as a whole, and tested leaving each row out."""

MOST_ROWS = 500
STARTS = 3

PRIOR_WEIGHT = 0.05
"""Pull of a parameter towards its usual value, as of one row that is off by this for a factor of e: keeps
what the rows cannot tell from running to its bound."""


def fit_exchanges(
    tables: Iterable[Table],
    scale_up_bytes_per_s: float,
    nic_bytes_per_s: float,
    note: Callable[[str], None] = lambda text: None,
) -> list[ExchangeFit]:
    """One fit for each phase of each kernel, inside a domain and between domains apart."""
    found = []
    for table in tables:
        fit = _fit(table, scale_up_bytes_per_s, nic_bytes_per_s)
        note(f"{table.device} {fit.key}: fitted on {fit.num_fitted_rows} of {fit.num_rows} rows")
        found.append(fit)
    return found


def predicted_s(
    fit: ExchangeFit, table: Table, scale_up_bytes_per_s: float, nic_bytes_per_s: float
) -> Floats:
    """Times that a fit gives for the rows of a table, ``(row,)``. [s]"""
    moved = _moved(table, scale_up_bytes_per_s, nic_bytes_per_s)
    return np.asarray(FORMS[fit.form].seconds(moved, fit.parameters))


def _fit(table: Table, scale_up: float, nic: float) -> ExchangeFit:
    form_name = FORM_OF.get(table.family, table.family)
    form, moved = FORMS[form_name], _moved(table, scale_up, nic)
    train = _train(table)
    parameters = _parameters(form, moved, table.seconds, train, table)
    error = _error(form, moved, table.seconds, parameters)
    tested = ~train
    if table.num_rows < TINY_TABLE_ROWS:
        error, tested = _each_left_out(form, moved, table), np.ones(table.num_rows, dtype=bool)
    sigma = covering_sigma(np.abs(error[tested]))
    many = bool((table.columns["num_domains"] > 1).any())
    return ExchangeFit(
        kernel=table.family,
        phase=table.dtype,
        source=table.source,
        between="domains" if many else "ranks",
        form=form_name,
        parameters=parameters,
        notify_s=_notify(table),
        sigma=sigma,
        seen=_seen(table),
        num_rows=table.num_rows,
        num_fitted_rows=int(train.sum()),
        held_out=Score.of(error[tested], sigma),
        ranks_left_out=_left_out(form, moved, table, sigma),
        evidence="fitted: " + table.evidence,
    )


def _moved(table: Table, scale_up: float, nic: float) -> Moved:
    given = {f.name: table.columns[f.name] for f in fields(Moved) if f.name in table.columns}
    return Moved(**given, scale_up_bytes_per_s=scale_up, nic_bytes_per_s=nic)


def _at(moved: Moved, own: Mask) -> Moved:
    parts = {f.name: getattr(moved, f.name) for f in fields(Moved)}
    return Moved(**{n: v[own] if np.ndim(v) else v for n, v in parts.items()})


def _train(table: Table) -> Mask:
    rows = table.num_rows
    if rows < TINY_TABLE_ROWS:
        return np.ones(rows, dtype=bool)
    count = min(max(int(round(TRAIN_FRACTION * rows)), min(LEAST_ROWS, rows // 2)), MOST_ROWS)
    name = f"calibration/network/{table.device}/{table.family}/{table.dtype}"
    train = np.zeros(rows, dtype=bool)
    train[rng_for(0, name).permutation(rows)[:count]] = True
    return train


def _parameters(form: Form, moved: Moved, seconds: Floats, own: Mask, table: Table) -> dict[str, float]:
    """Best of a few searches from starts spread around the usual values."""
    part, measured = _at(moved, own), np.log(seconds[own])
    names = list(form.parameters)
    start, low, high = (np.array([form.parameters[n][i] for n in names]) for i in range(3))
    rng = rng_for(0, f"calibration/network/start/{table.family}/{table.dtype}")

    def residual(values: Floats) -> Floats:
        predicted = form.seconds(part, dict(zip(names, values.tolist(), strict=True)))
        return np.concatenate([np.log(predicted) - measured, PRIOR_WEIGHT * np.log(values / start)])

    best, least = start, np.inf
    for number in range(STARTS):
        spread = np.exp(0.5 * rng.standard_normal(len(start))) if number else 1.0
        found = fit_positive(residual, np.clip(start * spread, low, high), low, high)
        cost = float(np.mean(np.abs(residual(found))))
        if cost < least:
            best, least = found, cost
    return dict(zip(names, best.tolist(), strict=True))


def _error(form: Form, moved: Moved, seconds: Floats, parameters: Mapping[str, float]) -> Floats:
    return np.asarray(np.log(form.seconds(moved, parameters) / seconds))


def _each_left_out(form: Form, moved: Moved, table: Table) -> Floats:
    """Error of each row after fitting all others: of a table too small to be split."""
    error = np.zeros(table.num_rows)
    for row in range(table.num_rows):
        own = np.arange(table.num_rows) != row
        parameters = _parameters(form, moved, table.seconds, own, table)
        error[row] = _error(form, moved, table.seconds, parameters)[row]
    return error


def _left_out(form: Form, moved: Moved, table: Table, sigma: float) -> dict[str, Score]:
    """Score on each number of ranks after fitting all others."""
    ranks = table.columns["num_ranks"]
    sizes = np.unique(ranks)
    if len(sizes) < 3:
        return {}
    found = {}
    for size in sizes:
        others = ranks != size
        parameters = _parameters(form, moved, table.seconds, others, table)
        error = _error(form, moved, table.seconds, parameters)[ranks == size]
        found[f"{size:.0f}"] = Score.of(error, sigma)
    return found


def _notify(table: Table) -> dict[str, float]:
    if "notify_s" not in table.columns:
        return {}
    ranks, notify = table.columns["num_ranks"], table.columns["notify_s"]
    return {f"{n:.0f}": float(np.median(notify[ranks == n])) for n in np.unique(ranks) if notify.any()}


def _seen(table: Table) -> dict[str, tuple[float, float]]:
    names = ("tokens", "row_bytes", "num_ranks", "num_domains", "num_experts", "sms")
    return {n: (float(table.columns[n].min()), float(table.columns[n].max())) for n in names}
