"""Device-hours and money of a training run: staged, on devices that differ, with stragglers.

References
----------
.. [1] AquilaMoE, arXiv:2408.06567: a small model trained, scaled up, then scaled out to experts.
.. [2] Ling, "Every FLOP Counts," arXiv:2503.05139: device-hours times price over unlike devices; EDiT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from moesim.units import TERA

S_PER_HOUR = 3600.0
TOKENS_PER_TRILLION = TERA


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a run with one model: before and after it is grown, or its experts are.

    Attributes
    ----------
    name : str
    tokens : float
        Trained on. [tokens]
    flops_per_token : float
        Forward and backward. [FLOP]
    """

    name: str
    tokens: float
    flops_per_token: float

    @property
    def flops(self) -> float:
        """Work of the stage. [FLOP]"""
        return self.tokens * self.flops_per_token


@dataclass(frozen=True, slots=True)
class Device:
    """What a device-hour buys.

    Attributes
    ----------
    name : str
    peak_flops_per_s : float
        In the format trained in. [FLOP/s]
    utilisation : float
        Reached share of the peak (MFU). [-]
    price_per_hour : float
        Any currency; results are in it.
    """

    name: str
    peak_flops_per_s: float
    utilisation: float
    price_per_hour: float

    @property
    def flops_per_s(self) -> float:
        """Reached rate. [FLOP/s]"""
        return self.peak_flops_per_s * self.utilisation

    @property
    def price_per_flop(self) -> float:
        """Money of one operation."""
        return self.price_per_hour / (S_PER_HOUR * self.flops_per_s)


def device_hours(flops: float, device: Device) -> float:
    """Of a device for this work. [h]"""
    return flops / device.flops_per_s / S_PER_HOUR


def cost(stages: Sequence[Stage], device: Device) -> float:
    """Money of all stages on one kind of device."""
    return sum(stage.flops for stage in stages) * device.price_per_flop


def mixed_cost(flops: float, devices: Sequence[Device], shares: ArrayLike) -> float:
    """Money when unlike devices take shares of the tokens: device-hours times price, summed [2]_.

    Parameters
    ----------
    shares : ``(device,)``
        Of the work; add up to 1. [-]
    """
    parts = np.asarray(shares, dtype=np.float64)
    return float(sum(flops * part * d.price_per_flop for part, d in zip(parts, devices, strict=True)))


def hours_per_trillion(tokens_per_s_per_device: float) -> float:
    """Device-hours for 1e12 tokens. [h]

    Examples
    --------
    >>> round(hours_per_trillion(1543.0) / 1000)
    180
    """
    return TOKENS_PER_TRILLION / tokens_per_s_per_device / S_PER_HOUR


def utilisation(tokens_per_s_per_device: float, flops_per_token: float, peak_flops_per_s: float) -> float:
    """Model FLOP utilisation: useful work over what the devices could do. [-]"""
    return tokens_per_s_per_device * flops_per_token / peak_flops_per_s


def synchronous_steps_per_s(step_s: ArrayLike, sync_s: float = 0.0) -> float:
    """Steps a second when every step waits for the slowest worker.

    Parameters
    ----------
    step_s : ``(step, worker)``
        What each worker would take. [s]
    sync_s : float
        Of the exchange after each step. [s]
    """
    steps = np.asarray(step_s, dtype=np.float64)
    return float(len(steps) / (steps.max(axis=1) + sync_s).sum())


def edit_steps_per_s(step_s: ArrayLike, period_s: float, sync_s: float = 0.0) -> float:
    """Mean steps a second of workers that step alone and meet every ``period_s`` (EDiT, asynchronous [2]_).

    A worker takes as many whole steps as fit until the meeting, at least one; nobody waits for a slow one's
    next step, so fast workers count with their own rate.

    Parameters
    ----------
    step_s : ``(step, worker)``
        What each worker takes, repeated as often as needed. [s]
    period_s : float
        Between two meetings. [s]
    sync_s : float
        Of a meeting. [s]
    """
    steps = np.asarray(step_s, dtype=np.float64)
    ends = np.cumsum(np.tile(steps, (int(np.ceil(period_s / steps.sum(axis=0).min())) + 1, 1)), axis=0)
    counts = np.maximum((ends <= period_s).sum(axis=0), 1)
    lasts = max(period_s, float(ends[0].max()))
    return float(counts.mean() / (lasts + sync_s))
