r"""Measured rows near a shape: what they say beyond the fit.

.. math::

   \ln \frac{T}{T_\text{fit}} = \frac{\sum_i w_i r_i}{\sum_i w_i + 1/R^2},
   \qquad w_i = \frac{1}{d_i^2 + \epsilon^2}

over the :data:`NEIGHBOURS` nearest rows, with :math:`r_i` their ln(measured / fit), :math:`d_i` the
distance in logarithms of the columns and :math:`R` the :data:`REACH`: a row that was measured is met
almost exactly, and far from all rows the fit stands alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import covering_sigma
from moesim.hardware.schema import Device
from moesim.kernels.fit_file import DeviceFits, Fit
from moesim.kernels.forms.base import Machine
from moesim.kernels.forms.correction import coordinates
from moesim.kernels.forms.families import form_of
from moesim.kernels.measured import MeasuredTable

NEIGHBOURS = 8
REACH = 0.5
SAME = 0.05
"""Epsilon: rows nearer than this are as good as the shape itself. [ln]"""

LEAST = 0.5
"""Stands for a column's 0 (no cached context, no expert touched) in its logarithm."""

CHUNK = 64
"""Shapes looked up at a time: bounds the memory of the distances."""

TESTED_ROWS = 400
"""Rows looked up without themselves to learn how far a look-up is off."""

Columns = Mapping[str, Any]


class Found(NamedTuple):
    """ln(T / fit) of shapes, and whether a row is within reach, each ``(shapes,)``."""

    log: NDArray[np.float64]
    is_near: NDArray[np.bool_]


@dataclass(frozen=True)
class NearRows:
    """Rows of one kernel, ready to be looked up.

    Attributes
    ----------
    names : tuple of str
        Columns that make the place of a row.
    places : ndarray, ``(rows, columns)``
        Their logarithms.
    residuals : ndarray, ``(rows,)``
        ln(measured / fit).
    sigma : float
        Of rows looked up without themselves, such that the 80 % band holds 80 % of them. [-]
    """

    names: tuple[str, ...]
    places: NDArray[np.float64]
    residuals: NDArray[np.float64]
    sigma: float

    @classmethod
    def of(cls, fit: Fit, table: MeasuredTable, machine: Machine) -> NearRows:
        """Rows of the table that the fit answers for."""
        names = form_of(fit.family).correction_columns
        residuals = np.log(table.seconds) - np.log(fitted_s(fit, table.columns, machine))
        rows = cls(names, _places(names, table.columns), residuals, 0.0)
        some = np.linspace(0, table.num_rows - 1, min(table.num_rows, TESTED_ROWS)).astype(np.intp)
        errors = np.abs(residuals[some] - rows._look(rows.places[some], without=some).log)
        return cls(names, rows.places, residuals, covering_sigma(errors))

    def look(self, columns: Columns) -> Found:
        """What the rows near some shapes say; columns broadcast."""
        return self._look(_places(self.names, columns))

    def _look(self, places: NDArray[np.float64], without: NDArray[np.intp] | None = None) -> Found:
        count = min(NEIGHBOURS, len(self.residuals))
        logs, near = np.empty(len(places)), np.empty(len(places), dtype=bool)
        for start in range(0, len(places), CHUNK):
            own = slice(start, start + CHUNK)
            distance2 = ((places[own, None, :] - self.places[None]) ** 2).sum(-1)
            if without is not None:
                distance2[np.arange(len(distance2)), without[own]] = np.inf
            nearest = np.argpartition(distance2, count - 1, axis=1)[:, :count]
            d2 = np.take_along_axis(distance2, nearest, axis=1)
            weights = 1 / (d2 + SAME**2)
            logs[own] = (weights * self.residuals[nearest]).sum(1) / (weights.sum(1) + 1 / REACH**2)
            near[own] = d2.min(1) <= REACH**2
        return Found(logs, near)


def near_rows(fits: DeviceFits, tables: Iterable[MeasuredTable], device: Device) -> dict[str, NearRows]:
    """Rows of every fitted kernel that some tables hold, by the fit's key."""
    return {
        fit.key: NearRows.of(fit, part, form_of(fit.family).machine(device, fit.dtype))
        for table in tables
        for fit, part in fits.answering(table)
    }


def fitted_s(fit: Fit, columns: Columns, machine: Machine) -> NDArray[np.float64]:
    """Times of rows by a fit, with its correction. [s]"""
    form = form_of(fit.family)
    parts = form.seconds(form.work(columns, fit.dtype), machine, fit.parameter_values(), fit.choice_values())
    seconds = np.asarray(parts.seconds, dtype=np.float64)
    if fit.correction is None:
        return seconds
    return np.asarray(seconds * np.exp(fit.correction.log(coordinates(columns, parts))))


def _places(names: Iterable[str], columns: Columns) -> NDArray[np.float64]:
    arrays = np.broadcast_arrays(*(np.asarray(columns[name], dtype=np.float64) for name in names))
    return np.asarray(np.log(np.maximum(np.stack([np.ravel(a) for a in arrays], axis=1), LEAST)))
