"""Datasheet roofline: pure formulas of named quantities."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Seconds


def roofline_s(
    flops: Seconds,
    moved_bytes: Seconds,
    *,
    flops_per_s: float,
    bandwidth_bytes_per_s: float,
    launch_s: float = 0.0,
) -> Seconds:
    """Time of one kernel that overlaps arithmetic with traffic perfectly.

    Parameters
    ----------
    flops, moved_bytes : float or ndarray, ``(...)``
        Work and traffic to main memory. [FLOP], [bytes]
    flops_per_s, bandwidth_bytes_per_s : float
        Reached (not datasheet) rates. [FLOP/s], [bytes/s]
    launch_s : float
        Paid once per kernel that has work. [s]

    Returns
    -------
    float or ndarray, ``(...)``
        0 where there is nothing to do. [s]

    References
    ----------
    .. [1] Williams, Waterman, Patterson, "Roofline: An Insightful Visual Performance Model,"
       CACM 52(4), 2009.

    Examples
    --------
    >>> float(roofline_s(2e12, 1e9, flops_per_s=1e15, bandwidth_bytes_per_s=1e12))
    0.002
    """
    busy_s = np.maximum(np.divide(flops, flops_per_s), np.divide(moved_bytes, bandwidth_bytes_per_s))
    return np.where(busy_s > 0, busy_s + launch_s, 0.0)


def grouped_gemm_s(
    padded_rows: Mapping[int, NDArray[np.float64]],
    moved_bytes: Seconds,
    n: int,
    k: int,
    *,
    flops_per_s: float,
    bandwidth_bytes_per_s: float,
    tile_half_rows: float,
) -> Seconds:
    r"""Time of one grouped GEMM over experts, without its launch.

    Parameters
    ----------
    padded_rows : mapping of tile height to ndarray, ``(...)``
        Rows after padding each expert's rows to whole tiles of that height.
    moved_bytes : float or ndarray, ``(...)``
        Touched experts' weights, inputs and outputs. [bytes]
    n, k : int
        Output and inner width of one expert's matrix.
    flops_per_s : float
        Reached rate with 128-row tiles. [FLOP/s]
    bandwidth_bytes_per_s : float
        Reached rate of main memory. [bytes/s]
    tile_half_rows : float
        Rows at which a tile runs at about half rate, ``t`` below.

    Notes
    -----
    The library is taken to choose the best tile height :math:`b`; narrow tiles waste fewer rows but
    feed the tensor pipeline worse, :math:`u(b) = (1 + t/128)/(1 + t/b)`:

    .. math:: \max\Bigl(\min_b \frac{2\,n\,k\sum_e b\lceil c_e/b\rceil}{u(b)\,\pi},
              \frac{\text{bytes}}{\beta}\Bigr)
    """
    wide = max(padded_rows)
    rate = {b: (1 + tile_half_rows / wide) / (1 + tile_half_rows / b) * flops_per_s for b in padded_rows}
    compute_s = np.minimum.reduce([2.0 * n * k * rows / rate[b] for b, rows in padded_rows.items()])
    return np.maximum(compute_s, np.divide(moved_bytes, bandwidth_bytes_per_s))
