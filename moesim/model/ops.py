"""Operations of a forward pass: shapes, not seconds.

Every quantity that depends on the batch (tokens, sequences, context) may be a number or an array
over ranks (or layers x ranks, samples x ranks ...); results broadcast. ``flops`` counts a
multiply-add as two; ``moved_bytes`` is the least traffic with device memory: each operand read
once, each result written once, caches of the device ignored. Nothing here knows a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.model.dtypes import Dtypes, bytes_per_element

Quantity: TypeAlias = float | NDArray[Any]
"""A number or an array that broadcasts over ranks."""

Phase: TypeAlias = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Segment:
    """Sequences of one step that share a phase and, on average, their lengths.

    A step of an engine with chunked prefill is one decode and one prefill segment.

    Attributes
    ----------
    phase : str
        ``prefill`` (many query tokens, causal) or ``decode`` (few query tokens against a cache).
    num_sequences : float or ndarray
        Sequences. [-]
    query_tokens : float or ndarray
        New tokens of each sequence; in decode 1, or 1 + drafts of a speculative step. [tokens]
    context_tokens : float or ndarray
        Cached tokens of each sequence before this step (mean over the sequences). [tokens]
    """

    phase: Phase
    num_sequences: Quantity
    query_tokens: Quantity
    context_tokens: Quantity

    @property
    def tokens(self) -> Quantity:
        """New tokens of the segment. [tokens]"""
        return self.num_sequences * self.query_tokens

    @classmethod
    def decode(
        cls, num_sequences: Quantity, context_tokens: Quantity, query_tokens: Quantity = 1.0
    ) -> Segment:
        """One new token for each sequence (or more, when drafts are verified)."""
        return cls("decode", num_sequences, query_tokens, context_tokens)

    @classmethod
    def prefill(
        cls, num_sequences: Quantity, query_tokens: Quantity, context_tokens: Quantity = 0.0
    ) -> Segment:
        """A prompt, or a chunk of one with ``context_tokens`` already cached."""
        return cls("prefill", num_sequences, query_tokens, context_tokens)


@dataclass(frozen=True, slots=True)
class Sharding:
    """What an operation builder needs to know beside shapes: the tensor-parallel degree and formats."""

    tp: int = 1
    dtypes: Dtypes = Dtypes()


def _some(rows: Quantity) -> Quantity:
    """1 where there is work, else 0: an empty GEMM does not read its weights."""
    return np.greater(rows, 0) if isinstance(rows, np.ndarray) else float(rows > 0)


@dataclass(frozen=True, slots=True)
class Gemm:
    """``y[rows, n] = x[rows, k] @ w[n, k].T``, ``count`` times with different weights.

    Attributes
    ----------
    rows : float or ndarray
        Rows of each of the ``count`` products. [-]
    n, k : int
        Columns of the result; length of the inner sum. [-]
    weight_dtype, activation_dtype : str
        Formats of ``w`` and of ``x`` and ``y`` in memory.
    count : int
        Independent products in one launch (a batched GEMM). [-]
    """

    name: str
    rows: Quantity
    n: int
    k: int
    weight_dtype: str
    activation_dtype: str
    count: int = 1

    @property
    def flops(self) -> Quantity:
        """Multiply-adds times two. [FLOP]"""
        return self.rows * (2.0 * self.n * self.k * self.count)

    @property
    def weight_bytes(self) -> float:
        """Stored bytes of all weights. [bytes]"""
        return self.count * self.n * self.k * bytes_per_element(self.weight_dtype)

    @property
    def moved_bytes(self) -> Quantity:
        """Weights once, inputs and results once. [bytes]"""
        io_bytes = self.count * (self.n + self.k) * bytes_per_element(self.activation_dtype)
        return _some(self.rows) * self.weight_bytes + self.rows * io_bytes


@dataclass(frozen=True, slots=True)
class GroupedExperts:
    """Feed-forward of the routed experts that one rank holds: up (and gate), activation, down.

    How many tokens each expert gets comes from routing, so flops and bytes take a histogram.

    Attributes
    ----------
    hidden, width : int
        Model width; inner width of one expert *on this rank* (after expert tensor parallelism). [-]
    gated : bool
        Two input matrices (gate and up) instead of one.
    num_local_experts : int
        Physical experts on the rank. [-]
    top_k : int
        Experts that a token chooses: what the kernel writes of a token is summed over them. [-]
    """

    name: str
    hidden: int
    width: int
    gated: bool
    weight_dtype: str
    activation_dtype: str
    num_local_experts: int
    top_k: int = 1

    @property
    def num_up_matrices(self) -> int:
        """Input projections of an expert: 2 when gated."""
        return 2 if self.gated else 1

    @property
    def weights_per_expert(self) -> int:
        """Numbers in the matrices of one local expert. [-]"""
        return (self.num_up_matrices + 1) * self.hidden * self.width

    @property
    def weight_bytes_per_expert(self) -> float:
        """Stored bytes of one local expert. [bytes]"""
        return self.weights_per_expert * bytes_per_element(self.weight_dtype)

    def flops(self, expert_tokens: ArrayLike) -> NDArray[np.float64]:
        """Work for ``expert_tokens[..., expert]`` tokens, summed over experts, ``(...)``. [FLOP]"""
        tokens = np.asarray(expert_tokens, dtype=np.float64).sum(axis=-1)
        return np.asarray(2.0 * self.weights_per_expert * tokens)

    def moved_bytes(self, expert_tokens: ArrayLike) -> NDArray[np.float64]:
        """Weights of the experts that have a token, once, and the activations, ``(...)``. [bytes]"""
        counts = np.asarray(expert_tokens, dtype=np.float64)
        weight_bytes = np.count_nonzero(counts > 0, axis=-1) * self.weight_bytes_per_expert
        # read the token, write and read the inner activations, write the result
        elements = 2 * self.hidden + 2 * (self.num_up_matrices + 1) * self.width
        return np.asarray(
            weight_bytes + counts.sum(axis=-1) * elements * bytes_per_element(self.activation_dtype)
        )


@dataclass(frozen=True, slots=True)
class AttentionPrefill:
    """Attention of many query tokens against themselves and a cached context.

    Attributes
    ----------
    num_sequences, query_tokens, context_tokens : float or ndarray
        See :class:`Segment`. [-], [tokens], [tokens]
    num_heads, num_kv_heads : int
        Query heads and key/value heads on this rank. [-]
    qk_dim, v_dim : int
        Width of a query or key, and of a value. 0 for ``v_dim`` when only scores are wanted. [-]
    window : int or None
        Most tokens that one query attends to (itself included). [tokens]
    causal : bool
        False in an encoder: every query sees every token.
    """

    name: str
    num_sequences: Quantity
    query_tokens: Quantity
    context_tokens: Quantity
    num_heads: int
    num_kv_heads: int
    qk_dim: int
    v_dim: int
    activation_dtype: str
    kv_dtype: str
    window: int | None = None
    causal: bool = True

    @property
    def pairs(self) -> Quantity:
        """Query-key pairs of one head over all sequences. [-]"""
        if not self.causal:
            return self.num_sequences * self.query_tokens * (self.query_tokens + self.context_tokens)
        return self.num_sequences * causal_pairs(self.query_tokens, self.context_tokens, self.window)

    @property
    def flops(self) -> Quantity:
        """Scores and weighted values. [FLOP]"""
        return self.pairs * (2.0 * self.num_heads * (self.qk_dim + self.v_dim))

    @property
    def moved_bytes(self) -> Quantity:
        """Queries and results, and each visible key and value once. [bytes]"""
        visible: Quantity = self.context_tokens + self.query_tokens
        if self.window is not None:
            visible = np.minimum(visible, self.query_tokens + self.window - 1)
        io_bytes = self.num_heads * (self.qk_dim + self.v_dim) * bytes_per_element(self.activation_dtype)
        kv_bytes = self.num_kv_heads * (self.qk_dim + self.v_dim) * bytes_per_element(self.kv_dtype)
        return self.num_sequences * (self.query_tokens * io_bytes + visible * kv_bytes)


@dataclass(frozen=True, slots=True)
class AttentionDecode:
    """Attention of one (or few) query tokens of each sequence against its cache.

    Absorbed multi-head latent attention is this operation with one key/value head whose value is a
    part of its key: ``num_kv_heads=1, qk_dim=kv_lora_rank + rope, v_dim=kv_lora_rank``.

    Attributes
    ----------
    num_sequences, context_tokens, query_tokens : float or ndarray
        See :class:`Segment`. [-], [tokens], [tokens]
    num_heads, num_kv_heads, qk_dim, v_dim : int
        On this rank, as in :class:`AttentionPrefill`. [-]
    kv_bytes_per_token : float
        Cache bytes that one context token costs on this rank. [bytes]
    window : int or None
        Most tokens that a query attends to. [tokens]
    """

    name: str
    num_sequences: Quantity
    context_tokens: Quantity
    query_tokens: Quantity
    num_heads: int
    num_kv_heads: int
    qk_dim: int
    v_dim: int
    kv_bytes_per_token: float
    activation_dtype: str
    kv_dtype: str
    window: int | None = None

    @property
    def attended_tokens(self) -> Quantity:
        """Tokens that the newest query of a sequence attends to, itself included. [tokens]"""
        total = self.context_tokens + self.query_tokens
        return total if self.window is None else np.minimum(total, self.window)

    @property
    def flops(self) -> Quantity:
        """Scores and weighted values. [FLOP]"""
        pairs = causal_pairs(self.query_tokens, self.context_tokens, self.window)
        return self.num_sequences * pairs * (2.0 * self.num_heads * (self.qk_dim + self.v_dim))

    @property
    def moved_bytes(self) -> Quantity:
        """The attended cache once, queries and results. [bytes]"""
        io_bytes = self.num_heads * (self.qk_dim + self.v_dim) * bytes_per_element(self.activation_dtype)
        cache_bytes = self.attended_tokens * self.kv_bytes_per_token
        return self.num_sequences * (cache_bytes + self.query_tokens * io_bytes)


@dataclass(frozen=True, slots=True)
class MemoryBound:
    """Element-wise, gather and scatter work, described by its traffic.

    Attributes
    ----------
    moved_bytes : float or ndarray
        Read and written. [bytes]
    flops : float or ndarray
        Only where it is large enough to matter (state updates of linear attention). [FLOP]
    """

    name: str
    moved_bytes: Quantity
    flops: Quantity = 0.0


@dataclass(frozen=True, slots=True)
class Router:
    """Gate scores of every expert and the choice of ``top_k``.

    Attributes
    ----------
    tokens : float or ndarray
        [tokens]
    hidden, num_experts, top_k : int
        [-]
    """

    name: str
    tokens: Quantity
    hidden: int
    num_experts: int
    top_k: int
    weight_dtype: str
    activation_dtype: str

    @property
    def flops(self) -> Quantity:
        """Scores only; choosing is not counted. [FLOP]"""
        return self.tokens * (2.0 * self.hidden * self.num_experts)

    @property
    def moved_bytes(self) -> Quantity:
        """Gate weights, tokens, scores (fp32, written and read) and the chosen ids and weights. [bytes]"""
        weight_bytes = self.hidden * self.num_experts * bytes_per_element(self.weight_dtype)
        score_bytes = bytes_per_element("fp32")
        row_bytes = self.hidden * bytes_per_element(self.activation_dtype)
        row_bytes += 2 * self.num_experts * score_bytes + 2 * self.top_k * score_bytes
        return _some(self.tokens) * weight_bytes + self.tokens * row_bytes


Op: TypeAlias = Gemm | AttentionPrefill | AttentionDecode | MemoryBound | Router
"""Operations whose cost needs nothing but themselves; :class:`GroupedExperts` needs a histogram too."""


def causal_pairs(query_tokens: Quantity, context_tokens: Quantity, window: int | None = None) -> Quantity:
    r"""Query-key pairs of one sequence under a causal mask.

    Parameters
    ----------
    query_tokens, context_tokens : float or ndarray
        New and cached tokens. [tokens]
    window : int, optional
        A query attends to at most this many tokens, itself included. [tokens]

    Returns
    -------
    float or ndarray
        :math:`\sum_{i=1}^{q} \min(c+i, w)`. [-]

    Examples
    --------
    >>> causal_pairs(3, 0), causal_pairs(1, 9), causal_pairs(3, 0, window=2)
    (6.0, 10.0, 5.0)
    """
    q, c = query_tokens, context_tokens
    pairs = q * c + q * (q + 1) / 2
    if window is None:
        return pairs
    # the last m queries would see more than the window: they lose 1, 2, ..., in all the over-hang
    last = q + c - window
    first = np.maximum(c - window, 0)  # over-hang before the first query of the chunk
    over = np.maximum(last, 0)
    result = pairs - (over * (over + 1) - first * (first + 1)) / 2
    return float(result) if np.ndim(result) == 0 else np.asarray(result)
