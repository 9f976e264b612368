"""A model on a described node with tiers: the seconds that the driver needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.engine.program import Part
from moesim.errors import InputError, Problem
from moesim.evidence import Estimate
from moesim.hardware.schema import Device, Node
from moesim.kernels.choose import cost_of
from moesim.kernels.cost import FAMILY, KernelCost, compute_dtype
from moesim.kernels.histogram import ExpertLoad
from moesim.model.dtypes import Dtypes
from moesim.model.layer_ops import (
    attention_ops,
    dense_ffn_ops,
    embedding_ops,
    expert_op,
    head_ops,
    norm_op,
    router_ops,
    shared_expert_ops,
)
from moesim.model.ops import GroupedExperts, Op, Segment, Sharding
from moesim.model.parameters import expert_bytes
from moesim.model.spec import DenseFfn, LayerSpec, ModelSpec
from moesim.offload.costs import Costs, Times, Unit
from moesim.offload.rates import Rates, hybrid_rates

LABELS = {
    "gemm": "projections",
    "attention_prefill": "attention",
    "attention_decode": "attention",
    "elementwise": "norms and element-wise",
    "router": "router",
}


@dataclass(frozen=True)
class HostWork:
    """What the engine's host adds and uses.

    Attributes
    ----------
    pass_s, layer_s : float
        Host time that the device waits for, a pass and a layer: eager launches, synchronisation. [s]
    cpu_threads : int, optional
        Threads of the CPU experts over all sockets; default all cores.
    sockets : int, optional
        Sockets in use; default all.
    pinned : bool
        Copies start from pinned host memory.
    """

    pass_s: float = 0.0
    layer_s: float = 0.0
    cpu_threads: int | None = None
    sockets: int | None = None
    pinned: bool = True


def costs_of(
    model: ModelSpec,
    dtypes: Dtypes,
    node: Node,
    segments: Sequence[Segment],
    *,
    work: HostWork = HostWork(),
    most_tokens: int = 1,
    rates: Rates | None = None,
) -> Costs:
    """Durations of a pass of ``segments`` on one device of ``node``.

    Parameters
    ----------
    model : ModelSpec
        With routed experts.
    dtypes : Dtypes
        Formats.
    node : Node
        Its first device, its host, and its near-memory unit if it has one.
    segments : sequence of Segment
        What one pass works on.
    work : HostWork
        The engine's host.
    most_tokens : int
        Most tokens that an expert can get. [tokens]
    rates : Rates, optional
        What hosts and links reach; the shipped ones by default.

    Raises
    ------
    InputError
        A model without experts, or a node without a link between host and device.
    """
    if not model.moe_layers:
        raise InputError(
            [Problem("model", f"{model.name} has no routed experts; accepted: a model that has")]
        )
    rates = rates or hybrid_rates()
    cost = cost_of(node.device)
    host = Part("host", "idle", Estimate(work.layer_s, "launch", "assumed", rates.sigma))
    kinds = {
        layer: _layer_parts(cost, model, layer, segments, dtypes, host)
        for layer in dict.fromkeys(model.layers)
    }
    tokens = float(sum(float(s.tokens) for s in segments))
    sequences = float(sum(float(s.num_sequences) for s in segments))
    moe_layer = model.layers[model.moe_layers[0]]
    assert moe_layer.moe is not None
    op = expert_op(moe_layer.moe, model.hidden_size, moe_layer.moe.num_experts, dtypes)
    size = expert_bytes(moe_layer, model.hidden_size, dtypes)
    sharding = Sharding(dtypes=dtypes)
    per_pass = Part("host", "idle", Estimate(work.pass_s, "launch", "assumed", rates.sigma))
    dram = _dram_bytes_per_s(node, work, rates)
    copy = _copy(node, size, work, rates)
    link = size / float(copy.seconds) if copy.seconds else 0.0
    return Costs(
        before=[kinds[layer][0] for layer in model.layers],
        after=[kinds[layer][1] for layer in model.layers],
        moe_layers=model.moe_layers,
        first=[per_pass, *_parts(cost, embedding_ops(model, tokens, dtypes), "embedding")],
        last=_parts(cost, head_ops(model, sequences, sharding), "head"),
        device=device_unit(cost, op, most_tokens),
        copy=copy,
        cpu=cpu_unit(node, op, work, rates),
        pim=None if node.pim is None else pim_unit(node.pim, op),
        disk=_disk(node, size),
        cpu_slowdown=dram / max(dram - link, 0.2 * dram),
    )


def _layer_parts(
    cost: KernelCost,
    model: ModelSpec,
    layer: LayerSpec,
    segments: Sequence[Segment],
    dtypes: Dtypes,
    host: Part,
) -> tuple[list[Part], list[Part]]:
    """Up to the gate, and beside the experts."""
    hidden = model.hidden_size
    sharding = Sharding(dtypes=dtypes)
    tokens = float(sum(float(s.tokens) for s in segments))
    ops: list[Op] = attention_ops(layer, hidden, segments, sharding)
    ops.append(norm_op("ffn_norm", hidden, tokens, dtypes))
    if isinstance(layer.ffn, DenseFfn):
        ops += dense_ffn_ops(layer.ffn, hidden, tokens, sharding)
    if layer.moe is None:
        return [host, *_parts(cost, ops)], []
    ops += router_ops(layer.moe, hidden, tokens, dtypes)
    shared = shared_expert_ops(layer.moe, hidden, tokens, sharding)
    return [host, *_parts(cost, ops)], _parts(cost, shared, "shared experts")


def _parts(cost: KernelCost, ops: Sequence[Op], label: str = "") -> list[Part]:
    """One part an operation family (or one in all), their seconds added."""
    found: dict[tuple[str, str], list[Estimate]] = {}
    for op in ops:
        family = FAMILY[type(op)]
        found.setdefault((label or LABELS[family], family), []).append(cost.op(op))
    return [
        Part(
            name,
            "compute",
            Estimate(
                float(sum(float(np.max(e.seconds)) for e in estimates)),
                family,
                estimates[0].grade,
                max(e.sigma for e in estimates),
            ),
        )
        for (name, family), estimates in found.items()
    ]


def device_unit(cost: KernelCost, op: GroupedExperts, most_tokens: int) -> Unit:
    """Experts on the device: what one more expert adds, and the launch of the group once."""
    grid = np.unique(
        np.concatenate(([1, 2, 3, 4, 6, 8], np.geomspace(8, max(16, most_tokens), 24).astype(int)))
    )
    few, many = 1, 8

    def seconds(count: int) -> NDArray[np.float64]:
        counts = np.repeat(grid[:, None], count, axis=1).astype(np.int64)
        return np.asarray(cost.experts(op, ExpertLoad.of(counts)).seconds, np.float64)

    each = (seconds(many) - seconds(few)) / (many - few)
    each = np.maximum.accumulate(np.maximum(each, 0.0))
    estimate = cost.experts(op, ExpertLoad.of(np.ones((1, 1), np.int64)))
    launch = max(0.0, float(seconds(few)[0] - each[0]))

    def times(tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(np.interp(tokens, grid, each) * np.maximum(1.0, tokens / grid[-1]))

    return Unit(times, Estimate(0.0, "moe", estimate.grade, estimate.sigma), launch)


def cpu_unit(node: Node, op: GroupedExperts, work: HostWork, rates: Rates) -> Unit:
    """Experts on the host: a vector kernel at few tokens, then one on matrix tiles where there are some."""
    host = node.host
    sockets = min(work.sockets or host.num_sockets, host.num_sockets)
    cores = host.cpu.num_units * sockets
    threads = min(work.cpu_threads or cores, cores)
    bandwidth = _dram_bytes_per_s(node, work, rates)
    dtype = compute_dtype(op.weight_dtype, op.activation_dtype, host.cpu)
    has_tiles = dtype in host.cpu.peak_flops_per_s
    fraction = rates.cpu_tile_fraction if has_tiles else rates.cpu_vector_fraction
    share = sockets * threads / cores
    peak = host.cpu.dense_peak_flops_per_s(dtype) * fraction * share
    vector_peak = host.cpu.dense_peak_flops_per_s("fp32") * rates.cpu_vector_fraction * share
    many = roofline_times(op, peak, bandwidth, rates.cpu_expert_s)
    few = roofline_times(op, vector_peak, bandwidth, rates.cpu_expert_s)

    def times(tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.where(tokens <= rates.cpu_vector_max_tokens, few(tokens), many(tokens))

    return Unit(times, Estimate(0.0, "cpu_moe", "assumed", rates.sigma), rates.handover_s)


def pim_unit(pim: Device, op: GroupedExperts) -> Unit:
    """Experts on a near-memory unit: its own roofline."""
    dtype = compute_dtype(op.weight_dtype, op.activation_dtype, pim)
    peak, memory = pim.dense_peak_flops_per_s(dtype), pim.main_memory
    times = roofline_times(op, peak, memory.bandwidth_bytes_per_s, memory.latency_s)
    return Unit(times, Estimate(0.0, "pim_moe", "roofline", 0.3), pim.launch_s)


def roofline_times(op: GroupedExperts, flops_per_s: float, bytes_per_s: float, start_s: float) -> Times:
    """Seconds of one expert by its tokens on a roofline with a start-up time."""
    weights = op.weight_bytes_per_expert
    per_token = 2.0 * op.weights_per_expert

    def times(tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(start_s + np.maximum(weights / bytes_per_s, tokens * (per_token / flops_per_s)))

    return times


def _dram_bytes_per_s(node: Node, work: HostWork, rates: Rates) -> float:
    """What CPU experts read from the memory of the sockets in use."""
    host = node.host
    sockets = min(work.sockets or host.num_sockets, host.num_sockets)
    cores = host.cpu.num_units * sockets
    threads = min(work.cpu_threads or cores, cores)
    saturation = min(1.0, threads / (rates.cores_to_saturate_fraction * cores))
    share = sockets / host.num_sockets
    return host.dram.bandwidth_bytes_per_s * share * rates.cpu_bandwidth_fraction * saturation


def _copy(node: Node, size: float, work: HostWork, rates: Rates) -> Estimate:
    link = node.host.pcie
    if link is None:
        # the socket is the device: a copy is one memory reading the other
        bandwidth, latency = node.host.dram.bandwidth_bytes_per_s / 2, node.host.dram.latency_s
    else:
        bandwidth, latency = link.bandwidth_bytes_per_s, link.latency_s
    rate = bandwidth * (1.0 if work.pinned else rates.pageable_fraction)
    return Estimate(latency + size / rate, "host_copy", "assumed", rates.sigma / 2)


def _disk(node: Node, size: float) -> Estimate | None:
    ssd = node.host.ssd
    if ssd is None:
        return None
    return Estimate(ssd.latency_s + size / ssd.bandwidth_bytes_per_s, "disk", "assumed", 0.3)
