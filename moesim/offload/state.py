"""What changes during a run, and what was asked for."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moesim.memory.caches import CachePolicy, ExpertCache
from moesim.memory.demand import Demand
from moesim.offload.costs import Costs, Unit
from moesim.offload.executors import Executor
from moesim.offload.lanes import Lanes, Mark
from moesim.offload.prefetchers import Predictor, Prefetcher

_REMEMBERED = 16
"""Most experts of a layer whose times are remembered by their tokens."""


@dataclass(frozen=True, eq=False)
class Offload:
    """How experts are kept near and computed.

    Attributes
    ----------
    cache : CachePolicy
        Of the device's cache.
    slots : ndarray of int64, ``(layers,)``
        Experts that the device holds of each layer; their sum is the size of a pool.
    executor, prefetcher
        Who computes; what is fetched ahead.
    pooled : bool
        One cache for all layers.
    host_cache : CachePolicy, optional
        Of the host's cache where the host holds only some experts and the disk the rest.
    host_slots : ndarray of int64, ``(layers,)``, optional
        Experts that the host holds of each layer.
    cxl_slots : ndarray of int64, ``(layers,)``, optional
        Experts of each layer that host memory lacks and memory behind it holds, most used first; the
        disk holds the rest. None where that memory holds them all.
    filled : bool
        A device cache that changes begins with the experts used most in earlier traffic, not empty.
    buffer : int
        Experts that the device can receive ahead beside its cache; an expert leaves the buffer when its
        layer is through. [experts]
    synchronous : bool
        The device does nothing while a layer's copies are under way: a loop that loads, then computes.
    """

    cache: CachePolicy
    slots: NDArray[np.int64]
    executor: Executor
    prefetcher: Prefetcher
    pooled: bool = False
    host_cache: CachePolicy | None = None
    host_slots: NDArray[np.int64] | None = None
    synchronous: bool = False
    cxl_slots: NDArray[np.int64] | None = None
    filled: bool = False
    buffer: int = 0


@dataclass(slots=True)
class Tally:
    """What happened to experts. [experts]

    ``lookups`` and ``hits`` are of the device's cache, a hit being an expert that is there or on its
    way when its gate asks; ``useful_prefetches`` were used before they were evicted; ``moved`` is what
    crossed the link, parts of experts counted as such.
    """

    lookups: int = 0
    hits: int = 0
    loads: int = 0
    low_loads: int = 0
    skipped: int = 0
    on_cpu: int = 0
    on_pim: int = 0
    prefetches: int = 0
    useful_prefetches: int = 0
    disk_reads: int = 0
    host_lookups: int = 0
    far_reads: int = 0
    moved: float = 0.0


@dataclass(slots=True, eq=False)
class Ordered:
    """A piece of a copy ordered ahead that has not begun.

    ``keep`` are the other experts wanted for its layer.
    """

    layer: int
    expert: int
    keep: NDArray[np.int32]
    issued: Mark
    piece: int = 0


@dataclass(slots=True, eq=False)
class Buffer:
    """Room on the device beside the cache, for experts that arrive ahead of their layer.

    Attributes
    ----------
    room : deque of Mark
        Since when each free place is free, first come first.
    held : dict
        MoE layer of every expert (row, expert) in the buffer.
    """

    room: deque[Mark]
    held: dict[tuple[int, int], int] = field(default_factory=dict)

    def put(self, key: tuple[int, int], index: int) -> None:
        """An expert of MoE layer ``index`` takes the place that is free longest."""
        self.room.popleft()
        self.held[key] = index

    def taken(self, index: int) -> list[tuple[int, int]]:
        """What is held for MoE layer ``index``."""
        return [key for key, layer in self.held.items() if layer == index]


@dataclass(slots=True, eq=False)
class State:
    """Caches, clocks, copies under way.

    Attributes
    ----------
    ordered : deque of Ordered
        Prefetches that wait for an idle link.
    ready : dict
        End of the last copy of a (row, expert) of the device's cache.
    unused : set
        Prefetched experts (row, expert) that nobody has used.
    lacking : dict
        Pieces that a cached (row, expert) lacks, where it lacks some: the last ones.
    far : ndarray of bool, ``(layers, experts)``, optional
        Experts that memory behind the host's holds; None where there is no such memory.
    late : Mark or None
        End of deferred CPU experts of the layer before.
    buffer : Buffer
        What has arrived ahead beside the cache.
    known_times : dict
        Seconds by unit and tokens of few experts, which come again and again in decode.
    """

    demand: Demand
    costs: Costs
    offload: Offload
    cache: ExpertCache
    host: ExpertCache | None
    predictor: Predictor
    lanes: Lanes = field(default_factory=Lanes)
    tally: Tally = field(default_factory=Tally)
    ordered: deque[Ordered] = field(default_factory=deque)
    ready: dict[tuple[int, int], Mark] = field(default_factory=dict)
    unused: set[tuple[int, int]] = field(default_factory=set)
    lacking: dict[tuple[int, int], int] = field(default_factory=dict)
    far: NDArray[np.bool_] | None = None
    late: Mark | None = None
    buffer: Buffer = field(init=False)
    known_times: dict[tuple[str, bytes], NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """An empty buffer of the asked size."""
        self.buffer = Buffer(deque([Mark(0)] * self.offload.buffer))

    def times(self, lane: str, unit: Unit | None, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Seconds of experts by their tokens on a unit, infinite without one; not to be written to."""
        if tokens.size > _REMEMBERED:
            return np.full(tokens.size, np.inf) if unit is None else unit.seconds(tokens)
        key = (lane, tokens.tobytes())
        known = self.known_times.get(key)
        if known is None:
            known = np.full(tokens.size, np.inf) if unit is None else unit.seconds(tokens)
            self.known_times[key] = known
        return known

    def near(self, key: tuple[int, int]) -> bool:
        """Whether the device holds an expert, or it is on its way there."""
        return bool(self.cache.slot_of[key] >= 0 or key in self.buffer.held)

    def place(self, index: int) -> tuple[int, int]:
        """Row of a MoE layer in the device's cache, and what is added to its expert numbers."""
        return (0, index * self.demand.num_experts) if self.offload.pooled else (index, 0)
