r"""Times of element-wise work, of the router, and of launches.

.. math::

   T_\text{stream} = t_0 + \frac{\text{bytes}}{e_b \beta}, \qquad
   T_\text{router} = t_0 + \frac{2 T H E}{e_c \pi} + \frac{\text{bytes}}{e_b \beta} + t_s T E
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.kernels.forms.base import Machine, Parts, cached_share, free
from moesim.model.ops import Quantity
from moesim.units import US


@dataclass(frozen=True, slots=True)
class StreamWork:
    """Bytes read and written; scores that a router computes and chooses from, and their arithmetic."""

    moved_bytes: Quantity
    flops: Quantity = 0.0
    scores: Quantity = 0.0


@dataclass(frozen=True, slots=True)
class StreamParameters:
    """Fitted numbers: times in seconds, others are ratios to the datasheet."""

    launch_s: float = free(3 * US, 0.01 * US, 1000 * US)
    bandwidth_fraction: float = free(0.7, 0.01, 2.0)
    compute_fraction: float = free(0.5, 0.001, 2.0)
    score_s: float = free(0.0001 * US, 1e-08 * US, 1 * US)
    cache_ratio: float = free(0.7, 0.05, 4.0)
    cache_speed_ratio: float = free(2.0, 1.0, 20.0)


@dataclass(frozen=True, slots=True)
class StreamChoice:
    """Which terms apply: scores of a router; small working sets from the cache."""

    scores: bool = False
    cached: bool = False


def free_parameters(choice: StreamChoice) -> tuple[str, ...]:
    """Parameters that matter under a choice."""
    names = ["launch_s", "bandwidth_fraction"]
    if choice.scores:
        names += ["compute_fraction", "score_s"]
    return (*names, "cache_ratio", "cache_speed_ratio") if choice.cached else tuple(names)


def stream_parts(work: StreamWork, machine: Machine, p: StreamParameters, choice: StreamChoice) -> Parts:
    """Time by the formulas of this module; 0 where nothing is moved."""
    memory_s: Any = work.moved_bytes / (p.bandwidth_fraction * machine.bandwidth_bytes_per_s)
    if choice.cached:
        share = cached_share(work.moved_bytes, p.cache_ratio * machine.cache_bytes)
        memory_s = memory_s * (1 - share + share / p.cache_speed_ratio)
    compute_s: Any = np.zeros(1)
    if choice.scores:
        compute_s = work.flops / (p.compute_fraction * machine.flops_per_s) + p.score_s * work.scores
    seconds = np.where(np.greater(work.moved_bytes, 0), p.launch_s + memory_s + compute_s, 0.0)
    return Parts(seconds, memory_s, compute_s)
