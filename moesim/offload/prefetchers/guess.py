"""Predictions of a stated accuracy, made from the truth by spoiling part of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def guessed(
    truth: NDArray[np.int32], num_experts: int, accuracy: float, extra: int, rng: np.random.Generator
) -> NDArray[np.int32]:
    """As many guesses as true experts, each right with probability ``accuracy``, and ``extra`` more.

    Wrong and extra guesses are any other experts: they cost a fetch and an eviction each.
    """
    right = rng.random(truth.size) < accuracy
    wrong = int(truth.size - right.sum()) + extra
    kept = truth[right]
    if not wrong:
        return kept
    wrong = min(wrong, num_experts - truth.size)
    taken = set(truth.tolist())
    drawn: list[int] = []
    while len(drawn) < wrong:
        expert = int(rng.integers(num_experts))
        if expert not in taken:
            taken.add(expert)
            drawn.append(expert)
    return np.concatenate((kept, np.array(drawn, np.int32)))
