"""Median time of a call: warm-up, rotation over copies larger than the cache, device events on a GPU.

On a CPU that other programs use too, a sample during which the operating system made this process
wait says more about them than about the call. The scheduler counts that waiting, so such samples are
set aside; a case with too few others is :attr:`Timing.disturbed`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Call = Callable[[], Any]
Sample = tuple[float, float]
"""Seconds of one call, and seconds that the process waited for a core meanwhile."""

SPIN_CYCLES_PER_S = 2.5e9
"""No GPU of today has a faster clock: turns a wait into enough cycles."""

SAMPLE_S = 0.004
"""A sample repeats the call until it lasts this long, so that clock resolution does not matter."""
SAMPLES_MAX = 25
SAMPLES_MIN = 5
CASE_S = 0.2
"""Time spent on one case, once it has its fewest samples."""
LONGEST_CASE_S = 1.0
"""Time after which a case that is still disturbed is given up."""
WAIT_FRACTION = 0.02
"""A sample is disturbed when its threads waited longer than this for a core, over its time."""
TASKS = Path("/proc/self/task")


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median over samples, and the 10 to 90 % range of them over the median."""

    seconds: float
    spread_fraction: float
    repeats: int
    disturbed: bool = False


def measure(calls: Sequence[Call], device: str, *, queued: bool = False) -> Timing:
    """Time of one of ``calls``, which are copies of the same work on different memory, used in turn.

    Parameters
    ----------
    calls : sequence of callable
    device : str
        ``cpu`` or ``cuda``.
    queued : bool
        A GPU is kept busy until all calls of a sample wait in its queue: the time is the device's own,
        without the gaps in which it waits for the host.
    """
    run: Callable[[Sequence[Call]], Sample] = _cpu_sample
    if device.startswith("cuda"):
        run = _GpuSample(queued)
    turn = 0

    def next_calls(count: int) -> list[Call]:
        nonlocal turn
        chosen = [calls[(turn + i) % len(calls)] for i in range(count)]
        turn += count
        return chosen

    run(next_calls(1))
    once, _ = run(next_calls(min(len(calls), 2)))
    repeats = max(1, min(200, int(SAMPLE_S / max(once, 1e-7))))
    run(next_calls(repeats))
    quiet: list[float] = []
    waited: list[float] = []
    started = time.perf_counter()
    while True:
        seconds, waited_s = run(next_calls(repeats))
        (quiet if waited_s <= WAIT_FRACTION * seconds * repeats else waited).append(seconds)
        spent = time.perf_counter() - started
        if len(quiet) >= SAMPLES_MAX or (len(quiet) >= SAMPLES_MIN and spent > CASE_S):
            break
        if spent > LONGEST_CASE_S and len(quiet) + len(waited) >= SAMPLES_MIN:
            break
    enough = len(quiet) >= min(SAMPLES_MIN, 3)
    taken = quiet if enough else quiet + waited
    low, middle, high = np.quantile(taken, [0.1, 0.5, 0.9])
    return Timing(float(middle), float((high - low) / middle), len(taken) * repeats, not enough)


def waited_s() -> float:
    """Time that threads of this process were ready but had no core, so far; 0 where not counted. [s]"""
    total = 0
    try:
        for task in TASKS.iterdir():
            total += int((task / "schedstat").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return total / 1e9  # the kernel counts nanoseconds


def _cpu_sample(calls: Sequence[Call]) -> Sample:
    before = waited_s()
    started = time.perf_counter()
    for call in calls:
        call()
    seconds = time.perf_counter() - started
    return seconds / len(calls), waited_s() - before


class _GpuSample:
    """Samples by device events; ``queued`` ones begin with a wait as long as the host took for the last."""

    def __init__(self, queued: bool) -> None:
        self._queued = queued
        self._host_s = 0.0
        """Time that the host took to hand over one call. [s]"""

    def __call__(self, calls: Sequence[Call]) -> Sample:
        import torch

        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        if self._queued and self._host_s:
            torch.cuda._sleep(int(SPIN_CYCLES_PER_S * self._host_s * len(calls)))
        start.record()
        began = time.perf_counter()
        for call in calls:
            call()
        self._host_s = (time.perf_counter() - began) / len(calls)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000 / len(calls), 0.0  # events count milliseconds
