"""What one iteration of an instance computes, and the contract of whoever says how long it takes.

The serving clock knows requests, queues and blocks; it asks a :class:`StepTimes` for seconds. Shapes are
sums over the sequences of a rank, so that no sequence has to be looked at to build one, and arrays over a
sample axis, so that many shapes are priced in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class StepShape:
    """Iterations of one instance, every quantity ``(sample, rank)`` over attention-DP ranks.

    A rank without work is a rank of zeros: it still joins the collectives of its instance.

    Attributes
    ----------
    prefill_tokens : ndarray
        New prompt tokens, summed over the chunks of the iteration. [tokens]
    prefill_context_products : ndarray
        Sum over chunks of new tokens times tokens cached before the chunk. [tokens^2]
    prefill_squares : ndarray
        Sum over chunks of new tokens squared. [tokens^2]
    num_prefills : ndarray
        Chunks. [-]
    num_decodes : ndarray
        Sequences in decode. [-]
    decode_context_tokens : ndarray
        Cached tokens before this iteration, summed over the decode sequences. [tokens]
    tokens_per_decode : float
        Query tokens of a decode sequence: 1, or 1 + drafts to be verified. [tokens]
    """

    prefill_tokens: Floats
    prefill_context_products: Floats
    prefill_squares: Floats
    num_prefills: Floats
    num_decodes: Floats
    decode_context_tokens: Floats
    tokens_per_decode: float = 1.0

    @property
    def num_samples(self) -> int:
        """Iterations described."""
        return int(self.num_decodes.shape[0])

    @property
    def num_ranks(self) -> int:
        """Attention-DP ranks of the instance."""
        return int(self.num_decodes.shape[1])

    @property
    def new_tokens(self) -> Floats:
        """Rows of the dense layers, ``(sample, rank)``. [tokens]"""
        return self.prefill_tokens + self.num_decodes * self.tokens_per_decode

    @property
    def prefill_keys(self) -> Floats:
        """Mean keys that a new prompt token attends to, ``(sample, rank)``; 0 without any. [tokens]"""
        attended = self.prefill_context_products + 0.5 * self.prefill_squares
        return np.asarray(attended / np.maximum(self.prefill_tokens, 1.0))

    @property
    def decode_context(self) -> Floats:
        """Mean cached tokens of a decode sequence, ``(sample, rank)``; 0 without any. [tokens]"""
        return np.asarray(self.decode_context_tokens / np.maximum(self.num_decodes, 1.0))

    @classmethod
    def of(
        cls,
        *,
        num_decodes: ArrayLike = 0.0,
        decode_context_tokens: ArrayLike = 0.0,
        prefill_tokens: ArrayLike = 0.0,
        prefill_context_products: ArrayLike = 0.0,
        prefill_squares: ArrayLike = 0.0,
        num_prefills: ArrayLike = 0.0,
        tokens_per_decode: float = 1.0,
    ) -> StepShape:
        """Shape from numbers or arrays that broadcast to ``(sample, rank)``; a number is one of each."""
        given = (
            prefill_tokens,
            prefill_context_products,
            prefill_squares,
            num_prefills,
            num_decodes,
            decode_context_tokens,
        )
        arrays = np.broadcast_arrays(*(np.atleast_2d(np.asarray(value, dtype=float)) for value in given))
        return cls._from([np.ascontiguousarray(array) for array in arrays], tokens_per_decode)

    def take(self, rows: NDArray[np.int64] | slice) -> StepShape:
        """Some of the samples, in the order asked for."""
        return self._from([array[rows] for array in self.arrays()], self.tokens_per_decode)

    def of_ranks(self, ranks: NDArray[np.int64]) -> StepShape:
        """The same iterations on some of the ranks."""
        return self._from([array[:, ranks] for array in self.arrays()], self.tokens_per_decode)

    def parts(self, count: int) -> StepShape:
        """One of ``count`` equal parts of every iteration: pieces of prompts are cut, chunk by chunk."""
        return self._from([array / count for array in self.arrays()], self.tokens_per_decode)

    def arrays(self) -> list[Floats]:
        """The six quantities in the order of the fields."""
        return [getattr(self, f.name) for f in fields(self) if f.name != "tokens_per_decode"]

    @classmethod
    def _from(cls, arrays: Sequence[Floats], tokens_per_decode: float) -> StepShape:
        tokens, products, squares, chunks, decodes, contexts = arrays
        return cls(tokens, products, squares, chunks, decodes, contexts, tokens_per_decode)


def stacked(shapes: Sequence[StepShape]) -> StepShape:
    """Samples of several shapes, one after another; all of one instance.

    Raises
    ------
    ValueError
        Without any, or where they differ in ranks or in tokens per decode.
    """
    if len({(shape.num_ranks, shape.tokens_per_decode) for shape in shapes}) != 1:
        message = "shapes to stack must share ranks and tokens_per_decode, and there must be some"
        raise ValueError(message)
    tokens, products, squares, chunks, decodes, contexts = (
        np.concatenate(parts) for parts in zip(*(shape.arrays() for shape in shapes), strict=True)
    )
    return StepShape(tokens, products, squares, chunks, decodes, contexts, shapes[0].tokens_per_decode)


class StepTimes(Protocol):
    """How long iterations take; the same shape gives the same seconds, alone or among others."""

    @property
    def num_ranks(self) -> int:
        """Attention-DP ranks of the shapes that are understood."""
        ...

    def seconds(self, shapes: StepShape) -> Floats:
        """Device time of each iteration, ``(sample,)``. [s]"""
        ...

    def overhead(self, shapes: StepShape) -> Floats:
        """Host time of each iteration, ``(sample,)``: scheduling, inputs, sampling, detokenising. [s]

        Whether it hides behind the device is the engine's matter (asynchronous scheduling), not this
        method's.
        """
        ...
