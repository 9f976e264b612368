r"""Time of a grouped expert block from its histogram of tokens per expert.

.. math::

   T = t_0 + t_e E + t_r T k + \frac{4 T H}{e_T \beta}
       + \frac{R'\,[H (a + 2) + 2 (g + 1) I]}{e_R \beta} + T_\text{up} + T_\text{down}

Each grouped product takes :math:`(T_\text{mma}^p + T_\text{mem}^p)^{1/p}`: only the weights of
touched experts are read, and each expert's rows are padded to whole tiles:
:math:`T_\text{mma} = \min_b w' [\,2 b \cdot 128 K / (e_c u(b) \pi / \text{units}) + t_\text{tile}]` with
:math:`w = \sum_e \lceil c_e / b \rceil \lceil N / 128 \rceil / \text{units}` waves, the last of which
counts as 70 % of a full one. Without tiles (a CPU) :math:`2 N K \sum_e (c_e + m_0) / (e_c \pi)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from moesim.kernels.forms.base import Machine, Parts, cached_share, free, smooth_max
from moesim.model.ops import Quantity
from moesim.units import US

TILE_WIDTH = 128
LAST_WAVE = 0.7
"""What a partly filled last wave costs of a full one."""
WIDE_TILE = 128
SWITCH_TILES = (16, 64)
"""Heights below and above the switch of kernels with two fixed configurations."""

Tiling: TypeAlias = Literal["best", "switch", "smooth"]


@dataclass(frozen=True, slots=True)
class ExpertWork:
    """Histogram and shapes, as the columns of family ``moe``; bytes of one number."""

    tokens: Quantity
    all_rows: Quantity
    rows: Quantity
    touched: Quantity
    padded_rows: Mapping[int, Quantity]
    num_local_experts: Quantity
    hidden: Quantity
    width: Quantity
    num_up_matrices: Quantity
    weight_element_bytes: float
    input_element_bytes: float


@dataclass(frozen=True, slots=True)
class ExpertParameters:
    """Fitted numbers: times in seconds, others are ratios to the datasheet."""

    launch_s: float = free(15 * US, 0.1 * US, 1000 * US)
    expert_s: float = free(0.03 * US, 1e-05 * US, 10 * US)
    touched_s: float = free(40 * US, 0.001 * US, 1000 * US)
    row_s: float = free(1e-05 * US, 1e-08 * US, 0.01 * US)
    compute_fraction: float = free(0.6, 0.02, 3.0)
    bandwidth_fraction: float = free(0.8, 0.05, 1.3)
    tile_half: float = free(20.0, 0.1, 300.0)
    tile_start_s: float = free(0.5 * US, 0.0001 * US, 30 * US)
    overlap_power: float = free(2.0, 1.02, 12.0)
    token_fraction: float = free(0.5, 0.01, 20.0)
    stream_fraction: float = free(0.5, 0.02, 10.0)
    few_compute_ratio: float = free(1.0, 0.1, 10.0)
    few_bandwidth_ratio: float = free(1.0, 0.3, 3.0)
    half_rows: float = free(1.0, 0.01, 64.0)
    cache_ratio: float = free(0.7, 0.05, 4.0)
    cache_speed_ratio: float = free(3.0, 1.0, 20.0)


@dataclass(frozen=True, slots=True)
class ExpertChoice:
    """Which terms apply.

    Attributes
    ----------
    tiling : str
        ``best``: the least time over tile heights; ``switch``: two fixed configurations, below and
        above as many tokens as local experts; ``smooth``: no tiles (a CPU).
    streams_all_rows : bool
        Element-wise kernels run over the rows of remote experts too.
    cached : bool
        Small working sets come from the cache.
    """

    tiling: Tiling = "best"
    streams_all_rows: bool = False
    cached: bool = False


def free_parameters(choice: ExpertChoice) -> tuple[str, ...]:
    """Parameters that matter under a choice."""
    names = ["launch_s", "row_s", "compute_fraction", "bandwidth_fraction", "overlap_power"]
    names += ["token_fraction", "stream_fraction"]
    if choice.tiling == "smooth":
        names += ["touched_s", "half_rows"]
    else:
        names += ["expert_s", "tile_half", "tile_start_s"]
    if choice.tiling == "switch":
        names += ["few_compute_ratio", "few_bandwidth_ratio"]
    return (*names, "cache_ratio", "cache_speed_ratio") if choice.cached else tuple(names)


def expert_parts(work: ExpertWork, machine: Machine, p: ExpertParameters, choice: ExpertChoice) -> Parts:
    """Time by the formula of this module; 0 where no expert has a row."""
    up_width = work.num_up_matrices * work.width
    few = np.less_equal(work.tokens, work.num_local_experts) if choice.tiling == "switch" else None
    up = _grouped(work, up_width, work.hidden, few, machine, p, choice)
    down = _grouped(work, work.hidden, work.width, few, machine, p, choice)
    bandwidth = machine.bandwidth_bytes_per_s
    streamed = work.all_rows if choice.streams_all_rows else work.rows
    row_bytes = work.hidden * (work.input_element_bytes + 2) + 2 * (up_width + work.width)
    stream_s = streamed * (row_bytes / (p.stream_fraction * bandwidth))
    token_s = work.tokens * (4.0 * work.hidden / (p.token_fraction * bandwidth)) + p.row_s * work.all_rows
    per_expert_s: Any = (
        p.touched_s * work.touched if choice.tiling == "smooth" else p.expert_s * work.num_local_experts
    )
    seconds = p.launch_s + per_expert_s + token_s + stream_s + up.seconds + down.seconds
    return Parts(
        np.where(np.greater(work.all_rows, 0), seconds, 0.0),
        up.memory_s + down.memory_s + stream_s + token_s,
        up.compute_s + down.compute_s,
    )


def _grouped(
    work: ExpertWork,
    n: Quantity,
    k: Quantity,
    few: Any,
    machine: Machine,
    p: ExpertParameters,
    choice: ExpertChoice,
) -> Parts:
    """Time of one grouped product, without launch."""
    bandwidth = p.bandwidth_fraction * machine.bandwidth_bytes_per_s
    compute: Any = p.compute_fraction * machine.flops_per_s
    moved = work.touched * (n * k * work.weight_element_bytes)
    moved = moved + work.rows * (k * work.input_element_bytes + 2 * n)
    memory_s: Any = moved / bandwidth
    if choice.cached:
        share = cached_share(moved, p.cache_ratio * machine.cache_bytes)
        memory_s = memory_s * (1 - share + share / p.cache_speed_ratio)
    if choice.tiling == "smooth":
        busy_s = (work.rows + p.half_rows * work.touched) * (2.0 * n * k / compute)
    elif choice.tiling == "best":
        options = [_tiled_s(work, n, k, height, machine, p) for height in sorted(work.padded_rows)]
        busy_s = options[0]
        for option in options[1:]:
            busy_s = np.minimum(busy_s, option)
    else:
        low, high = (_tiled_s(work, n, k, height, machine, p) for height in SWITCH_TILES)
        busy_s = np.where(few, low, high / p.few_compute_ratio)
        memory_s = np.where(few, memory_s, memory_s / p.few_bandwidth_ratio)
    total = smooth_max(busy_s, memory_s, p.overlap_power)
    return Parts(total, memory_s, work.rows * (2.0 * n * k / compute))


def _tiled_s(
    work: ExpertWork, n: Quantity, k: Quantity, height: int, machine: Machine, p: ExpertParameters
) -> Any:
    """Arithmetic of one grouped product in tiles of a height."""
    waves = work.padded_rows[height] * (np.ceil(n / TILE_WIDTH) / (height * machine.num_units))
    waves = LAST_WAVE * np.ceil(waves) + (1 - LAST_WAVE) * waves
    feed = (1 + p.tile_half / WIDE_TILE) / (1 + p.tile_half / height)
    unit_flops_per_s = p.compute_fraction * machine.flops_per_s / machine.num_units
    tile_s: Any = 2.0 * height * TILE_WIDTH * k / (feed * unit_flops_per_s) + p.tile_start_s
    return waves * tile_s
