"""Least time of an uneven all-to-all: what its busiest port needs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def port_bound_s(
    port_bytes: NDArray[np.float64], *, bandwidth_bytes_per_s: float, latency_s: float = 0.0
) -> NDArray[np.float64]:
    """Time for the busiest port to carry its bytes; 0 where nothing is carried.

    Parameters
    ----------
    port_bytes : ndarray, ``(...)``
        Bytes through the busiest port of a link class. [bytes]
    bandwidth_bytes_per_s : float
        One direction, per rank. [bytes/s]
    latency_s : float
        Paid once when anything is carried. [s]

    Notes
    -----
    On a full-rate fabric the last byte of any set of flows leaves no earlier than the busiest port
    needs, and fair sharing reaches that bound; so for a phase that ends at a barrier it is the answer.
    """
    return np.where(port_bytes > 0, latency_s + port_bytes / bandwidth_bytes_per_s, 0.0)
