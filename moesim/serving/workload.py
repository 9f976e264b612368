"""Requests in columns: what they hold, when they come, and which wait for others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem
from moesim.serving.cache import Segments
from moesim.serving.live import NEVER
from moesim.units import PS_PER_S

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Requests of one run.

    Attributes
    ----------
    arrival_ps : ndarray of int64, ``(request,)``
        When each arrives; of a later turn, how long after its predecessor's completion. [ps]
    input_tokens, output_tokens : ndarray of int64, ``(request,)``
        Prompt and answer.
    after : ndarray of int64, ``(request,)``
        The turn before in the same conversation; -1: the first.
    segments : tuple of tuple, or None
        Shared start of each prompt, see :mod:`moesim.serving.cache`; None: nothing is shared.
    keeps : ndarray of int64, ``(request,)``
        Segment that its whole context becomes when it has finished; -1: none.
    clients : int or None
        Closed loop: so many clients, each of which sends the next request when its last has finished;
        ``arrival_ps`` of the first ``clients`` is when they start. None: open loop.
    warmup : int
        First requests that metrics leave out.
    """

    arrival_ps: Ints
    input_tokens: Ints
    output_tokens: Ints
    after: Ints
    segments: tuple[Segments, ...] | None
    keeps: Ints
    clients: int | None = None
    warmup: int = 0

    @property
    def num_requests(self) -> int:
        """Requests."""
        return len(self.arrival_ps)

    @classmethod
    def of(
        cls,
        arrival_s: NDArray[np.float64],
        input_tokens: Ints,
        output_tokens: Ints,
        *,
        clients: int | None = None,
        warmup: int = 0,
    ) -> Workload:
        """Independent requests.

        Raises
        ------
        InputError
            Negative or unordered numbers, or fewer than one token; the first request that is wrong is named.
        """
        _demand("arrival_s", arrival_s, np.isfinite(arrival_s) & (arrival_s >= 0), "a time from 0 on")
        _demand("input_tokens", input_tokens, input_tokens >= 1, "at least 1")
        _demand("output_tokens", output_tokens, output_tokens >= 1, "at least 1")
        none = np.full(len(arrival_s), NEVER, dtype=np.int64)
        arrival_ps = np.rint(arrival_s * PS_PER_S).astype(np.int64)
        return cls(arrival_ps, input_tokens, output_tokens, none, None, none, clients, warmup)


def _demand(field: str, values: NDArray[np.generic], good: NDArray[np.bool_], accepted: str) -> None:
    bad = np.flatnonzero(~good)
    if len(bad):
        message = f"request {bad[0]} has {values[bad[0]]}; accepted: {accepted}"
        raise InputError([Problem(f"workload.{field}", message)])
