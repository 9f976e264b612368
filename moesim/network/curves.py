"""Measured curves of collectives, read at any payload and number of ranks of one scale-up domain."""

from __future__ import annotations

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

    Straight between the sizes measured, flat below them, in proportion above. ``link_ratio`` is the rate
    of the links in use over that of the links measured: what exceeds the smallest message's time shrinks
    with it.
    """
    payload = np.asarray(payload_bytes, dtype=np.float64)
    inside = np.interp(payload, curve.payload_bytes, curve.seconds)
    seconds = inside * np.maximum(payload / curve.payload_bytes[-1], 1.0)
    fixed = curve.seconds[0]
    seconds = fixed + np.maximum(seconds - fixed, 0.0) / link_ratio
    return np.asarray(seconds * curve.dtype_factors.get(dtype or "", 1.0))


def collective_s(
    fit: CollectiveFit, payload_bytes: Seconds, num_ranks: int, dtype: str | None, link_ratio: float = 1.0
) -> tuple[Floats, float]:
    """Seconds of a collective and the sigma of their logarithm.

    Between measured numbers of ranks the logarithm of time is straight in the logarithm of ranks. Beyond
    them, with a wider band, the smallest message's time goes on in a straight line, and the rest grows as
    the bytes through a port do.
    """
    ranks = [curve.num_ranks for curve in fit.curves]
    seconds = [curve_s(curve, payload_bytes, dtype, link_ratio) for curve in fit.curves]
    if num_ranks in ranks:
        place = ranks.index(num_ranks)
        wide = _beyond(fit.curves[place], payload_bytes)
        return seconds[place], fit.curves[place].sigma * (BEYOND_SIGMA_RATIO if wide else 1.0)
    if num_ranks > ranks[-1] or num_ranks < ranks[0]:
        end = -1 if num_ranks > ranks[-1] else 0
        sigma = fit.curves[end].sigma * BEYOND_SIGMA_RATIO
        return _beyond_ranks(fit, end, seconds[end], num_ranks, dtype), sigma
    high = next(place for place, number in enumerate(ranks) if number > num_ranks)
    left, right = fit.curves[high - 1], fit.curves[high]
    place = np.log(num_ranks / left.num_ranks) / np.log(right.num_ranks / left.num_ranks)
    wide = _beyond(right, payload_bytes)
    sigma = max(left.sigma, right.sigma) * (BEYOND_SIGMA_RATIO if wide else 1.0)
    return np.asarray(seconds[high - 1] ** (1 - place) * seconds[high] ** place), sigma


def _beyond_ranks(fit: CollectiveFit, end: int, seconds: Floats, num_ranks: int, dtype: str | None) -> Floats:
    """Seconds for more (or fewer) ranks than were measured, from those at the nearest number."""
    last, inner = fit.curves[end], fit.curves[(-2 if end else 1) % len(fit.curves)]
    factor = last.dtype_factors.get(dtype or "", 1.0)
    fixed = last.seconds[0] * factor
    slope = (last.seconds[0] - inner.seconds[0]) / ((last.num_ranks - inner.num_ranks) or 1)
    started = max(fixed + factor * max(slope, 0.0) * (num_ranks - last.num_ranks), fixed / num_ranks)
    through = (1 - 1 / num_ranks) / (1 - 1 / last.num_ranks)
    return np.asarray(started + (seconds - fixed) * through)


def _beyond(curve: RankCurve, payload_bytes: Seconds) -> bool:
    most = float(np.max(payload_bytes, initial=0.0))
    return most > PAYLOAD_SLACK * curve.payload_bytes[-1]
