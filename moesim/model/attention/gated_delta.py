"""Gated delta net: linear attention with a matrix state a head (Qwen3-Next, Qwen3.5).

References
----------
.. [1] S. Yang, J. Kautz, A. Hatamizadeh, "Gated Delta Networks," ICLR 2025, arXiv:2412.06464.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moesim.model.attention.base import elementwise, total_tokens
from moesim.model.dtypes import bytes_per_element
from moesim.model.ops import Gemm, MemoryBound, Op, Segment, Sharding

CHUNK_TOKENS = 64
"""Chunk of the parallel form in public kernels (flash-linear-attention) [1]_."""


@dataclass(frozen=True, slots=True)
class GatedDeltaNet:
    """State of ``key_dim x value_dim`` a value head, updated by a gated delta rule.

    Attributes
    ----------
    num_key_heads, num_value_heads, key_dim, value_dim : int
        [-]
    conv_width : int
        Taps of the short convolution over q, k and v. [tokens]
    state_dtype : str
        Format of the state.
    """

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    conv_width: int
    state_dtype: str = "fp32"

    @property
    def kind(self) -> str:
        """``gated_delta_net``."""
        return "gated_delta_net"

    @property
    def sharded_counts(self) -> Mapping[str, int]:
        """Key and value heads."""
        return {"num_key_heads": self.num_key_heads, "num_value_heads": self.num_value_heads}

    @property
    def cached_tokens_max(self) -> int | None:
        """No token is cached."""
        return 0

    @property
    def _conv_channels(self) -> int:
        return 2 * self.num_key_heads * self.key_dim + self.num_value_heads * self.value_dim

    def parameters(self, hidden: int, tp: int = 1) -> int:
        """Projections of q, k, v, output gate, decay and step; convolution; norm. [-]"""
        value_heads, channels = self.num_value_heads // tp, self._conv_channels // tp
        value_width = value_heads * self.value_dim
        count = hidden * (channels + value_width + 2 * value_heads) + value_width * hidden
        return count + channels * self.conv_width + 2 * value_heads + self.value_dim

    def kv_bytes_per_token(self, kv_dtype: str, tp: int = 1) -> float:
        """None. [bytes]"""
        return 0.0

    def state_bytes(self, tp: int = 1) -> float:
        """Matrix state and the last inputs of the convolution (bf16). [bytes]"""
        matrix = self.num_value_heads // tp * self.key_dim * self.value_dim
        window = self._conv_channels // tp * (self.conv_width - 1)
        return matrix * bytes_per_element(self.state_dtype) + window * bytes_per_element("bf16")

    def ops(self, hidden: int, segments: Sequence[Segment], sharding: Sharding) -> list[Op]:
        """Projections, convolution, state update, gated norm, output."""
        tp, w, a = sharding.tp, sharding.dtypes.weights, sharding.dtypes.activations
        tokens = total_tokens(segments)
        value_heads, channels = self.num_value_heads // tp, self._conv_channels // tp
        value_width = value_heads * self.value_dim
        result: list[Op] = [
            Gemm("qkvz", tokens, channels + value_width, hidden, w, a),
            Gemm("ba", tokens, 2 * value_heads, hidden, w, a),
            elementwise("conv", tokens, 2 * channels, a),
        ]
        io_bytes = (channels + value_width) * bytes_per_element(a)
        for segment in segments:
            decode = segment.phase == "decode"
            flops = self.scan_flops_per_token(1 if decode else CHUNK_TOKENS) * value_heads
            moved = segment.num_sequences * (2 * self.state_bytes(tp)) + segment.tokens * io_bytes
            result.append(MemoryBound("state_update", moved, segment.tokens * flops))
        result.append(elementwise("gated_norm", tokens, 3 * value_width, a))
        result.append(Gemm("o", tokens, hidden, value_width, w, a))
        return result

    def scan_flops_per_token(self, chunk_tokens: int) -> float:
        r"""Work of one head for one token in the chunked form (the recurrent form for a chunk of 1).

        Notes
        -----
        Across chunks: state times key, outer product, state times query, :math:`6 d_k d_v`. Within
        a chunk of :math:`C` tokens: two score matrices, :math:`4 C d_k`; the inverse of the
        triangular system applied to keys and values, :math:`2 C (d_k + d_v)`; scores times
        values, :math:`2 C d_v`; all absent when :math:`C = 1`. The solve itself is left out [1]_.
        """
        across = 6.0 * self.key_dim * self.value_dim
        within = chunk_tokens * (6.0 * self.key_dim + 4.0 * self.value_dim)
        return across + (within if chunk_tokens > 1 else 0.0)
