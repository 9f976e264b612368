"""A resolved offload scenario as objects: what fits where, the demand, costs and policies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InfeasibleError, InputError
from moesim.memory.caches import CachePolicy, cache_policies
from moesim.memory.demand import Demand, demand_of
from moesim.model import Dtypes, ModelSpec, from_hf
from moesim.model.ops import Segment
from moesim.model.parameters import expert_bytes, kv_bytes_per_token, weight_bytes
from moesim.offload import Costs, Offload, executors, prefetchers
from moesim.offload.machine import HostWork, costs_of
from moesim.scenario.resolve import Resolved
from moesim.scenario.schema import Scenario
from moesim.scenario.traffic import Traffic, load_traffic
from moesim.traces import RoutingTrace
from moesim.units import fmt_bytes

HOST_RESERVED_FRACTION = 0.05
"""Of host memory that experts cannot have. Assumed: operating system and page tables."""


@dataclass(frozen=True, eq=False)
class Tiers:
    """What lies where. [bytes]

    Attributes
    ----------
    expert_bytes, num_experts : float, int
        One routed expert, and how many there are in all layers.
    fixed_bytes : float
        On the device beside experts: other weights, cache of keys and values, reserve.
    device_bytes, host_bytes : float
        Capacities.
    parts : dict of float
        What the device holds.
    slots, host_slots : ndarray of int64, ``(layers,)``
        Experts of each layer on the device; in host memory, None where it holds all.
    """

    expert_bytes: float
    num_experts: int
    fixed_bytes: float
    device_bytes: float
    host_bytes: float
    parts: dict[str, float]
    slots: NDArray[np.int64]
    host_slots: NDArray[np.int64] | None


@dataclass(frozen=True, eq=False)
class Offloading:
    """Everything an offload run needs."""

    resolved: Resolved
    model: ModelSpec
    dtypes: Dtypes
    traffic: Traffic
    demand: Demand
    costs: Costs
    tiers: Tiers
    offload: Offload

    @property
    def scenario(self) -> Scenario:
        """Validated values."""
        return self.resolved.scenario


def build_offload(resolved: Resolved, like: Offloading | None = None) -> Offloading:
    """Objects of an offload scenario; the routed tokens are those of ``like`` where it is given.

    Raises
    ------
    InputError
        Its parts contradict each other.
    InfeasibleError
        The tiers cannot hold the model.
    """
    scenario = resolved.scenario
    model = from_hf(resolved.tree.sub("model"), resolved.model_name)
    given = scenario.dtypes
    dtypes = Dtypes(weights=given.weights, experts=given.experts, kv=given.kv, activations=given.activations)
    if scenario.routing is None:
        raise InputError.at("routing", None, "a trace or a generator: offload replays routed tokens")
    tiers = tiers_of(scenario, model, dtypes)
    executor = executors.build(scenario.executor.policy, scenario.executor.params, field="executor")
    cache = cache_policies.build(
        scenario.memory.cache.policy, scenario.memory.cache.params, field="memory.cache"
    )
    prefetch = scenario.memory.prefetch
    prefetcher = prefetchers.build(prefetch.policy, prefetch.params, field="memory.prefetch")
    if scenario.executor.policy in {"device", "mixed_precision"} and not cache.bypasses:
        least = model.top_k
        if int(tiers.slots.min()) < least and not scenario.memory.cache.pooled:
            accepted = f"at least {least}, the experts that one token needs in a layer"
            raise InputError.at(
                "memory.cache.slots_per_layer",
                int(tiers.slots.min()),
                accepted,
                where=resolved.tree.where(("memory", "cache", "slots_per_layer")),
            )
    wanted = scenario.batch.tokens_per_rank * (scenario.offload.passes + scenario.offload.warmup_passes)
    if like is None:
        traffic = load_traffic(scenario.routing, model, wanted, scenario.seed)
        demand = demand_for(scenario, traffic)
    else:
        traffic, demand = like.traffic, like.demand
    work = HostWork(
        pass_s=scenario.executor.pass_overhead_s,
        layer_s=scenario.executor.layer_overhead_s,
        cpu_threads=scenario.executor.cpu_threads,
        sockets=scenario.executor.sockets,
        pinned=scenario.memory.host.pinned,
    )
    costs = costs_of(
        model,
        dtypes,
        scenario.cluster.node,
        [segment_of(scenario)],
        work=work,
        most_tokens=max(1, int(demand.tokens.max())),
    )
    host_cache: CachePolicy | None = None
    if tiers.host_slots is not None:
        host_cache = cache_policies.build(scenario.memory.host.policy, {}, field="memory.host")
    offload = Offload(
        cache,
        tiers.slots,
        executor,
        prefetcher,
        scenario.memory.cache.pooled,
        host_cache,
        tiers.host_slots,
    )
    return Offloading(resolved, model, dtypes, traffic, demand, costs, tiers, offload)


def segment_of(scenario: Scenario) -> Segment:
    """What one pass works on."""
    batch = scenario.batch
    if scenario.offload.phase == "decode":
        return Segment.decode(float(batch.tokens_per_rank), float(batch.context_tokens))
    sequences = float(batch.sequences_per_rank or 1)
    return Segment.prefill(sequences, batch.tokens_per_rank / sequences, float(batch.context_tokens))


def demand_for(scenario: Scenario, traffic: Traffic) -> Demand:
    """Passes of the held-out traffic; decoding sequences advance side by side."""
    size = scenario.batch.tokens_per_rank
    passes = scenario.offload.passes + scenario.offload.warmup_passes
    trace = traffic.held_out
    if trace.num_tokens < size:
        trace = _repeated(trace, size)
    if scenario.offload.phase == "decode" and size > 1:
        length = trace.num_tokens // size
        rows = (np.arange(length)[:, None] + np.arange(size) * length).ravel()
        trace = trace.take(rows)
    prior = traffic.fit.counts()
    return demand_of(trace, size, max_passes=passes, prior_counts=prior)


def _repeated(trace: RoutingTrace, tokens: int) -> RoutingTrace:
    return trace.take(np.arange(tokens, dtype=np.int64) % trace.num_tokens)


def tiers_of(scenario: Scenario, model: ModelSpec, dtypes: Dtypes) -> Tiers:
    """Sizes of the caches of device and host.

    Raises
    ------
    InfeasibleError
        The device cannot hold what is not experts, or host and disk cannot hold the experts.
    """
    node, memory = scenario.cluster.node, scenario.memory
    layers = [model.layers[i] for i in model.moe_layers]
    one = expert_bytes(layers[0], model.hidden_size, dtypes)
    each = max(layer.moe.num_experts if layer.moe else 0 for layer in layers)
    total = len(layers) * each
    capacity = node.device.main_memory.capacity_bytes
    batch = scenario.batch
    sequences = batch.tokens_per_rank if scenario.offload.phase == "decode" else batch.sequences_per_rank or 1
    cached = sequences * (batch.context_tokens + 1) * kv_bytes_per_token(model, dtypes.kv)
    parts = {
        "attention and dense weights": weight_bytes(model, dtypes) - total * one,
        "kv cache": cached,
        "reserve": memory.reserved_fraction * capacity,
    }
    fixed = sum(parts.values())
    wanted = memory.cache.slots_per_layer
    fit = int(max(0.0, capacity - fixed) // one)
    if fixed > capacity or (wanted is not None and wanted * len(layers) > fit and wanted < each):
        need = fixed + (wanted or 0) * len(layers) * one
        held = ", ".join(f"{name} {fmt_bytes(size)}" for name, size in parts.items())
        message = (
            f"memory.cache.slots_per_layer: need {fmt_bytes(need)}, the device has {fmt_bytes(capacity)}: "
            f"{held}, {fmt_bytes(one)} an expert; accepted: at most {fit // len(layers)} slots a layer"
        )
        raise InfeasibleError(message)
    total_slots = min(wanted * len(layers) if wanted is not None else fit, total)
    if wanted is not None and total_slots > fit:
        total_slots = fit
    slots = laid_out(total_slots, len(layers), each, memory.cache.layout)
    parts["expert cache"] = float(slots.sum()) * one
    host = node.host.dram.capacity_bytes * (1 - HOST_RESERVED_FRACTION)
    host_slots = _host_slots(scenario, total, each, len(layers), one, host)
    return Tiers(one, total, fixed, capacity, node.host.dram.capacity_bytes, parts, slots, host_slots)


def _host_slots(
    scenario: Scenario, total: int, each: int, layers: int, one: float, host_bytes: float
) -> NDArray[np.int64] | None:
    """Experts of each layer in host memory, None for all."""
    wanted = scenario.memory.host.slots_per_layer
    fit = int(host_bytes // one) // layers
    if wanted is None and fit >= each:
        return None
    ssd = scenario.cluster.node.host.ssd
    if wanted is not None and wanted >= each and fit >= each:
        return None
    need = f"{total} experts of {fmt_bytes(one)} need {fmt_bytes(total * one)}"
    message = ""
    if ssd is None:
        message = (
            f"cluster.node.host: {need}, host memory holds {fmt_bytes(host_bytes)} and the node has no ssd; "
            "accepted: a larger host.dram, a host.ssd, or fewer bits (dtypes.experts)"
        )
    elif total * one > ssd.capacity_bytes:
        message = f"cluster.node.host.ssd: {need}, the disk holds {fmt_bytes(ssd.capacity_bytes)}"
    elif (wanted or 1) > fit:
        message = f"memory.host.slots_per_layer: got {wanted}; accepted: 1 to {fit}, what fits in host.dram"
    if message:
        raise InfeasibleError(message)
    count = fit if wanted is None else wanted
    return np.full(layers, min(count, each), np.int64)


def laid_out(total: int, layers: int, each: int, layout: str) -> NDArray[np.int64]:
    """``total`` slots over layers of ``each`` experts, ``(layers,)``; what is left over goes first."""
    if layout == "front":
        return np.asarray(np.clip(total - np.arange(layers, dtype=np.int64) * each, 0, each))
    weight = np.linspace(1.5, 0.5, layers) if layout == "shallow" and layers > 1 else np.ones(layers)
    slots: NDArray[np.int64] = np.minimum((weight / weight.sum() * total).astype(np.int64), each)
    if layout == "even":
        return slots
    for layer in range(layers):
        more = min(each - int(slots[layer]), total - int(slots.sum()))
        slots[layer] += max(0, more)
    return slots
