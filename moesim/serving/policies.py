"""The kinds of policy a service is made of, and the shape of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesim.registry import Registry
from moesim.serving.cache import PrefixCache, Segments

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]


class Batching(Protocol):
    """What one iteration of an instance may hold."""

    @property
    def mixes(self) -> bool:
        """Whether decodes ride along with prompts; else an iteration holds one or the other."""
        ...

    def admits(self, num_running: int) -> bool:
        """Whether waiting requests may start on a rank that has ``num_running`` sequences."""
        ...


class Target(Protocol):
    """One rank of one instance as a router sees it."""

    @property
    def num_waiting(self) -> int:
        """Requests in its queue."""
        ...

    @property
    def num_running(self) -> int:
        """Requests in its batch."""
        ...

    @property
    def cache(self) -> PrefixCache:
        """What it holds of earlier prompts."""
        ...


class Router(Protocol):
    """Where a request goes."""

    @property
    def reads_caches(self) -> bool:
        """Whether :meth:`choose` looks into the caches of its targets."""
        ...

    def choose(self, targets: Sequence[Target], segments: Segments, sequence: int, draw: float) -> int:
        """Index of one of ``targets``, all of which are alive.

        Parameters
        ----------
        targets : sequence of Target
        segments : tuple
            Shared start of the prompt.
        sequence : int
            Requests routed before this one.
        draw : float
            Uniform random number in [0, 1), the same for the same request.
        """
        ...


class Arrivals(Protocol):
    """When requests arrive in an open loop."""

    def times(self, num_requests: int, rng: np.random.Generator) -> Floats:
        """Arrival of each request, ``(request,)``, not decreasing, from 0. [s]"""
        ...


class Lengths(Protocol):
    """How many tokens a prompt or an answer has."""

    def draw(self, num_requests: int, rng: np.random.Generator) -> Ints:
        """Tokens, ``(request,)``, at least 1."""
        ...


batching_policies: Registry[Batching] = Registry("batching", "moesim.serving.batching")
routers: Registry[Router] = Registry("router", "moesim.serving.routers")
arrival_processes: Registry[Arrivals] = Registry("arrivals", "moesim.serving.arrivals")
length_distributions: Registry[Lengths] = Registry("lengths", "moesim.serving.lengths")
