"""Numbers of one prefill or decode step from its times and token counts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Seconds


def tokens_per_s(tokens: float, period_s: Seconds) -> Seconds:
    """Throughput of a system that finishes ``tokens`` every ``period_s``. [tokens/s]"""
    return np.divide(tokens, period_s)


def mfu_fraction(
    flops_per_token: float, tokens: float, period_s: Seconds, peak_flops_per_s: float, num_devices: int
) -> Seconds:
    """Model FLOPs utilisation: useful work over the dense peak of all devices.

    Parameters
    ----------
    flops_per_token : float
        Forward work of one token, active parameters only, nothing recomputed. [FLOP]
    tokens : float
        Tokens finished every ``period_s``. [tokens]
    peak_flops_per_s : float
        Dense peak of one device for the weights' datatype. [FLOP/s]
    """
    return np.divide(flops_per_token * tokens / (peak_flops_per_s * num_devices), period_s)


def imbalance_ratio(loads: NDArray[np.float64]) -> float:
    """Largest over mean, averaged over layers: ``loads[layer, rank or expert]``; 1 without load."""
    mean = loads.mean(axis=-1)
    busy = mean > 0
    return float((loads.max(axis=-1)[busy] / mean[busy]).mean()) if busy.any() else 1.0
