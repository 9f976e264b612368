"""What moving fits to another device costs, measured by leaving one device out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import BAND_Z, covering_sigma, rng_for
from moesim.hardware.schema import Device
from moesim.kernels.choose import Transfer
from moesim.kernels.fit.optimise import Prior, Solution, fit_rows, predict_s, subsample
from moesim.kernels.fit_file import DeviceFits, Fit
from moesim.kernels.forms.families import variants_of
from moesim.kernels.measured import MeasuredTable

TEST_ROWS = 2000
FEW_ROWS = 20
LEAST_TEST_ROWS = 100


@dataclass(frozen=True)
class TransferRow:
    """One kernel of a target device answered for by the fits of another.

    Attributes
    ----------
    family, dtype, source, variant : str
        Kernel of the target.
    is_same_kernel, is_same_architecture : bool
        The source device has fits of the same kernel; its units do the same arithmetic.
    error : ndarray, ``(num_rows,)``
        ln(predicted / measured) with the datasheet swapped.
    few_error : ndarray, ``(num_rows,)``
        The same after a fit of :data:`FEW_ROWS` rows of the target, pulled towards the source.
    """

    target: str
    source_device: str
    family: str
    dtype: str
    source: str
    variant: str
    is_same_kernel: bool
    is_same_architecture: bool
    error: NDArray[np.float64]
    few_error: NDArray[np.float64]

    @property
    def median_ape(self) -> float:
        """Median of |predicted - measured| / measured. [-]"""
        return float(np.median(np.abs(np.expm1(self.error))))

    @property
    def few_median_ape(self) -> float:
        """The same after the fit of few rows. [-]"""
        return float(np.median(np.abs(np.expm1(self.few_error))))


def moved(
    fits: DeviceFits, tables: Iterable[MeasuredTable], target: Device, *, same_architecture: bool
) -> list[TransferRow]:
    """Errors on ``tables`` of ``target`` of the fits of another device, kernel by kernel.

    The same kernel answers where the source has it, else its default for the family and datatype;
    kernels that it has nothing for are left out.
    """
    rows = []
    for table in tables:
        for variant, part in variants_of(table):
            fit = standing_in(fits, table, variant)
            if fit is None or part.num_rows < LEAST_TEST_ROWS:
                continue
            chosen = rng_for(0, f"calibration/few/{part.name}/{variant}").permutation(part.num_rows)
            few, rest = part.at(np.sort(chosen[:FEW_ROWS])), part.at(np.sort(chosen[FEW_ROWS:]))
            test = subsample(rest, TEST_ROWS, "transfer")
            known = Solution.of(fit)
            local = fit_rows(few, target, prior=prior_of(fit, same_architecture=same_architecture))
            rows.append(
                TransferRow(
                    *(target.name, fits.device, table.family, table.dtype, table.source, variant),
                    is_same_kernel=fit.source == table.source,
                    is_same_architecture=same_architecture,
                    error=_error(known, test, target),
                    few_error=_error(local, test, target),
                )
            )
    return rows


def prior_of(fit: Fit, *, same_architecture: bool) -> Prior:
    """What a fit of another device says of a kernel before rows of its own are seen.

    What a form leaves over is a matter of the library's tiles: it stays behind where the arithmetic units
    are others.
    """
    known = Solution.of(fit)
    return Prior(known.parameters, known.choice, known.correction if same_architecture else None)


def band_of(rows: Iterable[TransferRow], sources: dict[str, str]) -> Transfer:
    """Sigma of each family whose 80 % band holds 80 % of the points, each kernel weighing the same.

    A class of transfer in which a family was not seen takes the sigma of the other class.
    """
    listed = list(rows)
    same = [row for row in listed if row.is_same_architecture]
    other = [row for row in listed if not row.is_same_architecture]
    swap, few = (
        {is_same: _sigmas(part, name) for is_same, part in ((True, same), (False, other))}
        for name in ("error", "few_error")
    )
    return Transfer(
        schema_version=1,
        same_architecture=swap[False] | swap[True],
        other=swap[True] | swap[False],
        few_same_architecture=few[False] | few[True],
        few_other=few[True] | few[False],
        sources=sources,
    )


def coverage(row: TransferRow, transfer: Transfer) -> float:
    """Fraction of a row's points inside the 80 % band of its family and class."""
    sigmas = transfer.same_architecture if row.is_same_architecture else transfer.other
    return float(np.mean(np.abs(row.error) <= BAND_Z * sigmas[row.family]))


def few_coverage(row: TransferRow, transfer: Transfer) -> float:
    """The same after the fit of few rows."""
    sigmas = transfer.few_same_architecture if row.is_same_architecture else transfer.few_other
    return float(np.mean(np.abs(row.few_error) <= BAND_Z * sigmas[row.family]))


def _sigmas(rows: list[TransferRow], name: str) -> dict[str, float]:
    pooled: dict[str, list[NDArray[np.float64]]] = {}
    levels = np.linspace(0, 1, 201)
    for row in rows:
        pooled.setdefault(row.family, []).append(np.quantile(np.abs(getattr(row, name)), levels))
    return {family: covering_sigma(np.concatenate(errors)) for family, errors in sorted(pooled.items())}


def standing_in(fits: DeviceFits, table: MeasuredTable, variant: str) -> Fit | None:
    """Fit that answers for the rows of a table: of the same kernel, else the default for its datatype."""
    own = [f for f in fits.fits if (f.family, f.dtype, f.variant) == (table.family, table.dtype, variant)]
    default = fits.engines["default"].get(f"{table.family}/{table.dtype}")
    for source in (table.source, default):
        for fit in own:
            if fit.source == source:
                return fit
    return None


def _error(solution: Solution, table: MeasuredTable, device: Device) -> NDArray[np.float64]:
    return np.asarray(np.log(predict_s(solution, table, device)) - np.log(table.seconds))
