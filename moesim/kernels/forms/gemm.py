r"""Time of a dense matrix product.

.. math::

   T = t_0 + \min_{tile, s} \Bigl[ \bigl(T_\text{mma}^p + T_\text{mem}^p\bigr)^{1/p}
       + \text{waves}\; t_\text{tile} + [s>1]\,(t_\text{split} + 8 M N s / (3\beta)) \Bigr] + T_\text{quant}

with :math:`T_\text{mma} = \text{waves}\cdot 2 b_m b_n k_s / (e_c\, g\, \pi/\text{units})` and
:math:`T_\text{mem}` the bytes of weights, inputs and results over :math:`e_b \beta`. The minimum over
tile shapes and splits of the inner sum stands for the library's own choice. On a machine without
tiles the arithmetic takes :math:`2 (M + m_0)(N + n_0) K / (e_c \pi)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from moesim.evidence import Seconds
from moesim.kernels.forms.base import Machine, Parts, cached_share, free, smooth_max
from moesim.model.ops import Quantity
from moesim.units import US

TILES = ((128, 64), (128, 128), (128, 256), (256, 128), (64, 256), (64, 64))
SPLITS = (1, 2, 4, 8)
LEAST_SPLIT_K = 64
PARTIAL_BYTES = 8
"""A partial sum is written and read as fp32."""
CACHE_SPEED = 3.0
"""Bandwidth of the last-level cache over that of main memory, for partial sums."""
QUANTISED_BYTES = 3
"""The kernel that quantises inputs reads 16 bits and writes 8 for each."""

Tiling: TypeAlias = Literal["best", "by_rows", "smooth"]


@dataclass(frozen=True, slots=True)
class GemmWork:
    """``count`` products of ``rows x k`` by ``k x n``; bytes of one number of weights and of inputs."""

    rows: Quantity
    n: Quantity
    k: Quantity
    count: Quantity
    weight_element_bytes: float
    input_element_bytes: float
    output_element_bytes: float


@dataclass(frozen=True, slots=True)
class GemmParameters:
    """Fitted numbers: times in seconds, others are ratios to the datasheet."""

    launch_s: float = free(2.5 * US, 0.1 * US, 300 * US)
    compute_fraction: float = free(0.8, 0.02, 3.0)
    bandwidth_fraction: float = free(0.8, 0.05, 1.3)
    tile_start_s: float = free(0.3 * US, 0.001 * US, 20 * US)
    tile_half: float = free(20.0, 0.1, 300.0)
    split_s: float = free(2 * US, 0.01 * US, 30 * US)
    overlap_power: float = free(3.0, 1.02, 12.0)
    quantise_s: float = free(1.5 * US, 0.01 * US, 100 * US)
    quantise_fraction: float = free(0.6, 0.02, 3.0)
    quantise_row_s: float = free(0.0001 * US, 1e-07 * US, 0.1 * US)
    half_rows: float = free(2.0, 0.01, 64.0)
    half_columns: float = free(8.0, 0.01, 512.0)
    cache_ratio: float = free(0.7, 0.05, 4.0)
    cache_speed_ratio: float = free(3.0, 1.0, 20.0)
    host_s: float = free(50 * US, 1 * US, 1000 * US)


@dataclass(frozen=True, slots=True)
class GemmChoice:
    """Which terms apply.

    Attributes
    ----------
    tiling : str
        ``best``: the least time over tiles and splits; ``by_rows``: 64 or 128 rows by 128, no split;
        ``smooth``: no tiles (a CPU).
    quantises : bool
        Inputs are quantised on the fly by a kernel of their own.
    cached : bool
        Small working sets come from the cache.
    eager : bool
        Timed with the host's launch on the clock, which hides kernels shorter than it.
    """

    tiling: Tiling = "best"
    quantises: bool = False
    cached: bool = False
    eager: bool = False


def free_parameters(choice: GemmChoice) -> tuple[str, ...]:
    """Parameters that matter under a choice."""
    names = ["launch_s", "compute_fraction", "bandwidth_fraction", "overlap_power"]
    tiles = {"best": ["tile_start_s", "tile_half", "split_s"], "by_rows": ["tile_start_s"]}
    names += tiles.get(choice.tiling, ["half_rows", "half_columns"])
    if choice.quantises:
        names += ["quantise_s", "quantise_fraction", "quantise_row_s"]
    if choice.cached:
        names += ["cache_ratio", "cache_speed_ratio"]
    return (*names, "host_s") if choice.eager else tuple(names)


def gemm_parts(work: GemmWork, machine: Machine, p: GemmParameters, choice: GemmChoice) -> Parts:
    """Time by the formula of this module; 0 where there are no rows."""
    rows = np.asarray(work.rows, dtype=np.float64)
    weights = work.n * work.k * work.count * work.weight_element_bytes
    moved = weights + work.count * rows * (
        work.k * work.input_element_bytes + work.n * work.output_element_bytes
    )
    memory_s: Any = moved / (p.bandwidth_fraction * machine.bandwidth_bytes_per_s)
    if choice.cached:
        share = cached_share(moved, p.cache_ratio * machine.cache_bytes)
        memory_s = memory_s * (1 - share + share / p.cache_speed_ratio)
    flops = 2.0 * rows * work.n * work.k * work.count
    compute_s = flops / (p.compute_fraction * machine.flops_per_s)
    if choice.tiling == "smooth":
        padded = 2.0 * (rows + p.half_rows) * (work.n + p.half_columns) * work.k * work.count
        busy = smooth_max(padded / (p.compute_fraction * machine.flops_per_s), memory_s, p.overlap_power)
    elif choice.tiling == "by_rows":
        height = np.where(rows <= 64, 64.0, 128.0)
        busy = _tiled_s(work, rows, (height, 128.0), 1, memory_s, machine, p)
    else:
        options = (
            _tiled_s(work, rows, tile, split, memory_s, machine, p) for tile in TILES for split in SPLITS
        )
        busy = next(options)
        for option in options:
            busy = np.minimum(busy, option)
    seconds = p.launch_s + busy
    if choice.quantises:
        read_s = QUANTISED_BYTES * rows * work.k / (p.quantise_fraction * machine.bandwidth_bytes_per_s)
        seconds = seconds + p.quantise_s + read_s + p.quantise_row_s * rows
    if choice.eager:
        seconds = smooth_max(seconds, p.host_s, 8.0)
    return Parts(np.where(rows > 0, seconds, 0.0), memory_s, compute_s)


def _tiled_s(
    work: GemmWork,
    rows: Any,
    tile: tuple[Any, float],
    split: int,
    memory_s: Seconds,
    machine: Machine,
    p: GemmParameters,
) -> Any:
    """Time with one tile shape and split of the inner sum, without launch."""
    height, width = tile
    part_k = np.maximum(work.k / split, LEAST_SPLIT_K) if split > 1 else work.k
    tiles = np.ceil(rows / height) * (np.ceil(work.n / width) * work.count)
    if split > 1:
        tiles = tiles * np.ceil(work.k / part_k)
    waves = np.ceil(tiles / machine.num_units)
    feed = (1 + p.tile_half * (1 / 128 + 1 / 256)) / (1 + p.tile_half * (1 / height + 1 / width))
    unit_flops_per_s = p.compute_fraction * machine.flops_per_s / machine.num_units
    multiply_s = waves * (2.0 * height * width / (feed * unit_flops_per_s) * part_k)
    total = smooth_max(multiply_s, memory_s, p.overlap_power) + waves * p.tile_start_s
    if split > 1:
        partial = PARTIAL_BYTES * split / (CACHE_SPEED * machine.bandwidth_bytes_per_s)
        total = total + p.split_s + partial * work.n * work.count * rows
    return total
