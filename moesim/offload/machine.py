"""A model on a described node with tiers: the seconds that the driver needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    embedding_ops,
    expert_op,
    head_ops,
    norm_op,
    plain_ffn_ops,
    router_ops,
    shared_expert_ops,
)
from moesim.model.ops import AttentionDecode, GroupedExperts, Op, Segment, Sharding
from moesim.model.parameters import expert_bytes
from moesim.model.spec import LayerSpec, ModelSpec
from moesim.offload.costs import Attention, Costs, Unit
from moesim.offload.host import (
    HostWork,
    copy_of,
    cpu_unit,
    cxl_of,
    disk_of,
    dram_bytes_per_s,
    link_latency_s,
    pieces_of,
    roofline_times,
    socket_memory,
    sockets_used,
)
from moesim.offload.lanes import CPU, PIM
from moesim.offload.rates import Rates, hybrid_rates

LABELS = {
    "gemm": "projections",
    "attention_prefill": "attention",
    "attention_decode": "attention",
    "elementwise": "norms and element-wise",
    "router": "router",
}


def costs_of(
    model: ModelSpec,
    dtypes: Dtypes,
    node: Node,
    segments: Sequence[Segment],
    *,
    work: HostWork | None = None,
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
    work : HostWork, optional
        The engine's host.
    most_tokens : int
        Most tokens that an expert can get. [tokens]
    rates : Rates, optional
        What hosts and links reach; the shipped ones by default.

    Raises
    ------
    InputError
        A model without experts, attention near memory on a node without such units, or kernels of an
        engine that is not known for the device.
    """
    if not model.moe_layers:
        raise InputError(
            [Problem("model", f"{model.name} has no routed experts; accepted: a model that has")]
        )
    if model.repeats_experts:
        accepted = "1: a cache that one pass asks several times for a layer's experts is not modelled"
        raise InputError([Problem("model.variant.iterations", f"got more than 1; accepted: {accepted}")])
    rates, work = rates or hybrid_rates(), work or HostWork()
    cost = cost_of(node.device, work.kernels)
    host = _host_parts(work.layer_s, rates)
    elsewhere = attention_lane(node, work)
    kinds = {
        layer: _layer_parts(cost, model, layer, segments, dtypes, host, elsewhere)
        for layer in dict.fromkeys(model.layers)
    }
    tokens = float(sum(float(s.tokens) for s in segments))
    sequences = float(sum(float(s.num_sequences) for s in segments))
    moe_layer = model.layers[model.moe_layers[0]]
    assert moe_layer.moe is not None
    op = expert_op(moe_layer.moe, model.hidden_size, moe_layer.moe.num_experts, dtypes)
    size = expert_bytes(moe_layer, model.hidden_size, dtypes)
    sharding = Sharding(dtypes=dtypes)
    dram = dram_bytes_per_s(node, work, rates)
    copy = copy_of(node, size, work, rates)
    link = size / float(copy.seconds) if copy.seconds else 0.0
    return Costs(
        before=[kinds[layer].before for layer in model.layers],
        after=[kinds[layer].after for layer in model.layers],
        attention=[kinds[layer].attention for layer in model.layers] if elsewhere else [],
        moe_layers=model.moe_layers,
        first=[
            *_host_parts(work.pass_s, rates),
            *_parts(cost, embedding_ops(model, tokens, dtypes), "embedding"),
        ],
        last=_parts(cost, head_ops(model, sequences, sharding), "head"),
        device=device_unit(cost, op, most_tokens, work.expert_s),
        copy=copy,
        cpu=cpu_unit(node, op, work, rates),
        pim=None if node.pim is None else pim_unit(node.pim, op),
        pim_shares_memory=node.pim is not None and node.pim.host_memory_of is not None,
        disk=disk_of(node, size),
        cxl=cxl_of(node, op, size, copy, work, rates),
        cpu_slowdown=dram / max(dram - link, 0.2 * dram),
        cpu_queues=sockets_used(node, work) if work.numa == "experts" else 1,
        pieces=pieces_of(op, work, link_latency_s(node)),
        low_precision_fraction=work.low_fraction,
    )


@dataclass(frozen=True)
class _Layer:
    """Up to the gate, attention elsewhere between, and beside the experts."""

    before: Sequence[Part]
    after: Sequence[Part]
    attention: Attention | None


def attention_lane(node: Node, work: HostWork) -> tuple[str, KernelCost] | None:
    """Lane and costs of decode attention where the main device does not compute it.

    Raises
    ------
    InputError
        Near memory on a node that has no such units.
    """
    if work.attention == "device":
        return None
    if work.attention == "cpu":
        return CPU, cost_of(socket_memory(node))
    if node.pim is None:
        raise InputError.at("executor.attention", "pim", "device or cpu: the node has no near-memory units")
    return PIM, cost_of(node.pim)


def _layer_parts(
    cost: KernelCost,
    model: ModelSpec,
    layer: LayerSpec,
    segments: Sequence[Segment],
    dtypes: Dtypes,
    host: Sequence[Part],
    elsewhere: tuple[str, KernelCost] | None,
) -> _Layer:
    """Parts of a layer, by where and when they run."""
    hidden = model.hidden_size
    sharding = Sharding(dtypes=dtypes)
    tokens = float(sum(float(s.tokens) for s in segments))
    ops: list[Op] = attention_ops(layer, hidden, segments, sharding)
    ops.append(norm_op("ffn_norm", hidden, tokens, dtypes))
    if layer.plain is not None:
        ops += plain_ffn_ops(layer.plain, hidden, tokens, sharding)
    shared: list[Op] = []
    if layer.moe is not None:
        ops += router_ops(layer.moe, hidden, tokens, dtypes)
        shared = shared_expert_ops(layer.moe, hidden, tokens, sharding)
    after = _parts(cost, shared, "shared experts")
    away = [i for i, op in enumerate(ops) if isinstance(op, AttentionDecode)]
    if elsewhere is None or not away:
        return _Layer([*host, *_parts(cost, ops)], after, None)
    lane, far_cost = elsewhere
    kind = "cpu_compute" if lane == CPU else "pim_compute"
    parts = [replace(part, kind=kind) for part in _parts(far_cost, [ops[i] for i in away])]
    rest = _parts(cost, [op for i, op in enumerate(ops) if i > away[0] and i not in away])
    return _Layer([*host, *_parts(cost, ops[: away[0]])], after, Attention(lane, parts, rest))


def _host_parts(seconds: float, rates: Rates) -> list[Part]:
    """Host time that the device waits for, if any."""
    if not seconds:
        return []
    return [Part("host", "idle", Estimate(seconds, "launch", "assumed", rates.sigma))]


def _parts(cost: KernelCost, ops: Sequence[Op], label: str = "") -> list[Part]:
    """One part an operation family, their seconds added; ``label`` names all but the norms."""
    found: dict[tuple[str, str], list[Estimate]] = {}
    for op in ops:
        family = FAMILY[type(op)]
        named = label if label and (family != "elementwise" or len(ops) == 1) else LABELS[family]
        found.setdefault((named, family), []).append(cost.op(op))
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


def device_unit(cost: KernelCost, op: GroupedExperts, most_tokens: int, host_s: float = 0.0) -> Unit:
    """Experts on the device: what one more adds, ``host_s`` of it launches, and the group's launch once."""
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
        return np.asarray(host_s + np.interp(tokens, grid, each) * np.maximum(1.0, tokens / grid[-1]))

    return Unit(times, Estimate(0.0, "moe", estimate.grade, estimate.sigma), launch)


def pim_unit(pim: Device, op: GroupedExperts) -> Unit:
    """Experts on a near-memory unit: its own roofline."""
    dtype = compute_dtype(op.weight_dtype, op.activation_dtype, pim)
    peak, memory = pim.dense_peak_flops_per_s(dtype), pim.main_memory
    times = roofline_times(op, peak, memory.bandwidth_bytes_per_s, memory.latency_s)
    return Unit(times, Estimate(0.0, "pim_moe", "roofline", 0.3), pim.launch_s)
