r"""Time of attention of many query tokens, causal, with or without a window; latent attention alike.

.. math::

   T = t_0 + \max(n/\text{units}, 1)\, t_\text{block} + \text{core}(P)
       + f_l\, \text{units}\; \text{core}(P_\text{longest})
       + \frac{\text{bytes}(q, k, v, o)}{e_R \beta}, \qquad
   \text{core}(P) = \Bigl[\bigl(\tfrac{2 (d_{qk} + d_v) P}{e_c \pi}\bigr)^p
                  + \bigl(\tfrac{P}{e_e X}\bigr)^p\Bigr]^{1/p}

:math:`P` counts query-key pairs of all heads after rounding both sides up to blocks; tensor work and
exponentials (rate :math:`X`) overlap only partly; the longest block stands for causal imbalance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.kernels.forms.base import Machine, Parts, free, smooth_max
from moesim.model.ops import Quantity
from moesim.units import US


@dataclass(frozen=True, slots=True)
class PrefillWork:
    """Shapes as in :class:`~moesim.model.ops.AttentionPrefill`; ``window`` is infinite without one."""

    num_sequences: Quantity
    query_tokens: Quantity
    context_tokens: Quantity
    num_heads: Quantity
    num_kv_heads: Quantity
    qk_dim: Quantity
    v_dim: Quantity
    window: Quantity
    query_element_bytes: float
    kv_element_bytes: float
    is_causal: bool = True


@dataclass(frozen=True, slots=True)
class PrefillParameters:
    """Fitted numbers: times in seconds, others are ratios to the datasheet."""

    launch_s: float = free(10 * US, 0.1 * US, 1000 * US)
    block_s: float = free(1.5 * US, 0.001 * US, 300 * US)
    compute_fraction: float = free(0.6, 0.02, 2.0)
    exponential_fraction: float = free(0.8, 0.005, 5.0)
    overlap_power: float = free(2.0, 1.02, 12.0)
    longest_fraction: float = free(0.6, 0.01, 3.0)
    stream_fraction: float = free(1.0, 0.02, 10.0)


@dataclass(frozen=True, slots=True)
class PrefillChoice:
    """Rows of a block, and whether the query heads of a key head share blocks."""

    block_rows: int = 128
    packs: bool = False


def free_parameters(choice: PrefillChoice) -> tuple[str, ...]:
    """Parameters that matter under a choice: all."""
    del choice
    return tuple(PrefillParameters.__dataclass_fields__)


def prefill_parts(work: PrefillWork, machine: Machine, p: PrefillParameters, choice: PrefillChoice) -> Parts:
    """Time by the formula of this module; 0 where there is no sequence or no query."""
    block = float(choice.block_rows)
    sequences, heads = work.num_sequences, work.num_heads
    query_blocks = np.ceil(work.query_tokens / block)
    context_blocks = np.ceil(work.context_tokens / block)
    widest = query_blocks + context_blocks  # key blocks of the last row of blocks
    if work.is_causal:
        reach = np.ceil(work.window / block) + 1.0
        over, first = np.maximum(widest - reach, 0.0), np.maximum(context_blocks - reach, 0.0)
        blocks = query_blocks * context_blocks + query_blocks * (query_blocks + 1) / 2
        blocks = np.where(over > 0, blocks - (over * (over + 1) - first * (first + 1)) / 2, blocks)
        longest = np.minimum(widest, reach)
    else:
        blocks, longest = query_blocks * widest, widest
    pairs = blocks * (block * block) * sequences * heads
    num_blocks: Any = sequences * heads * query_blocks
    if choice.packs:
        group = heads / work.num_kv_heads
        packed = sequences * work.num_kv_heads * np.ceil(work.query_tokens * group / block)
        num_blocks = np.minimum(num_blocks, packed)
    dims = work.qk_dim + work.v_dim
    pair_compute_s = 2.0 * dims / (p.compute_fraction * machine.flops_per_s)
    pair_exponential_s = 1.0 / (p.exponential_fraction * machine.exponentials_per_s)
    pair_s = smooth_max(pair_compute_s, pair_exponential_s, p.overlap_power)
    imbalance = p.longest_fraction * machine.num_units * longest * (block * block)
    seen = work.query_tokens + work.context_tokens
    io_bytes = work.query_tokens * heads * dims * work.query_element_bytes
    # new keys and values are read as computed and written to the cache; cached ones are read
    kv_width = work.num_kv_heads * dims
    io_bytes = io_bytes + kv_width * (
        work.query_tokens * (work.query_element_bytes + work.kv_element_bytes)
        + np.minimum(work.context_tokens, work.window) * work.kv_element_bytes
    )
    memory_s = sequences * io_bytes / (p.stream_fraction * machine.bandwidth_bytes_per_s)
    seconds = p.launch_s + np.maximum(num_blocks / machine.num_units, 1.0) * p.block_s
    seconds = seconds + (pairs + imbalance) * pair_s + memory_s
    return Parts(np.where(sequences * work.query_tokens * seen > 0, seconds, 0.0), memory_s, pairs * pair_s)
