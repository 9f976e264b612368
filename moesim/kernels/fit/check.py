"""Fits against measured rows that they did not see, by kernel and by what bounds the row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Score
from moesim.hardware.schema import Device
from moesim.kernels.fit.optimise import Solution, form_parts, predict_s, subsample
from moesim.kernels.fit.protocol import SMALL_TABLE_ROWS, random_split, regimes, score
from moesim.kernels.fit_file import REGIMES, DeviceFits, Fit
from moesim.kernels.forms.correction import SIDE, coordinates
from moesim.kernels.forms.families import FORMS
from moesim.kernels.measured import MeasuredTable
from moesim.kernels.near_rows import NearRows, fitted_s

Split: TypeAlias = Literal["held out", "new shapes", "larger shapes", "far larger shapes", "all rows"]

POINTS_OF_KERNEL = 60
LOOKED_UP_ROWS = 500
"""Held-out rows of a kernel that are looked up."""

NEAR_APE = 0.10
FAR_APE = 0.15


@dataclass(frozen=True)
class CheckRow:
    """Errors of one kernel on one kind of rows.

    Attributes
    ----------
    device, family, dtype, source, variant : str
        As of the fit.
    regime : str
        ``launch``, ``memory``, ``compute``, or ``all``.
    tier : str
        Evidence of the prediction.
    split : str
        How the rows were kept from the fit.
    n : int
        Rows. [-]
    median_ape, p90_ape, bias, coverage : float
        As of :class:`~moesim.kernels.fit_file.Score`. [-]
    """

    device: str
    family: str
    dtype: str
    source: str
    variant: str
    regime: str
    tier: str
    split: Split
    n: int
    median_ape: float
    p90_ape: float
    bias: float
    coverage: float


class Points(NamedTuple):
    """Measured and predicted times of rows and what bounds them, each ``(num_rows,)``. [s, s, -]"""

    measured_s: NDArray[np.float64]
    predicted_s: NDArray[np.float64]
    memory_over_compute: NDArray[np.float64]


def recorded_rows(fits: DeviceFits) -> list[CheckRow]:
    """What each fit recorded of itself when it was made."""
    rows = []
    for fit in fits.fits:
        scores: tuple[tuple[Split, Score | None], ...] = (
            ("held out", fit.held_out),
            ("new shapes", fit.new_shapes),
            ("larger shapes", fit.larger_shapes),
            ("far larger shapes", fit.far_larger_shapes),
        )
        rows += [_row(fits, fit, "all", split, found) for split, found in scores if found is not None]
        rows += [_row(fits, fit, regime, "held out", found) for regime, found in fit.regimes.items()]
    return rows


def checked_rows(fits: DeviceFits, tables: Iterable[MeasuredTable], device: Device) -> list[CheckRow]:
    """Errors of the fits in a file on the rows of ``tables`` that they did not see, by regime."""
    return [
        row
        for fit, part, split in unseen_parts(fits, tables)
        for row in _by_regime(fits, fit, part, device, split)
    ]


def looked_up_rows(fits: DeviceFits, tables: Iterable[MeasuredTable], device: Device) -> list[CheckRow]:
    """Errors on the held-out rows when the other rows of the table are looked up beside the fit."""
    rows = []
    for table in tables:
        for fit, part in fits.answering(table):
            if fit.num_rows != part.num_rows or part.num_rows < SMALL_TABLE_ROWS:
                continue
            train, test = (part.at(mask) for mask in random_split(part))
            machine = FORMS[fit.family].machine(device, fit.dtype)
            near = NearRows.of(fit, train, machine)
            some = subsample(test, LOOKED_UP_ROWS, "look-up")
            error = np.log(fitted_s(fit, some.columns, machine) / some.seconds) + near.look(some.columns).log
            found = Score.of(error, near.sigma)
            rows.append(replace(_row(fits, fit, "all", "held out", found), tier="interpolated"))
    return rows


def checked_points(fits: DeviceFits, tables: Iterable[MeasuredTable], device: Device) -> dict[str, Points]:
    """Some of the same rows of each family, one by one: at most :data:`POINTS_OF_KERNEL` of a kernel."""
    found: dict[str, list[Points]] = {}
    for fit, part, _ in unseen_parts(fits, tables):
        rows = subsample(part, POINTS_OF_KERNEL, "points")
        solution = Solution.of(fit)
        side = coordinates(rows.columns, form_parts(solution, rows, device))[SIDE]
        own = Points(rows.seconds, predict_s(solution, rows, device), side + np.zeros(rows.num_rows))
        found.setdefault(fit.family, []).append(own)
    return {
        family: Points(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        for family, parts in found.items()
    }


def unseen_parts(
    fits: DeviceFits, tables: Iterable[MeasuredTable]
) -> Iterator[tuple[Fit, MeasuredTable, Split]]:
    """Rows that a fit did not see, kernel by kernel.

    Of a table that the fit was made from, those that :func:`~moesim.kernels.fit.protocol.random_split`
    held out; a small one is passed over, for it was fitted as a whole. Of any other table all rows.
    """
    for table in tables:
        for fit, part in fits.answering(table):
            if fit.num_rows != part.num_rows:
                yield fit, part, "all rows"
            elif part.num_rows >= SMALL_TABLE_ROWS:
                yield fit, part.at(random_split(part)[1]), "held out"


def summary(rows: Iterable[CheckRow]) -> list[dict[str, Any]]:
    """Medians over kernels by device, family and split, and the share of kernels that are near."""
    groups: dict[tuple[str, str, str], list[CheckRow]] = {}
    for row in rows:
        if row.regime == "all" and row.n > 0:
            groups.setdefault((row.device, row.family, row.split), []).append(row)
    return [
        {
            "device": device,
            "family": family,
            "split": split,
            "kernels": len(group),
            **{
                name: float(np.median([getattr(row, name) for row in group]))
                for name in ("median_ape", "p90_ape", "bias", "coverage")
            },
            "below_10_percent": float(np.mean([row.median_ape < NEAR_APE for row in group])),
            "below_15_percent": float(np.mean([row.median_ape < FAR_APE for row in group])),
        }
        for (device, family, split), group in groups.items()
    ]


def plain(rows: Iterable[CheckRow]) -> list[dict[str, Any]]:
    """Rows as JSON would have them."""
    return [asdict(row) for row in rows]


def _by_regime(
    fits: DeviceFits, fit: Fit, held_out: MeasuredTable, device: Device, split: Split
) -> list[CheckRow]:
    solution = Solution.of(fit)
    kinds = regimes(solution, held_out, device)
    parts = [("all", held_out)] + [(str(r), held_out.at(kinds == r)) for r in REGIMES if (kinds == r).any()]
    return [
        _row(fits, fit, regime, split, score(solution, part, device, fit.sigma)) for regime, part in parts
    ]


def _row(fits: DeviceFits, fit: Fit, regime: str, split: Split, found: Score) -> CheckRow:
    return CheckRow(
        *(fits.device, fit.family, fit.dtype, fit.source, fit.variant),
        *(regime, fits.grade, split, found.num_rows),
        *(found.median_ape, found.p90_ape, found.bias, found.coverage),
    )
