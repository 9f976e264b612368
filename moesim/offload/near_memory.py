"""Near-memory compute beside a processor on the same stacks: which engine, and both together.

Duplex (arXiv 2409.01141): an operation runs where the larger of FLOP over peak and bytes over bandwidth
is smaller; experts are sorted by tokens, the busiest go to the processor, the rest to the near-memory
units, and both run together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.hardware.schema import Device


@dataclass(frozen=True, slots=True)
class Engine:
    """A roofline on a memory.

    Attributes
    ----------
    flops_per_s, bytes_per_s : float
        What it reaches. [FLOP/s], [bytes/s]
    read_j_per_byte, flop_j : float
        Energy of a byte read to it and of a FLOP. [J/byte], [J/FLOP]
    """

    flops_per_s: float
    bytes_per_s: float
    read_j_per_byte: float = 0.0
    flop_j: float = 0.0

    def seconds(self, flops: NDArray[np.float64], moved: NDArray[np.float64]) -> NDArray[np.float64]:
        """Time of operations, same shape. [s]"""
        return np.asarray(np.maximum(flops / self.flops_per_s, moved / self.bytes_per_s))

    def joules(self, flops: float, moved: float) -> float:
        """Energy of operations. [J]"""
        return flops * self.flop_j + moved * self.read_j_per_byte


def balance_flops_per_byte(device: Device, dtype: str) -> float:
    """Work per byte at which a device is bound by both peak and bandwidth. [FLOP/byte]"""
    return device.dense_peak_flops_per_s(dtype) / device.main_memory.bandwidth_bytes_per_s


def better_engine_s(flops: float, moved: float, processor: Engine, near: Engine | None) -> tuple[float, bool]:
    """Time of one operation on the engine that is sooner through, and whether that is the near one."""
    both = [
        float(engine.seconds(np.array(flops), np.array(moved))) if engine else float("inf")
        for engine in (processor, near)
    ]
    return min(both), both[1] < both[0]


def shared_experts_s(
    flops: NDArray[np.float64], moved: NDArray[np.float64], processor: Engine, near: Engine
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Experts split over both engines: time, and how many of the busiest the processor takes.

    Parameters
    ----------
    flops, moved : ndarray, ``(..., experts)``
        Work and weights of each expert; sorted here by falling work. [FLOP], [bytes]

    Returns
    -------
    ndarray, ``(...)``
        The best of all splits of the sorted list. [s]
    ndarray of int, ``(...)``
        Experts on the processor.
    """
    order = np.argsort(-flops, axis=-1, kind="stable")
    flops, moved = np.take_along_axis(flops, order, -1), np.take_along_axis(moved, order, -1)
    head = np.cumsum(processor.seconds(flops, moved), axis=-1)
    tail = np.cumsum(near.seconds(flops, moved)[..., ::-1], axis=-1)[..., ::-1]
    zeros = np.zeros((*flops.shape[:-1], 1))
    on_processor = np.concatenate((zeros, head), axis=-1)
    on_near = np.concatenate((tail, zeros), axis=-1)
    makespan = np.maximum(on_processor, on_near)
    best = makespan.argmin(axis=-1)
    return np.take_along_axis(makespan, best[..., None], -1)[..., 0], best


def reordered_s(
    *, tokens: int, top_k: int, layers: int, expert_bytes: float, compute_s: float, bytes_per_s: float
) -> tuple[float, float]:
    """Time of a model on a device whose buffer holds one expert: token by token, and expert by expert. [s]

    Token by token every token loads its experts anew and waits for them; expert by expert each used
    expert is loaded once a layer behind the work of the one before (M3ViT).
    """
    token_major = compute_s + tokens * top_k * layers * expert_bytes / bytes_per_s
    return token_major, compute_s
