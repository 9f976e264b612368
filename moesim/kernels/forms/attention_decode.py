r"""Time of attention of one query token a sequence against its cache; absorbed latent attention alike.

.. math::

   T = t_0 + t_\text{block} \frac{n}{\text{units}} + (T_\text{mem}^p + T_\text{mma}^p)^{1/p}
       + [\text{splits} > 1]\, t_\text{split} + \frac{\text{io}}{e_R \beta}

A sequence's cache is split over blocks until the units are busy: :math:`n` blocks, of which
:math:`\min(n, 2\,\text{units})` run at once; few blocks cannot draw the full bandwidth. A share of a
small cache comes from the last-level cache when it was read just before; a serving step finds it cold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.kernels.forms.base import Machine, Parts, cached_share, free, smooth_max
from moesim.model.ops import Quantity
from moesim.units import US

RUNNING_BLOCKS = 2
"""Blocks that a unit holds at once."""


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """Shapes as in :class:`~moesim.model.ops.AttentionDecode`, windows already applied.

    Attributes
    ----------
    attended_tokens : float or ndarray
        Tokens that each sequence's query attends to. [tokens]
    kv_bytes_per_token : float or ndarray
        Cache bytes of one attended token on this rank, all heads. [bytes]
    is_cold : bool
        Nothing of the cache is in the last-level cache.
    """

    num_sequences: Quantity
    attended_tokens: Quantity
    query_tokens: Quantity
    num_heads: Quantity
    num_kv_heads: Quantity
    qk_dim: Quantity
    v_dim: Quantity
    kv_bytes_per_token: Quantity
    query_element_bytes: float
    is_cold: bool = False


@dataclass(frozen=True, slots=True)
class DecodeParameters:
    """Fitted numbers: times in seconds, others are ratios to the datasheet."""

    launch_s: float = free(8 * US, 0.1 * US, 1000 * US)
    block_s: float = free(2 * US, 0.001 * US, 300 * US)
    bandwidth_fraction: float = free(0.8, 0.05, 1.3)
    unit_bandwidth_ratio: float = free(1.6, 0.1, 30.0)
    cache_speed_ratio: float = free(3.0, 1.0, 12.0)
    cache_ratio: float = free(0.7, 0.05, 4.0)
    compute_fraction: float = free(0.5, 0.01, 3.0)
    overlap_power: float = free(3.0, 1.02, 12.0)
    split_s: float = free(1 * US, 0.001 * US, 100 * US)
    stream_fraction: float = free(1.0, 0.01, 10.0)


@dataclass(frozen=True, slots=True)
class DecodeChoice:
    """How the library cuts the work.

    Attributes
    ----------
    splits_per_unit : int
        Blocks wanted for each unit.
    head_pad, head_block : int
        Query heads of a key head are padded to a multiple of the first and cut into blocks of the second.
    chunk_tokens : int
        Least cached tokens of a block.
    splits : bool
        Whether a sequence's cache is split at all.
    """

    splits_per_unit: int = 1
    head_pad: int = 16
    head_block: int = 64
    chunk_tokens: int = 64
    splits: bool = True


def free_parameters(choice: DecodeChoice) -> tuple[str, ...]:
    """Parameters that matter under a choice."""
    return tuple(n for n in DecodeParameters.__dataclass_fields__ if choice.splits or n != "split_s")


def decode_parts(work: DecodeWork, machine: Machine, p: DecodeParameters, choice: DecodeChoice) -> Parts:
    """Time by the formula of this module; 0 where there is no sequence."""
    bandwidth, units = machine.bandwidth_bytes_per_s, machine.num_units
    sequences, attended = work.num_sequences, work.attended_tokens
    group = work.num_heads / work.num_kv_heads * work.query_tokens
    padded = np.ceil(group / choice.head_pad) * choice.head_pad
    wanted = np.maximum(sequences * work.num_kv_heads * np.maximum(padded / choice.head_block, 1.0), 1.0)
    splits: Any = 1.0
    if choice.splits:
        most = np.ceil(attended / choice.chunk_tokens)
        splits = np.maximum(np.minimum(np.floor(choice.splits_per_unit * units / wanted), most), 1.0)
    blocks = wanted * splits
    running = np.minimum(blocks, RUNNING_BLOCKS * units) * (p.unit_bandwidth_ratio / units)
    kv_bytes = sequences * attended * work.kv_bytes_per_token
    memory_s: Any = kv_bytes / (bandwidth * np.minimum(p.bandwidth_fraction, running))
    if not work.is_cold:
        share = cached_share(kv_bytes, p.cache_ratio * machine.cache_bytes)
        cached_s = kv_bytes / (bandwidth * np.minimum(p.cache_speed_ratio, running))
        memory_s = memory_s * (1 - share) + cached_s * share
    dims = work.qk_dim + work.v_dim
    flops = 2.0 * dims * sequences * work.num_kv_heads * padded * attended
    busy_fraction = np.minimum(blocks / units, 1.0)
    compute_s = flops / (p.compute_fraction * machine.flops_per_s * busy_fraction)
    io_bytes = sequences * work.query_tokens * work.num_heads * dims * work.query_element_bytes
    seconds = p.launch_s + p.block_s * blocks / units + smooth_max(memory_s, compute_s, p.overlap_power)
    seconds = seconds + p.split_s * np.greater(splits, 1.0) + io_bytes / (p.stream_fraction * bandwidth)
    return Parts(np.where(np.greater(sequences, 0), seconds, 0.0), memory_s, compute_s)
