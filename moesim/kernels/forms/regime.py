"""What bounds a kernel: its launch, memory traffic, or arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.kernels.forms.base import Parts

REGIME_NAMES = ("launch", "memory", "compute")

LAUNCH_SHARE = 2.0
"""A kernel shorter than this many launches is bound by its launch."""


def regime_index(parts: Parts, launch_s: float) -> NDArray[np.intp]:
    """Position in :data:`REGIME_NAMES` of what bounds each time, by its sides and the launch in it."""
    side = np.less(parts.memory_s, parts.compute_s).astype(np.intp) + 1
    return side * np.greater_equal(parts.seconds, LAUNCH_SHARE * launch_s)


def regime_of(parts: Parts, launch_s: float) -> NDArray[Any]:
    """Name of what bounds each time: ``launch``, ``memory`` or ``compute``."""
    return np.array(REGIME_NAMES)[regime_index(parts, launch_s)]
