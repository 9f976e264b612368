"""Which shapes to measure, the most informative first.

Each axis is a range in logarithms; points come from an additive low-discrepancy sequence, so that
any prefix of the list covers the whole range evenly: a run that stops early has a thinner grid, not
a corner of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping


def spread(number: int, axes: int) -> tuple[float, ...]:
    """Point ``number`` of the R-sequence in the unit cube (Roberts 2018, generalised golden ratio)."""
    ratio = 2.0
    for _ in range(40):
        ratio = (1 + ratio) ** (1 / (axes + 1))
    return tuple((0.5 + (number + 1) / ratio ** (axis + 1)) % 1.0 for axis in range(axes))


def log_points(
    count: int, ranges: Mapping[str, tuple[float, float]], multiples: Mapping[str, int] | None = None
) -> Iterator[dict[str, int]]:
    """``count`` whole-number shapes inside ``ranges``, each rounded to its axis' multiple."""
    multiples = multiples or {}
    names = list(ranges)
    for number in range(count):
        point = {}
        for name, place in zip(names, spread(number, len(names)), strict=True):
            low, high = ranges[name]
            value = math.exp(math.log(low) + place * (math.log(high) - math.log(low)))
            step = multiples.get(name, 1)
            point[name] = max(step, round(value / step) * step)
        yield point


def expert_counts(rows: int, num_experts: int, skew: float, touched_fraction: float, seed: int) -> list[int]:
    """Tokens of each expert: log-normal popularity of spread ``skew`` over some of the experts."""
    import numpy as np

    rng = np.random.default_rng(seed)
    active = max(1, min(num_experts, rows, round(num_experts * touched_fraction)))
    weights = np.exp(skew * rng.standard_normal(active))
    counts = np.floor(weights / weights.sum() * rows).astype(int)
    counts = np.maximum(counts, 1) if rows >= active else counts
    while counts.sum() > rows:
        counts[counts.argmax()] -= 1
    counts[counts.argmax()] += rows - counts.sum()
    everywhere = np.zeros(num_experts, dtype=int)
    everywhere[rng.permutation(num_experts)[:active]] = counts
    return [int(c) for c in everywhere]
