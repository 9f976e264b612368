"""Multi-head, multi-query and grouped-query attention, full or with a sliding window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from moesim.model.attention.base import elementwise, local_kv_heads, total_tokens
from moesim.model.dtypes import bytes_per_element
from moesim.model.ops import AttentionDecode, AttentionPrefill, Gemm, Op, Quantity, Segment, Sharding


@dataclass(frozen=True, slots=True)
class GroupedQueryAttention:
    """Attention whose query heads share key/value heads (``num_kv_heads == num_heads`` is MHA).

    Attributes
    ----------
    num_heads, num_kv_heads : int
        [-]
    head_dim, v_head_dim : int
        Width of queries and keys; of values. [-]
    window : int or None
        Sliding or chunked window. A chunked window (Llama 4) holds half of it on average: it is
        counted as a sliding one, which is its upper bound. [tokens]
    qk_norm : str or None
        ``head``: one weight a head dimension, shared by heads; ``full``: one weight for every
        element; ``unweighted``: no parameters.
    qkv_bias, output_bias : bool
        Biases of the projections.
    output_gate : bool
        A second query-sized projection gates the result (Qwen3-Next).
    sinks : bool
        A learned logit a head (gpt-oss).
    causal : bool
        False in an encoder.
    cross : bool
        Keys and values come from the encoder's result: cached once, at prefill.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int | None = None
    qk_norm: Literal["head", "full", "unweighted"] | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    output_gate: bool = False
    sinks: bool = False
    causal: bool = True
    cross: bool = False

    @property
    def kind(self) -> str:
        """``gqa``, ``mha`` or ``mqa``, with ``window`` or ``cross`` where it applies."""
        name = {1: "mqa", self.num_heads: "mha"}.get(self.num_kv_heads, "gqa")
        if self.cross:
            return f"{name} cross"
        return name if self.window is None else f"{name} window {self.window}"

    @property
    def sharded_counts(self) -> Mapping[str, int]:
        """Query heads, and key/value heads, which may also be replicated."""
        return {"num_heads": self.num_heads, "num_kv_heads": self.num_kv_heads}

    @property
    def cached_tokens_max(self) -> int | None:
        """The window."""
        return self.window

    @property
    def _query_width(self) -> int:
        return self.head_dim * (2 if self.output_gate else 1)

    def parameters(self, hidden: int, tp: int = 1) -> int:
        """Projections, biases and norms on one of ``tp`` ranks. [-]"""
        heads, kv_heads = self.num_heads // tp, local_kv_heads(self.num_kv_heads, tp)
        qkv_width = heads * self._query_width + kv_heads * (self.head_dim + self.v_head_dim)
        count = hidden * (qkv_width + heads * self.v_head_dim)
        count += qkv_width if self.qkv_bias else 0
        count += hidden if self.output_bias else 0
        count += heads if self.sinks else 0
        if self.qk_norm == "head":
            count += 2 * self.head_dim
        elif self.qk_norm == "full":
            count += (heads + kv_heads) * self.head_dim
        return count

    def kv_bytes_per_token(self, kv_dtype: str, tp: int = 1) -> float:
        """Keys and values of the local heads. [bytes]"""
        if not self.causal:
            return 0.0
        kv_heads = local_kv_heads(self.num_kv_heads, tp)
        return kv_heads * (self.head_dim + self.v_head_dim) * bytes_per_element(kv_dtype)

    def state_bytes(self, tp: int = 1) -> float:
        """None: attention keeps tokens, not a state. [bytes]"""
        return 0.0

    def ops(self, hidden: int, segments: Sequence[Segment], sharding: Sharding) -> list[Op]:
        """Column-parallel QKV, norm and rotation, cache write, attention, row-parallel output."""
        tp, dtypes = sharding.tp, sharding.dtypes
        tokens = total_tokens(segments)
        heads, kv_heads = self.num_heads // tp, local_kv_heads(self.num_kv_heads, tp)
        kv_width = kv_heads * (self.head_dim + self.v_head_dim)
        w, a = dtypes.weights, dtypes.activations
        if self.cross:
            return self._cross_ops(hidden, segments, sharding)
        result: list[Op] = [Gemm("qkv", tokens, heads * self._query_width + kv_width, hidden, w, a)]
        result.append(elementwise("rope", tokens, 2 * (heads + kv_heads) * self.head_dim, a))
        if self.causal:
            result.append(elementwise("kv_write", tokens, kv_width, dtypes.kv))
        result += [self._core(segment, heads, kv_heads, sharding) for segment in segments]
        if self.output_gate:
            result.append(elementwise("output_gate", tokens, 3 * heads * self.v_head_dim, a))
        result.append(Gemm("o", tokens, hidden, heads * self.v_head_dim, w, a))
        return result

    def _core(self, segment: Segment, heads: int, kv_heads: int, sharding: Sharding) -> Op:
        dtypes = sharding.dtypes
        if segment.phase == "decode":
            return AttentionDecode(
                "attention",
                segment.num_sequences,
                segment.context_tokens,
                segment.query_tokens,
                heads,
                kv_heads,
                self.head_dim,
                self.v_head_dim,
                self.kv_bytes_per_token(dtypes.kv, sharding.tp),
                dtypes.activations,
                dtypes.kv,
                self.window,
            )
        return AttentionPrefill(
            "attention",
            segment.num_sequences,
            segment.query_tokens,
            segment.context_tokens,
            heads,
            kv_heads,
            self.head_dim,
            self.v_head_dim,
            dtypes.activations,
            dtypes.kv,
            self.window,
            self.causal,
        )

    def _cross_ops(self, hidden: int, segments: Sequence[Segment], sharding: Sharding) -> list[Op]:
        """Keys and values of the prompt at prefill; queries against them at decode."""
        tp, dtypes = sharding.tp, sharding.dtypes
        w, a = dtypes.weights, dtypes.activations
        heads, kv_heads = self.num_heads // tp, local_kv_heads(self.num_kv_heads, tp)
        kv_width = kv_heads * (self.head_dim + self.v_head_dim)
        prompt: Quantity = total_tokens([s for s in segments if s.phase == "prefill"])
        decodes = [s for s in segments if s.phase == "decode"]
        result: list[Op] = []
        if len(decodes) < len(segments):
            result.append(Gemm("cross_kv", prompt, kv_width, hidden, w, a))
            result.append(elementwise("cross_kv_write", prompt, kv_width, dtypes.kv))
        if decodes:
            tokens = total_tokens(decodes)
            result.append(Gemm("cross_q", tokens, heads * self.head_dim, hidden, w, a))
            result += [self._core(s, heads, kv_heads, sharding) for s in decodes]
            result.append(Gemm("cross_o", tokens, hidden, heads * self.v_head_dim, w, a))
        return result
