"""Seconds of an operation in each pass of training: forward, gradient of its input, of its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moesim.evidence import Estimate
from moesim.kernels.cost import EXPERT_LAUNCHES, KernelCost
from moesim.kernels.histogram import ExpertLoad
from moesim.model.dtypes import bytes_per_element
from moesim.model.ops import AttentionDecode, AttentionPrefill, Gemm, GroupedExperts, MemoryBound, Op, Router

ATTENTION_BACKWARD_RATIO = 3.0
"""Backward over forward time of fused attention. It has five products where forward has two (2.5 times the
work) at a lower rate: FlashAttention-3 (arXiv:2407.08608, figures 5 and 6, H100, causal, width 128, 4K to
16K) reaches about 0.8 of its forward rate; DeepSeek's published training trace (profile-data, H800) shows
3.58 to 3.86 ms after 1.20 to 1.28 ms."""

ATTENTION_BACKWARD_SIGMA = 0.15
"""Assumed beside the forward kernel's own: the ratio above varies with width and length."""

ELEMENTWISE_BACKWARD_RATIO = 1.5
"""Bytes of the backward of element-wise work over its forward's, counted: a norm reads two arrays where
forward read one and writes one (3 : 2), a gated activation reads three and writes two (5 : 3)."""

GRADIENT_DTYPE = "fp32"

UNFUSED_LAUNCHES = 3
"""Kernels of attention as separate work: two products and a softmax."""


@dataclass(frozen=True, slots=True)
class Passes:
    """What one operation costs in each pass.

    Attributes
    ----------
    forward, input_gradient, weight_gradient : Estimate
        Each ``(...)`` over ranks; ``weight_gradient`` is None for work without weights.
    """

    forward: Estimate
    input_gradient: Estimate
    weight_gradient: Estimate | None = None


@dataclass(frozen=True)
class TrainCost:
    """Costs of training passes from the costs of forward kernels.

    The gradients of a product are products of the same three lengths in another order, so they are priced as
    such; what has no forward counterpart carries its ratio and source in this module.

    Attributes
    ----------
    kernels : KernelCost
        Forward kernels of the device.
    gradient_dtype : str
        Format in which weight gradients are summed over microbatches.
    quantised : bool
        Whether inputs of products are cast to a narrow format first (fp8 training).
    """

    kernels: KernelCost
    gradient_dtype: str = GRADIENT_DTYPE
    quantised: bool = False

    def op(self, op: Op) -> Passes:
        """Passes of an operation that is its own description.

        Raises
        ------
        ValueError
            Decode attention: nothing is trained through a cache.
        """
        match op:
            case Gemm():
                return self._gemm(op)
            case AttentionPrefill():
                forward = self.kernels.op(op)
                sigma = float(np.hypot(forward.sigma, ATTENTION_BACKWARD_SIGMA))
                return Passes(
                    forward,
                    replace(forward, seconds=forward.seconds * ATTENTION_BACKWARD_RATIO, sigma=sigma),
                )
            case MemoryBound():
                backward = replace(
                    op,
                    moved_bytes=op.moved_bytes * ELEMENTWISE_BACKWARD_RATIO,
                    flops=op.flops * ELEMENTWISE_BACKWARD_RATIO,
                )
                return Passes(self.kernels.op(op), self.kernels.op(backward))
            case Router():
                forward = self.kernels.op(op)
                return Passes(forward, forward, forward)
            case AttentionDecode():
                msg = f"{op.name}: decode attention has no backward pass"
                raise ValueError(msg)

    def launches(self, op: Op, *, fused: bool = True) -> int:
        """Kernels of an operation's forward pass."""
        if isinstance(op, Gemm):
            return 1 + self.quantised
        return UNFUSED_LAUNCHES if isinstance(op, AttentionPrefill) and not fused else 1

    @property
    def expert_launches(self) -> int:
        """Kernels of the forward pass of a grouped expert block: each product has its input cast first."""
        return EXPERT_LAUNCHES + 2 * self.quantised

    def unfused(self, op: AttentionPrefill) -> Passes:
        """Passes of attention as separate products and a softmax: every query meets every key.

        Two products forward, four backward; the softmax reads and writes all scores, its gradient reads
        scores and their gradient and writes one. What a mask or a sink adds to that is not counted.
        """
        tokens, dtype = int(np.max(op.query_tokens)), op.activation_dtype
        count = max(1, round(float(np.max(op.num_sequences)) * op.num_heads))
        scores = Gemm("scores", float(tokens), tokens, op.qk_dim, dtype, dtype, count)
        values = Gemm("values", float(tokens), op.v_dim, tokens, dtype, dtype, count)
        score_bytes = float(count) * tokens**2 * bytes_per_element(dtype)
        products = [self.kernels.op(o) for o in (scores, values)]
        there, back = (
            self.kernels.op(MemoryBound("softmax", passes * score_bytes)).seconds for passes in (2, 3)
        )
        seconds = sum(np.asarray(p.seconds) for p in products)
        return Passes(
            replace(products[0], seconds=seconds + there),
            replace(products[0], seconds=2.0 * seconds + back),
        )

    def _gemm(self, op: Gemm) -> Passes:
        rows = max(1, round(float(np.max(op.rows))))
        by_input = replace(op, n=op.k, k=op.n)
        # every weight's gradient is a product over the rows, added to the sum of the microbatches
        by_weight = Gemm(
            op.name, float(op.n), op.k, rows, op.weight_dtype, op.activation_dtype, count=op.count
        )
        accumulate = MemoryBound("accumulate", self._accumulated_bytes(op.n * op.k * op.count))
        forward, back, weight = (self.kernels.op(o) for o in (op, by_input, by_weight))
        cast = self._cast(op.rows * op.k * op.count, op)
        cast_back = self._cast(op.rows * op.n * op.count, op)
        return Passes(_sum(forward, cast), _sum(back, cast_back), _sum(weight, self.kernels.op(accumulate)))

    def _accumulated_bytes(self, weights: float) -> float:
        """Beyond one write in the product's own format, which the product's cost holds already."""
        return weights * (2 * bytes_per_element(self.gradient_dtype) - bytes_per_element("bf16"))

    def _cast(self, elements: float | np.ndarray, op: Gemm | GroupedExperts) -> Estimate | None:
        """Reads the wide array once, writes it narrow twice: along rows and along columns.

        Kernels that quantise their inputs hold all of that but the second copy.
        """
        if not self.quantised:
            return None
        held = isinstance(op, Gemm) and self.kernels.quantises(op)
        moved = 1.0 if held else bytes_per_element(op.activation_dtype) + 2.0
        return self.kernels.op(MemoryBound("cast", elements * moved))

    def experts(self, op: GroupedExperts, load: ExpertLoad) -> Passes:
        """Passes of a grouped expert block for a histogram of tokens per expert, each ``(...)``.

        Both gradients have the forward's three products (or two) in another order; weight gradients of every
        local expert are added to their sums.
        """
        forward = self.kernels.experts(op, load)
        elements = load.rows * (op.hidden + op.width)
        cast = self._cast(elements, op)
        weights = op.weights_per_expert * load.touched
        accumulate = self.kernels.op(MemoryBound("accumulate", self._accumulated_bytes(1) * weights))
        return Passes(_sum(forward, cast), _sum(forward, cast), _sum(forward, accumulate))


def _sum(first: Estimate, second: Estimate | None) -> Estimate:
    """Both in a row, under the first one's evidence."""
    return first if second is None else replace(first, seconds=first.seconds + second.seconds)
