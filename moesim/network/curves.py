"""Measured curves of collectives, read at any payload and number of ranks of one scale-up domain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Seconds
from moesim.network.fit_file import CollectiveFit, RankCurve

Floats = NDArray[np.float64]

BEYOND_SIGMA_RATIO = 3.0
"""How much wider the band is beyond the payloads or ranks that were measured: the extrapolation of NCCL
tables from their lower half missed by three times as much as their held-out rows."""

PAYLOAD_SLACK = 2.0
"""How far above the payloads measured still counts as seen."""


def curve_s(curve: RankCurve, payload_bytes: Seconds, dtype: str | None, link_ratio: float) -> Floats:
    """Seconds of one curve at ``payload_bytes``, ``(...)``.

    Flat below the payloads measured, in proportion above. ``link_ratio`` is the rate of the links in use
    over that of the links measured: what exceeds the smallest message's time shrinks with it.
    """
    knots, values = np.log(curve.payload_bytes), np.log(curve.seconds)
    payload = np.maximum(np.asarray(payload_bytes, dtype=np.float64), 1.0)
    inside = np.exp(np.interp(np.log(payload), knots, values))
    seconds = inside * np.maximum(payload / curve.payload_bytes[-1], 1.0)
    fixed = curve.seconds[0]
    seconds = fixed + np.maximum(seconds - fixed, 0.0) / link_ratio
    return np.asarray(seconds * curve.dtype_factors.get(dtype or "", 1.0))


def collective_s(
    fit: CollectiveFit, payload_bytes: Seconds, num_ranks: int, dtype: str | None, link_ratio: float = 1.0
) -> tuple[Floats, float]:
    """Seconds of a collective and the sigma of their logarithm.

    Between measured numbers of ranks the logarithm of time is straight in the logarithm of ranks; beyond
    them it goes on like that, with a wider band.
    """
    ranks = [curve.num_ranks for curve in fit.curves]
    low, high = _neighbours(ranks, num_ranks)
    left = curve_s(fit.curves[low], payload_bytes, dtype, link_ratio)
    sigma = max(fit.curves[low].sigma, fit.curves[high].sigma)
    if not ranks[0] <= num_ranks <= ranks[-1] or _beyond(fit.curves[high], payload_bytes):
        sigma *= BEYOND_SIGMA_RATIO
    if low == high:
        return left, sigma
    right = curve_s(fit.curves[high], payload_bytes, dtype, link_ratio)
    place = np.log(num_ranks / ranks[low]) / np.log(ranks[high] / ranks[low])
    return np.asarray(left * (right / left) ** place), sigma


def _neighbours(ranks: Sequence[int], wanted: int) -> tuple[int, int]:
    """Places of the measured numbers of ranks on either side of ``wanted``, or the nearest two."""
    if wanted in ranks:
        place = ranks.index(wanted)
        return place, place
    above = next((place for place, number in enumerate(ranks) if number > wanted), len(ranks) - 1)
    high = min(max(above, 1), len(ranks) - 1)
    return max(high - 1, 0), high


def _beyond(curve: RankCurve, payload_bytes: Seconds) -> bool:
    most = float(np.max(payload_bytes, initial=0.0))
    return most > PAYLOAD_SLACK * curve.payload_bytes[-1]
