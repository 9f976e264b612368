"""What bounds a kernel: its launch, memory traffic, or arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.kernels.forms.base import Parts

LAUNCH_SHARE = 2.0
"""A kernel shorter than this many launches is bound by its launch."""


def regime_of(parts: Parts, launch_s: float) -> NDArray[Any]:
    """Regime from the sides of a time and the launch in it: ``launch``, ``memory`` or ``compute``."""
    sides = np.where(np.greater_equal(parts.memory_s, parts.compute_s), "memory", "compute")
    return np.where(np.less(parts.seconds, LAUNCH_SHARE * launch_s), "launch", sides)
