"""Seconds of iterations as the serving clock asks for them: one at a time, or a run of decodes at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesim.serving.engine import Engine
from moesim.serving.step_times import Floats, StepShape, StepTimes

PerRank: TypeAlias = int | NDArray[np.int64]
"""A number where an instance has one rank, else ``(rank,)``."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """Prompt work of one iteration: the sums of :class:`StepShape`, numbers or ``(rank,)``."""

    tokens: PerRank
    context_products: PerRank
    squares: PerRank
    chunks: PerRank


NOTHING = Prefill(0, 0, 0, 0)
"""An iteration without prompt tokens."""


class Iterations(Protocol):
    """What the clock needs. Both methods agree to the bit on a decode iteration."""

    def one(self, prefill: Prefill, decodes: PerRank, contexts: PerRank) -> float:
        """Seconds of one iteration.

        Parameters
        ----------
        prefill : Prefill
            Prompt work.
        decodes, contexts
            Decode sequences and the sum of their cached tokens.
        """
        ...

    def run(self, decodes: PerRank, contexts: NDArray[np.int64]) -> Floats:
        """Seconds of each of a run of decode iterations of one batch, ``(iteration,)``.

        Parameters
        ----------
        decodes
            Decode sequences, the same in all.
        contexts : ndarray of int64, ``(iteration,)`` or ``(iteration, rank)``
            Sum of cached tokens before each.
        """
        ...


@dataclass(frozen=True, slots=True)
class Exact:
    """Every iteration is priced by the step times themselves."""

    step_times: StepTimes
    engine: Engine
    tokens_per_decode: float = 1.0

    def one(self, prefill: Prefill, decodes: PerRank, contexts: PerRank) -> float:
        """Seconds of one iteration."""
        return float(self.of(self.shape(prefill, decodes, contexts))[0])

    def run(self, decodes: PerRank, contexts: NDArray[np.int64]) -> Floats:
        """Seconds of each decode iteration, all in one pass."""
        each = contexts if contexts.ndim == 2 else contexts[:, None]
        return self.of(
            StepShape.of(
                num_decodes=decodes, decode_context_tokens=each, tokens_per_decode=self.tokens_per_decode
            )
        )

    def shape(self, prefill: Prefill, decodes: PerRank, contexts: PerRank) -> StepShape:
        """One iteration as a shape."""
        return StepShape.of(
            num_decodes=decodes,
            decode_context_tokens=contexts,
            prefill_tokens=prefill.tokens,
            prefill_context_products=prefill.context_products,
            prefill_squares=prefill.squares,
            num_prefills=prefill.chunks,
            tokens_per_decode=self.tokens_per_decode,
        )

    def of(self, shapes: StepShape) -> Floats:
        """Seconds of any iterations, ``(sample,)``."""
        return self.engine.iteration_s(self.step_times.seconds(shapes), self.step_times.overhead(shapes))
