"""Median time of a call: warm-up, rotation over copies larger than the cache, device events on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Call = Callable[[], Any]

SAMPLE_S = 0.004
"""A sample repeats the call until it lasts this long, so that clock resolution does not matter."""
SAMPLES_MAX = 25
SAMPLES_MIN = 5
CASE_S = 0.35
"""Time spent on one case, once it has its fewest samples."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median over samples, and the 10 to 90 % range of them over the median."""

    seconds: float
    spread_fraction: float
    repeats: int


def measure(calls: Sequence[Call], device: str) -> Timing:
    """Time of one of ``calls``, which are copies of the same work on different memory, used in turn."""
    run = _gpu_sample if device.startswith("cuda") else _cpu_sample
    turn = 0

    def next_calls(count: int) -> list[Call]:
        nonlocal turn
        chosen = [calls[(turn + i) % len(calls)] for i in range(count)]
        turn += count
        return chosen

    once = run(next_calls(min(len(calls), 2)))
    repeats = max(1, min(200, int(SAMPLE_S / max(once, 1e-7))))
    run(next_calls(repeats))
    taken: list[float] = []
    started = time.perf_counter()
    while len(taken) < SAMPLES_MIN or (len(taken) < SAMPLES_MAX and time.perf_counter() - started < CASE_S):
        taken.append(run(next_calls(repeats)))
    low, middle, high = np.quantile(taken, [0.1, 0.5, 0.9])
    return Timing(float(middle), float((high - low) / middle), len(taken) * repeats)


def _cpu_sample(calls: Sequence[Call]) -> float:
    started = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - started) / len(calls)


def _gpu_sample(calls: Sequence[Call]) -> float:
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for call in calls:
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000 / len(calls)  # events count milliseconds
