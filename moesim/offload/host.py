"""The host of a node with tiers: CPU experts, memories, and what its links reach."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Estimate
from moesim.hardware.schema import Device, MemoryTier, Node
from moesim.kernels.cost import compute_dtype
from moesim.model.ops import GroupedExperts
from moesim.offload.costs import FarMemory, Pieces, Times, Unit
from moesim.offload.rates import Rates


@dataclass(frozen=True)
class HostWork:
    """What the engine's host adds and uses.

    Attributes
    ----------
    pass_s, layer_s : float
        Host time that the device waits for, a pass and a layer: eager launches, synchronisation. [s]
    expert_s : float
        Host time of every expert that the device computes: launches from a loop over experts. [s]
    cpu_threads : int, optional
        Threads of the CPU experts over all sockets; default all cores.
    sockets : int, optional
        Sockets in use; default all.
    pinned : bool
        Copies start from pinned host memory.
    numa : str
        Where the weights of a socket's threads lie: ``split`` (each expert cut over the sockets, all reads
        local), ``experts`` (whole experts in turn, each computed by its own socket), ``interleaved`` (pages
        in turn over the sockets, threads read both).
    attention : str
        Where decode attention over the cached tokens is computed: ``device``, ``cpu`` (the cache lies in
        host memory) or ``pim``.
    unit : str
        What one copy moves: an ``expert``, one of its ``matrices``, or a ``bit_plane`` (the first is the
        expert in low precision, the second what it lacks).
    low_fraction : float
        Bytes of an expert in low precision over those of the expert. [-]
    kernels : str
        Engine whose kernels the device runs, where there are measurements of several.
    """

    pass_s: float = 0.0
    layer_s: float = 0.0
    expert_s: float = 0.0
    cpu_threads: int | None = None
    sockets: int | None = None
    pinned: bool = True
    numa: str = "split"
    attention: str = "device"
    unit: str = "expert"
    low_fraction: float = 0.25
    kernels: str = "default"


def cpu_unit(
    node: Node, op: GroupedExperts, work: HostWork, rates: Rates, bytes_per_s: float | None = None
) -> Unit:
    """Experts on the host: a vector kernel at few tokens, then one on matrix tiles where there are some.

    At few tokens a core first has to unpack the weights of a compact format: slower than their bytes pass
    where cores are few. ``bytes_per_s``: of the memory that holds them; by default that of the sockets in
    use. With whole experts on sockets, the times are those of one socket.
    """
    host = node.host
    sockets = sockets_used(node, work)
    each = sockets if work.numa == "experts" else 1
    cores = host.cpu.num_units * sockets
    threads = min(work.cpu_threads or cores, cores)
    bandwidth = (dram_bytes_per_s(node, work, rates) if bytes_per_s is None else bytes_per_s) / each
    dtype = compute_dtype(op.weight_dtype, op.activation_dtype, host.cpu)
    has_tiles = dtype in host.cpu.peak_flops_per_s
    fraction = rates.cpu_tile_fraction if has_tiles else rates.cpu_vector_fraction
    share = sockets * threads / cores / each
    peak = host.cpu.dense_peak_flops_per_s(dtype) * fraction * share
    vector_peak = _vector_flops_per_s(host.cpu, op.weight_dtype, rates) * share
    many = roofline_times(op, peak, bandwidth, rates.cpu_expert_s)
    few = roofline_times(op, vector_peak, bandwidth, rates.cpu_expert_s)

    def times(tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.where(tokens <= rates.cpu_vector_max_tokens, few(tokens), many(tokens))

    first_s = rates.handover_s + threads * rates.handover_thread_s
    return Unit(times, Estimate(0.0, "cpu_moe", "assumed", rates.sigma), first_s)


def _vector_flops_per_s(cpu: Device, weight_dtype: str, rates: Rates) -> float:
    """What the vector units of one socket reach with weights of a format. [FLOP/s]"""
    weights = rates.cpu_weights_per_cycle.get(weight_dtype)
    if weights is None or cpu.clock_hz is None:
        return cpu.dense_peak_flops_per_s("fp32") * rates.cpu_vector_fraction
    return 2.0 * weights * cpu.clock_hz * cpu.num_units


def roofline_times(op: GroupedExperts, flops_per_s: float, bytes_per_s: float, start_s: float) -> Times:
    """Seconds of one expert by its tokens on a roofline with a start-up time."""
    weights = op.weight_bytes_per_expert
    per_token = 2.0 * op.weights_per_expert

    def times(tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(start_s + np.maximum(weights / bytes_per_s, tokens * (per_token / flops_per_s)))

    return times


def sockets_used(node: Node, work: HostWork) -> int:
    """Sockets that compute experts. [-]"""
    return min(work.sockets or node.host.num_sockets, node.host.num_sockets)


def dram_bytes_per_s(node: Node, work: HostWork, rates: Rates) -> float:
    """What CPU experts read from the memory of the sockets in use. [bytes/s]

    Threads that read pages of all sockets in turn get the local ones at the socket's own rate and the
    others at that of the link between sockets, one after the other.
    """
    host = node.host
    sockets = sockets_used(node, work)
    cores = host.cpu.num_units * sockets
    threads = min(work.cpu_threads or cores, cores)
    saturation = min(1.0, threads / (rates.cores_to_saturate_fraction * cores))
    one = host.dram.bandwidth_bytes_per_s / host.num_sockets * rates.cpu_bandwidth_fraction * saturation
    if work.numa != "interleaved" or sockets == 1:
        return sockets * one
    link = host.socket_link
    remote = one * rates.remote_fraction if link is None else min(one, link.bandwidth_bytes_per_s)
    away = 1 - 1 / sockets
    return sockets / ((1 - away) / one + away / remote)


def socket_memory(node: Node) -> Device:
    """The CPU of a node as one device: all sockets in use, their peaks and the memory of the node."""
    host = node.host
    cores = host.cpu.main_memory
    name = next(iter(host.cpu.memory))
    tier = MemoryTier(
        capacity_bytes=host.dram.capacity_bytes,
        bandwidth_bytes_per_s=host.dram.bandwidth_bytes_per_s,
        latency_s=cores.latency_s,
    )
    peaks = {dtype: peak * host.num_sockets for dtype, peak in host.cpu.peak_flops_per_s.items()}
    return host.cpu.model_copy(update={"memory": {name: tier}, "peak_flops_per_s": peaks})


def link_latency_s(node: Node) -> float:
    """Latency of a copy to the device. [s]"""
    link = node.host.pcie
    return node.host.dram.latency_s if link is None else link.latency_s


def copy_of(node: Node, size: float, work: HostWork, rates: Rates) -> Estimate:
    """One expert of ``size`` bytes from host memory to the device."""
    link = node.host.pcie
    # without a link the socket is the device: a copy is one memory reading the other
    bandwidth = node.host.dram.bandwidth_bytes_per_s / 2 if link is None else link.bandwidth_bytes_per_s
    rate = bandwidth * (1.0 if work.pinned else rates.pageable_fraction)
    return Estimate(link_latency_s(node) + size / rate, "host_copy", "assumed", rates.sigma / 2)


def pieces_of(op: GroupedExperts, work: HostWork, latency_s: float) -> Pieces:
    """How an expert is cut for its way to the device."""
    if work.unit == "matrices":
        count = op.num_up_matrices + 1
        return Pieces((1 / count,) * count, latency_s, computed_apart=True)
    if work.unit == "bit_planes":
        return Pieces((work.low_fraction, 1 - work.low_fraction), latency_s, planes=True)
    return Pieces()


def cxl_of(
    node: Node, op: GroupedExperts, size: float, copy: Estimate, work: HostWork, rates: Rates
) -> FarMemory | None:
    """Memory behind the host's: read at its own rate, copied from at the slower of it and the link."""
    tier = node.host.cxl
    if tier is None:
        return None
    read_s = tier.latency_s + size / tier.bandwidth_bytes_per_s
    return FarMemory(
        Estimate(read_s, "cxl", "assumed", rates.sigma / 2),
        Estimate(max(read_s, float(copy.seconds)), "cxl", "assumed", rates.sigma / 2),
        # whole experts on sockets share the one link to it
        cpu_unit(node, op, replace(work, numa="split"), rates, tier.bandwidth_bytes_per_s),
    )


def disk_of(node: Node, size: float) -> Estimate | None:
    """One expert of ``size`` bytes from the disk to host memory; None without a disk."""
    ssd = node.host.ssd
    if ssd is None:
        return None
    return Estimate(ssd.latency_s + size / ssd.bandwidth_bytes_per_s, "disk", "assumed", 0.3)
