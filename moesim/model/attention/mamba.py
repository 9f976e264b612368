"""Selective state space layer, first generation (Jamba).

References
----------
.. [1] A. Gu, T. Dao, "Mamba," arXiv:2312.00752, section 3.
.. [2] O. Lieber et al., "Jamba," arXiv:2403.19887: norms on the step and on B and C.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moesim.model.attention.base import elementwise, total_tokens
from moesim.model.dtypes import bytes_per_element
from moesim.model.ops import Gemm, MemoryBound, Op, Segment, Sharding

SCAN_FLOPS_PER_STATE = 9.0
"""For each element of the state: discretise (3), update (3), read out and gate (3)."""


@dataclass(frozen=True, slots=True)
class Mamba:
    """State of ``state_dim`` numbers a channel.

    Attributes
    ----------
    inner_dim, state_dim, conv_width, step_rank : int
        Channels; state of a channel; taps of the convolution; rank of the step projection. [-]
    state_dtype : str
        Format of the state.
    """

    inner_dim: int
    state_dim: int
    conv_width: int
    step_rank: int
    state_dtype: str = "fp32"

    @property
    def kind(self) -> str:
        """``mamba``."""
        return "mamba"

    @property
    def sharded_counts(self) -> Mapping[str, int]:
        """Channels."""
        return {"inner_dim": self.inner_dim}

    @property
    def cached_tokens_max(self) -> int | None:
        """No token is cached."""
        return 0

    @property
    def _projected(self) -> int:
        return self.step_rank + 2 * self.state_dim

    def parameters(self, hidden: int, tp: int = 1) -> int:
        """Projections, convolution, state matrix, skip, norms. [-]"""
        inner = self.inner_dim // tp
        count = hidden * 2 * inner + inner * (self.conv_width + 1) + inner * self._projected
        count += self.step_rank * inner + inner + inner * self.state_dim + inner + inner * hidden
        return count + self._projected

    def kv_bytes_per_token(self, kv_dtype: str, tp: int = 1) -> float:
        """None. [bytes]"""
        return 0.0

    def state_bytes(self, tp: int = 1) -> float:
        """State and the last inputs of the convolution (bf16). [bytes]"""
        inner = self.inner_dim // tp
        window = inner * (self.conv_width - 1) * bytes_per_element("bf16")
        return inner * self.state_dim * bytes_per_element(self.state_dtype) + window

    def ops(self, hidden: int, segments: Sequence[Segment], sharding: Sharding) -> list[Op]:
        """Input projection, convolution, step/B/C projections, scan, gate, output."""
        tp, w, a = sharding.tp, sharding.dtypes.weights, sharding.dtypes.activations
        tokens = total_tokens(segments)
        inner = self.inner_dim // tp
        result: list[Op] = [
            Gemm("in", tokens, 2 * inner, hidden, w, a),
            elementwise("conv", tokens, 2 * inner, a),
            Gemm("x", tokens, self._projected, inner, w, a),
            Gemm("step", tokens, inner, self.step_rank, w, a),
        ]
        io_bytes = (4 * inner + 2 * self.state_dim) * bytes_per_element(a)
        for segment in segments:
            moved = segment.num_sequences * (2 * self.state_bytes(tp)) + segment.tokens * io_bytes
            flops = segment.tokens * (SCAN_FLOPS_PER_STATE * inner * self.state_dim)
            result.append(MemoryBound("state_update", moved, flops))
        result.append(Gemm("out", tokens, hidden, inner, w, a))
        return result
