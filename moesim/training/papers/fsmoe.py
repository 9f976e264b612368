"""FSMoE: an expert layer on three resources, its four regimes, and gradients in the gaps (arXiv:2501.10714).

Between nodes run the exchanges of tokens and the all-reduce of gradients, inside a node the all-gather and
reduce-scatter of expert shards, on the device the experts. Every task of a chunk takes
``start + size / degree * rate``. All functions are vectorised over layers: sizes and times are ``(layer,)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
BACKWARD_RATIO = 2.0
"""Work of experts backward over forward: two products for each."""


@dataclass(frozen=True, slots=True)
class Linear:
    """Time of a task: ``start_s + size * s_per_unit``. [s, s/unit]"""

    start_s: float
    s_per_unit: float

    def seconds(self, size: Floats | float, degree: int = 1, times: float = 1.0) -> Floats:
        """Of one of ``degree`` chunks of ``size``, ``times`` tasks in a row. [s]"""
        return np.asarray(times * (self.start_s + np.asarray(size, np.float64) / degree * self.s_per_unit))


@dataclass(frozen=True, slots=True)
class Machine:
    """Constants of a testbed: products [FLOP], and collectives [elements]."""

    gemm: Linear
    all_to_all: Linear
    all_gather: Linear
    reduce_scatter: Linear
    all_reduce: Linear


@dataclass(frozen=True)
class Layers:
    """Sizes of layers, ``(layer,)`` each.

    Attributes
    ----------
    exchanged : ndarray
        Elements that one exchange moves; also what is gathered and scattered inside a node. [elements]
    gemm_flops, num_gemms : ndarray
        Of one product of the experts, and how many they have. [FLOP, -]
    dense_s, dense_backward_s : ndarray
        Everything else of the layer. [s]
    gradients : ndarray
        Elements that are all-reduced between nodes. [elements]
    """

    exchanged: Floats
    gemm_flops: Floats
    num_gemms: Floats
    dense_s: Floats
    dense_backward_s: Floats
    gradients: Floats


@dataclass(frozen=True)
class Chunk:
    """Times of the tasks of one chunk, ``(layer,)`` each. [s]"""

    degree: int
    exchange: Floats
    gather: Floats
    scatter: Floats
    experts: Floats

    @classmethod
    def of(cls, layers: Layers, machine: Machine, degree: int, *, backward: bool) -> Chunk:
        """Of a pass cut into ``degree`` chunks."""
        times = layers.num_gemms * (BACKWARD_RATIO if backward else 1.0)
        return cls(
            degree,
            machine.all_to_all.seconds(layers.exchanged, degree),
            machine.all_gather.seconds(layers.exchanged, degree),
            machine.reduce_scatter.seconds(layers.exchanged, degree),
            np.asarray(times * machine.gemm.seconds(layers.gemm_flops, degree)),
        )

    @property
    def inside(self) -> Floats:
        """Gather and scatter of a chunk. [s]"""
        return self.gather + self.scatter


def four_cases(chunk: Chunk, reduce_s: Floats | float = 0.0) -> Floats:
    """Time of a pass whose three resources overlap, equations 2 to 5. [s]

    The regime is the one whose conditions (Q1 to Q7) hold; where gradients fill the gaps and more, the links
    between nodes decide.
    """
    r, a, e, inside = chunk.degree, chunk.exchange, chunk.experts, chunk.inside
    gap = idle_s(chunk)
    by_links = 2 * r * a + reduce_s
    by_experts = 2 * a + inside + r * e
    by_exchanges = 2 * r * a + inside
    by_node = 2 * a + r * inside
    q1, q2, q3 = _regime(chunk)
    case = np.where(q1, np.where(q2, by_experts, by_exchanges), np.where(q3, by_experts, by_node))
    return np.asarray(np.where(np.asarray(reduce_s) > gap, by_links, case))


def idle_s(chunk: Chunk) -> Floats:
    """Time in a pass when the links between nodes have nothing to do: room for gradients. [s]"""
    r, a, inside = chunk.degree, chunk.exchange, chunk.inside
    q1, q2, q3 = _regime(chunk)
    experts = r * chunk.experts + inside - 2 * (r - 1) * a
    node = r * inside - 2 * (r - 1) * a
    return np.asarray(np.where(q1, np.where(q2, experts, inside), np.where(q3, experts, node)))


def _regime(chunk: Chunk) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    r, a, e = chunk.degree, chunk.exchange, chunk.experts
    return a > chunk.gather, r * e > 2 * (r - 1) * a, r * e > (r - 1) * chunk.inside


def one_channel(chunk: Chunk) -> Floats:
    """Time of a pass whose communication shares one channel beside the experts (Tutel with PipeMoE). [s]

    The channel carries dispatch and gather of all chunks, then scatter and combine of each once its experts
    are done.
    """
    into, back = chunk.exchange + chunk.gather, chunk.scatter + chunk.exchange
    channel = np.zeros_like(into)
    device = np.zeros_like(into)
    ends = []
    for _ in range(chunk.degree):
        channel = channel + into
        device = np.maximum(device, channel) + chunk.experts
        ends.append(device)
    for end in ends:
        channel = np.maximum(channel, end) + back
    return channel


@dataclass(frozen=True)
class Schedules:
    """Step time of each schedule, ``(layer,)``. [s]"""

    tutel: Floats
    tutel_improved: Floats
    no_inter_intra: Floats
    fsmoe: Floats

    def speedups(self) -> Mapping[str, float]:
        """Mean over layers of Tutel's time over each schedule's. [-]"""
        rivals = {
            "Tutel-Improved": self.tutel_improved,
            "FSMoE-No-IIO": self.no_inter_intra,
            "FSMoE": self.fsmoe,
        }
        return {name: float(np.mean(self.tutel / seconds)) for name, seconds in rivals.items()}


def schedules(layers: Layers, machine: Machine, degrees: Sequence[int]) -> Schedules:
    """Forward and backward pass of each layer under four schedules.

    Tutel takes one degree for both passes and reduces gradients at the end; Tutel-Improved reduces them
    beside the dense part; FSMoE-No-IIO takes a degree for each pass and puts what is left into the expert
    part, FSMoE in addition lets the two networks run beside one another.
    """
    reduce_s = machine.all_reduce.seconds(layers.gradients)
    left_s = np.maximum(reduce_s - layers.dense_backward_s, 0.0)
    dense_s = layers.dense_s + layers.dense_backward_s
    passes = {b: [Chunk.of(layers, machine, r, backward=b) for r in degrees] for b in (False, True)}
    shared = [[one_channel(chunk) for chunk in passes[b]] for b in (False, True)]
    tutel = np.min([there + back for there, back in zip(*shared, strict=True)], axis=0)
    # on one channel gradients find room while the experts alone are busy
    idle = [
        np.maximum(time - chunk.degree * (2 * chunk.exchange + chunk.inside), 0.0)
        for time, chunk in zip(shared[1], passes[True], strict=True)
    ]
    own = np.min(
        [time + np.maximum(left_s - free, 0.0) for time, free in zip(shared[1], idle, strict=True)], axis=0
    )
    beside = np.min([four_cases(chunk) for chunk in passes[False]], axis=0)
    filled = np.min([four_cases(chunk, left_s) for chunk in passes[True]], axis=0)
    return Schedules(
        dense_s + tutel + reduce_s,
        dense_s + tutel + left_s,
        dense_s + np.min(shared[0], axis=0) + own,
        dense_s + beside + filled,
    )
