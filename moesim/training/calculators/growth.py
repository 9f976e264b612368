"""Experts over the course of a run: dense-to-sparse gates, and experts that are added.

References
----------
.. [1] EvoMoE, arXiv:2112.14397: one expert, then many; a gate whose temperature falls until few are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class DenseToSparse:
    """Gate of EvoMoE's third phase [1]_.

    Attributes
    ----------
    start_step, end_step : int
        Steps between which the temperature falls in a straight line.
    hot, cold : float
        Temperature before and after. [-]
    threshold : float
        Experts with a smaller gate weight do not work for a token. [-]
    """

    start_step: int
    end_step: int
    hot: float
    cold: float
    threshold: float

    def temperature(self, step: float) -> float:
        """Of the softmax at a step. [-]"""
        return float(np.interp(step, (self.start_step, self.end_step), (self.hot, self.cold)))

    def active_experts(self, scores: ArrayLike, step: float) -> NDArray[np.int64]:
        """Experts that work for each token, ``(token,)``: one before the gate exists, then all to few.

        Parameters
        ----------
        scores : ``(token, expert)``
            Gate scores before the softmax. [-]
        """
        logits = np.asarray(scores, dtype=np.float64) / self.temperature(step)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        if step < self.start_step:
            return np.ones(len(weights), dtype=np.int64)
        return np.asarray(np.maximum((weights >= self.threshold).sum(axis=1), 1))


@dataclass(frozen=True, slots=True)
class Size:
    """Experts of every MoE layer from some token on.

    Attributes
    ----------
    from_tokens : float
        Tokens trained on before. [tokens]
    num_experts, experts_per_token : float
        [-]
    """

    from_tokens: float
    num_experts: float
    experts_per_token: float


def size_at(sizes: Sequence[Size], tokens: float) -> Size:
    """Experts after ``tokens``; sizes in order."""
    begun = [size for size in sizes if size.from_tokens <= tokens]
    return begun[-1] if begun else sizes[0]


def mean_active(sizes: Sequence[Size], total_tokens: float) -> float:
    """Experts per token over a whole run, for its work. [-]"""
    starts = [0.0, *(size.from_tokens for size in sizes[1:])]
    ends = [*starts[1:], total_tokens]
    spans = np.clip(np.minimum(ends, total_tokens) - np.minimum(starts, total_tokens), 0.0, None)
    return float(spans @ np.array([size.experts_per_token for size in sizes]) / total_tokens)
