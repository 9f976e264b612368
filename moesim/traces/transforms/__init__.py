"""Routing changed after the fact: each way is one registered module of this package.

A transformed trace is a what-if, so its evidence is ``assumed`` and its source says what was done.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from moesim.registry import Registry
from moesim.traces.routing import RoutingTrace


class Transform(Protocol):
    """Changes which experts tokens reach; parameters are the fields of the class."""

    def apply(self, trace: RoutingTrace, rng: np.random.Generator) -> RoutingTrace:
        """New trace of the same tokens; same ``rng`` state, same trace."""
        ...


transforms: Registry[Transform] = Registry("trace_transform", "moesim.traces.transforms")
"""Registered transforms by name."""
