"""How weights, gradients and optimizer states are kept: formats, shares, offload; bytes and traffic of each.

A parameter has *replicas*: the ranks that hold the same one. Dense parameters have ``dp * cp``, experts
``edp``. Sharding divides what is kept by their number:

===========  =========  =========  =======  ==================================================================
``sharding``  optimizer  gradients  weights  source
===========  =========  =========  =======  ==================================================================
``none``      whole      whole      whole
``zero1``     share      whole      whole    ZeRO, arXiv:1910.02054; Megatron-Core's distributed optimizer
``zero2``     share      share      whole    ZeRO
``zero3``     share      share      share    ZeRO; gathered layer by layer
``fsdp``      share      share      share    as ``zero3`` (PyTorch FSDP, arXiv:2304.11277)
``fssdp``     share      share      share    Hecate, arXiv:2502.02581: one owner an expert; loaded experts are
                                             materialised on more ranks for one iteration
===========  =========  =========  =======  ==================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.errors import InputError, Problem, did_you_mean
from moesim.model.dtypes import FORMATS, bytes_per_element

SHARED_OUT: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "zero1": frozenset({"optimizer"}),
    "zero2": frozenset({"optimizer", "gradients"}),
    "zero3": frozenset({"optimizer", "gradients", "weights"}),
    "fsdp": frozenset({"optimizer", "gradients", "weights"}),
    "fssdp": frozenset({"optimizer", "gradients", "weights"}),
}
"""What each sharding divides over the replicas."""

REMAINDER_BYTES = 2.0
"""Low half of an fp32 master; the high half is the bf16 parameter (Megatron-Core, store_param_remainders)."""

MASTERS = ("none", "remainder")


@dataclass(frozen=True, slots=True)
class States:
    """What is kept of each parameter.

    Attributes
    ----------
    sharding : str
        A key of :data:`SHARED_OUT`.
    parameters, gradients : str
        Formats of the parameters that are gathered and of the gradients that are summed and reduced.
    master : str
        Format of the optimizer's own copy of a parameter; ``none``; ``remainder``: the low half of fp32.
    moments : str
        Format of the optimizer's moments.
    num_moments : int
        2 for Adam, 1 for momentum or Muon. [-]
    offload_fraction : float
        Share of the optimizer (states and update) that lives in host memory. [-]
    materialised_experts : float
        Foreign experts that a rank holds in a layer, on average (Hecate). [-]
    rematerialise : bool
        These are dropped after a layer's forward pass and gathered again for its backward pass.
    """

    sharding: str = "zero1"
    parameters: str = "bf16"
    gradients: str = "fp32"
    master: str = "fp32"
    moments: str = "fp32"
    num_moments: int = 2
    offload_fraction: float = 0.0
    materialised_experts: float = 0.0
    rematerialise: bool = False

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise InputError(problems)

    @property
    def parameter_bytes(self) -> float:
        """Of a parameter as it is gathered. [bytes]"""
        return bytes_per_element(self.parameters)

    @property
    def gradient_bytes(self) -> float:
        """Of a gradient as it is reduced. [bytes]"""
        return bytes_per_element(self.gradients)

    @property
    def optimizer_bytes(self) -> float:
        """Master copy and moments of a parameter. [bytes]"""
        own = {"none": 0.0, "remainder": REMAINDER_BYTES}
        master = own[self.master] if self.master in own else bytes_per_element(self.master)
        return master + self.num_moments * bytes_per_element(self.moments)

    @property
    def update_bytes(self) -> float:
        """Traffic of one parameter's update: gradient and states read, the latter written. [bytes]"""
        return self.gradient_bytes + 2 * self.optimizer_bytes + self.parameter_bytes

    @property
    def sharded(self) -> bool:
        """Whether each replica updates its share only."""
        return "optimizer" in SHARED_OUT[self.sharding]

    def share(self, what: str, replicas: int) -> float:
        """Part of ``weights``, ``gradients`` or ``optimizer`` that one of ``replicas`` ranks keeps. [-]"""
        return 1.0 / replicas if what in SHARED_OUT[self.sharding] else 1.0


def _problems(states: States) -> list[Problem]:
    problems = []
    choices = {"sharding": list(SHARED_OUT), "master": [*FORMATS, *MASTERS]}
    choices |= dict.fromkeys(("parameters", "gradients", "moments"), list(FORMATS))
    for name, options in choices.items():
        got = getattr(states, name)
        if got not in options:
            accepted = f"one of {', '.join(options)}{did_you_mean(str(got), options)}"
            problems.append(Problem(f"states.{name}", f"got {got!r}; accepted: {accepted}"))
    if not 0 <= states.offload_fraction <= 1:
        text = f"got {states.offload_fraction}; accepted: between 0 and 1"
        problems.append(Problem("states.offload_fraction", text))
    if states.num_moments < 0:
        text = f"got {states.num_moments}; accepted: a whole number >= 0"
        problems.append(Problem("states.num_moments", text))
    if states.materialised_experts < 0:
        text = f"got {states.materialised_experts}; accepted: a number >= 0"
        problems.append(Problem("states.materialised_experts", text))
    return problems


@dataclass(frozen=True, slots=True)
class KeptBytes:
    """Bytes of one parameter on one of its replicas, averaged over what is sharded.

    Attributes
    ----------
    weights, gradients, optimizer : float
        On the device. [bytes]
    host : float
        In host memory. [bytes]
    """

    weights: float
    gradients: float
    optimizer: float
    host: float

    @property
    def device(self) -> float:
        """All of it on the device. [bytes]"""
        return self.weights + self.gradients + self.optimizer


def kept_bytes(states: States, replicas: int, compute_dtype: str = "") -> KeptBytes:
    """What one of ``replicas`` ranks keeps of a parameter.

    Parameters
    ----------
    states : States
    replicas : int
        Ranks that hold the same parameter. [-]
    compute_dtype : str
        Format that products read; where it is not that of the parameters, a copy in it is kept too.

    Examples
    --------
    Megatron's distributed optimizer, 6 + 12 / d bytes:

    >>> kept_bytes(States(), 4).device
    9.0
    """
    weights = states.parameter_bytes * states.share("weights", replicas)
    if compute_dtype not in ("", states.parameters):
        weights += bytes_per_element(compute_dtype)
    optimizer = states.optimizer_bytes * states.share("optimizer", replicas)
    return KeptBytes(
        weights,
        states.gradient_bytes * states.share("gradients", replicas),
        optimizer * (1 - states.offload_fraction),
        optimizer * states.offload_fraction,
    )


@dataclass(frozen=True, slots=True)
class StepTraffic:
    """How often a step moves all parameters of a replica group.

    Attributes
    ----------
    gathers, reductions : int
        All-gathers of parameters; reductions of gradients. [-]
    sharded : bool
        Reductions are reduce-scatters, else all-reduces.
    """

    gathers: int
    reductions: int
    sharded: bool


def step_traffic(states: States, num_microbatches: int = 1) -> StepTraffic:
    """Collectives of one step over the replicas of a parameter.

    Sharded gradients cannot be summed where they arise, so every microbatch is reduced; sharded weights are
    gathered for the forward and again for the backward pass of every microbatch. Otherwise gradients are
    reduced once, and parameters gathered once after a sharded update.
    """
    out = SHARED_OUT[states.sharding]
    gathers = 2 * num_microbatches if "weights" in out else int("optimizer" in out)
    reductions = num_microbatches if "gradients" in out else 1
    return StepTraffic(gathers, reductions, "optimizer" in out)


def update_s(states: States, parameters: float, memory_bytes_per_s: float) -> float:
    """Optimizer step on the device: bandwidth-bound passes over what one rank updates. [s]

    Parameters
    ----------
    parameters : float
        Parameters that this rank updates, the offloaded ones included. [-]
    memory_bytes_per_s : float
        Reached rate of device memory. [bytes/s]
    """
    return parameters * (1 - states.offload_fraction) * states.update_bytes / memory_bytes_per_s


@dataclass(frozen=True, slots=True)
class Host:
    """What an offloaded optimizer runs on, of one rank.

    Attributes
    ----------
    link_bytes_per_s : float
        Reached rate of one direction of the link. [bytes/s]
    dram_bytes_per_s : float
        This rank's share of host memory's reached rate. [bytes/s]
    flops_per_s : float
        This rank's share of the processor's fp32 rate. [FLOP/s]
    """

    link_bytes_per_s: float
    dram_bytes_per_s: float
    flops_per_s: float


ADAM_FLOPS = 15.0
"""Of one parameter: two moments (3 + 4), bias corrections (2), root, division, decay, step. [FLOP]"""


def offloaded_update_s(states: States, parameters: float, host: Host, *, overlapped: bool = False) -> float:
    """Optimizer step of the offloaded share: gradients down, update by the host, parameters up. [s]

    ZeRO-Offload (arXiv:2101.06840): the host's update is bound by its memory or its arithmetic.
    ``overlapped`` lets transfers of one bucket run under the update of another: the longer one counts.
    """
    moved = parameters * states.offload_fraction
    down = moved * states.gradient_bytes / host.link_bytes_per_s
    up = moved * states.parameter_bytes / host.link_bytes_per_s
    traffic_s = moved * states.update_bytes / host.dram_bytes_per_s
    work_s = max(traffic_s, moved * ADAM_FLOPS / host.flops_per_s)
    return max(down + up, work_s) if overlapped else down + work_s + up


@dataclass(frozen=True, slots=True)
class Tier:
    """Somewhere that a layer's parameters are fetched from while an earlier layer computes.

    Attributes
    ----------
    name : str
        ``ssd``, ``host``, ``ranks`` (slices that other ranks hold)...
    layer_bytes : ndarray, ``(layer,)``
        Fetched for each layer. [bytes]
    bytes_per_s : float
        Reached rate. [bytes/s]
    latency_s : float
        Before the first byte. [s]
    """

    name: str
    layer_bytes: NDArray[np.float64]
    bytes_per_s: float
    latency_s: float = 0.0

    @property
    def seconds(self) -> NDArray[np.float64]:
        """Of each layer's fetch, ``(layer,)``. [s]"""
        sizes = np.asarray(self.layer_bytes, dtype=np.float64)
        return np.where(sizes > 0, self.latency_s + sizes / self.bytes_per_s, 0.0)


def prefetched_s(compute_s: ArrayLike, tiers: Sequence[Tier], *, ahead: int = 1) -> float:
    """One pass over the layers with fetches under compute. [s]

    SE-MoE's two-dimensional prefetch (arXiv:2205.10034): sparse parameters come from the host or a disk
    while dense slices come from other ranks; each tier is a queue of its own, and a layer starts when the one
    before is through and all its fetches are there.

    Parameters
    ----------
    compute_s : ``(layer,)``
        Seconds of each layer's work. [s]
    tiers : sequence of Tier
    ahead : int
        Layers that may be fetched before they are needed; 0: fetched when needed. [-]
    """
    compute = np.asarray(compute_s, dtype=np.float64)
    fetched = np.zeros((len(tiers), compute.size))
    starts: list[float] = []
    clock = 0.0
    for layer in range(compute.size):
        # room for this layer is there once the layer `ahead` before it has begun
        free = clock if ahead == 0 else starts[layer - ahead] if layer >= ahead else 0.0
        for row, tier in enumerate(tiers):
            before = fetched[row, layer - 1] if layer else 0.0
            fetched[row, layer] = max(before, free) + tier.seconds[layer]
        clock = max(clock, *fetched[:, layer]) if tiers else clock
        starts.append(clock)
        clock += float(compute[layer])
    return clock
