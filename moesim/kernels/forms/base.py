"""What all forms share: the machine they run on, bounded parameters, the smooth maximum."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from moesim.evidence import Seconds
from moesim.hardware.schema import Device

EXPONENTIALS_PER_UNIT_CYCLE = 16
"""Results of the special-function units of an SM in a cycle (NVIDIA, CUDA C++ programming guide,
table of arithmetic throughput); elsewhere only the reference that a fitted fraction multiplies."""

FP32_FLOPS_PER_UNIT_CYCLE = 64
"""Stands for the clock of a device whose profile has none: vector FLOP of a core in a cycle."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Datasheet figures of a device that forms need, for one multiplying datatype.

    Attributes
    ----------
    flops_per_s : float
        Dense peak. [FLOP/s]
    bandwidth_bytes_per_s : float
        Main memory. [bytes/s]
    num_units : int
        SMs or cores that work is dealt to. [-]
    cache_bytes : float
        Last-level cache; 0 where unknown. [bytes]
    exponentials_per_s : float
        Reference rate of exponentials. [1/s]
    is_tiled : bool
        Work comes in tiles, dealt in waves over the units (a GPU).
    """

    flops_per_s: float
    bandwidth_bytes_per_s: float
    num_units: int
    cache_bytes: float
    exponentials_per_s: float
    is_tiled: bool

    @classmethod
    def of(cls, device: Device, dtype: str) -> Machine:
        """Figures of a device for operands that are multiplied as ``dtype``."""
        clock_hz = device.clock_hz
        if clock_hz is None:
            clock_hz = device.dense_peak_flops_per_s("fp32") / device.num_units / FP32_FLOPS_PER_UNIT_CYCLE
        return cls(
            flops_per_s=device.dense_peak_flops_per_s(dtype),
            bandwidth_bytes_per_s=device.main_memory.bandwidth_bytes_per_s,
            num_units=device.num_units,
            cache_bytes=device.l2_bytes or 0.0,
            exponentials_per_s=EXPONENTIALS_PER_UNIT_CYCLE * device.num_units * clock_hz,
            is_tiled=device.kind == "gpu",
        )


class Parts(NamedTuple):
    """Time of a kernel and the sides that bound it, each ``(...)``. [s]

    ``memory_s`` and ``compute_s`` say which regime a shape is in; they need not add up to ``seconds``.
    """

    seconds: Seconds
    memory_s: Seconds
    compute_s: Seconds


def free(start: float, low: float, high: float) -> Any:
    """Dataclass field of a parameter to be fitted: where the search starts, and its bounds."""
    return field(default=start, metadata={"start": start, "low": low, "high": high})


def smooth_max(left: Seconds, right: Seconds, power: float) -> Any:
    r""":math:`(x^p + y^p)^{1/p}`: overlap that is imperfect where both sides are equal.

    Examples
    --------
    >>> float(smooth_max(3.0, 4.0, 2.0))
    5.0
    """
    larger = np.maximum(left, right)
    ratio = np.minimum(left, right) / np.maximum(larger, 1e-300)
    return larger * (1.0 + ratio**power) ** (1.0 / power)


def cached_share(working_set_bytes: Seconds, cache_bytes: float) -> Any:
    """Share of a working set that comes from a cache: 1 when small, 1/2 at its size, then 0. [-]"""
    return 1.0 / (1.0 + (working_set_bytes / max(cache_bytes, 1.0)) ** 4)
