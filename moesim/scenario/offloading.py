"""A resolved offload scenario as objects: what fits where, the demand, costs and policies."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InfeasibleError, InputError
from moesim.memory.caches import CachePolicy, cache_policies
from moesim.memory.demand import Demand, demand_of, demand_of_batches
from moesim.model import Dtypes, ModelSpec, from_hf
from moesim.model.ops import Segment
from moesim.model.parameters import expert_bytes, kv_bytes_per_token, weight_bytes
from moesim.offload import Costs, Offload, batchers, executors, prefetchers
from moesim.offload.batchers import batched_steps
from moesim.offload.host import HostWork
from moesim.offload.machine import costs_of
from moesim.offload.rates import hybrid_rates
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
    cxl_slots : ndarray of int64, ``(layers,)``, optional
        Experts of each layer in CXL memory that host memory lacks; None for all of them, or no such memory.
    """

    expert_bytes: float
    num_experts: int
    fixed_bytes: float
    device_bytes: float
    host_bytes: float
    parts: dict[str, float]
    slots: NDArray[np.int64]
    host_slots: NDArray[np.int64] | None
    cxl_slots: NDArray[np.int64] | None


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
    costs = costs_of(
        model,
        dtypes,
        scenario.cluster.node,
        [segment_of(scenario)],
        work=_host_work(scenario),
        most_tokens=max(1, int(demand.tokens.max())),
        rates=hybrid_rates(scenario.executor.program),
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
        cxl_slots=tiers.cxl_slots,
        filled=scenario.memory.cache.filled,
        buffer=prefetch.buffer,
    )
    return Offloading(resolved, model, dtypes, traffic, demand, costs, tiers, offload)


def _host_work(scenario: Scenario) -> HostWork:
    """What the host does, as the scenario has it."""
    executor, memory = scenario.executor, scenario.memory
    return HostWork(
        pass_s=executor.pass_overhead_s,
        layer_s=executor.layer_overhead_s,
        cpu_threads=executor.cpu_threads,
        sockets=executor.sockets,
        pinned=memory.host.pinned,
        numa=executor.numa,
        attention=executor.attention,
        unit=memory.transfer.unit,
        low_fraction=memory.transfer.low_fraction,
        kernels=scenario.named_engine.name if scenario.named_engine else "default",
    )


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
    batching = scenario.offload.batching
    batcher = batchers.build(batching.policy, batching.params, field="offload.batching")
    decoding = scenario.offload.phase == "decode" and size > 1
    waiting = size * batcher.pool if decoding else size
    if trace.num_tokens < waiting:
        trace = _repeated(trace, waiting)
    prior = traffic.fit.counts()
    if scenario.memory.cache.policy == "prompt_static":
        return _after_prompt(scenario, trace, passes, prior)
    if decoding:
        steps = -(-passes // batcher.pool)
        return demand_of_batches(
            trace, batched_steps(trace, steps, size, batcher)[:passes], prior_counts=prior
        )
    return demand_of(trace, size, max_passes=passes, prior_counts=prior)


def _after_prompt(scenario: Scenario, trace: RoutingTrace, passes: int, prior: NDArray[np.int64]) -> Demand:
    """The last ``passes`` tokens of the first request that is longer, and what its tokens before them used.

    Raises
    ------
    InputError
        Not the decode of one sequence, or no request that is long enough.
    """
    if scenario.offload.phase != "decode" or scenario.batch.tokens_per_rank != 1:
        accepted = "decode of one sequence (batch.tokens_per_rank 1), whose prompt says which experts"
        raise InputError.at("memory.cache.policy", "prompt_static", accepted)
    bounds = np.append(trace.request_starts(), trace.num_tokens)
    longer = np.flatnonzero(np.diff(bounds) > passes)
    if not longer.size:
        accepted = f"fewer than the {int(np.diff(bounds).max())} tokens of the longest request"
        raise InputError.at("offload.passes", passes, f"with offload.warmup_passes, {accepted}")
    begin, end = (int(bounds[longer[0] + i]) for i in (0, 1))
    decode = end - passes
    prompt = trace.window(max(begin, decode - scenario.batch.context_tokens), decode)
    demand = demand_of(trace.window(decode, end), max_passes=passes, prior_counts=prior)
    return replace(demand, prompt_counts=prompt.counts())


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
    on_host, on_card = _cache_elsewhere(scenario)
    parts = {
        "attention and dense weights": weight_bytes(model, dtypes) - total * one,
        "kv cache": 0.0 if on_host or on_card else cached,
        "reserve": memory.reserved_fraction * capacity,
    }
    if memory.prefetch.buffer:
        parts["prefetch buffer"] = memory.prefetch.buffer * one
    fixed = sum(parts.values())
    fit = int(max(0.0, capacity - fixed) // one)
    wanted = memory.cache.slots_per_layer
    total_slots = min(fit if wanted is None else wanted * len(layers), total)
    if fixed > capacity or total_slots > fit:
        need = fixed + total_slots * one
        held = ", ".join(f"{name} {fmt_bytes(size)}" for name, size in parts.items())
        message = (
            f"memory.cache.slots_per_layer: need {fmt_bytes(need)}, the device has {fmt_bytes(capacity)}: "
            f"{held}, {fmt_bytes(one)} an expert; accepted: at most {fit // len(layers)} slots a layer"
        )
        raise InfeasibleError(message)
    slots = laid_out(total_slots, len(layers), each, memory.cache.layout)
    parts["expert cache"] = float(slots.sum()) * one
    _check_card(scenario, total * one + (cached if on_card else 0.0))
    dram = node.host.dram.capacity_bytes
    host = dram * (1 - HOST_RESERVED_FRACTION) - (cached if on_host else 0.0)
    if scenario.executor.policy == "near_memory":
        return Tiers(one, total, fixed, capacity, dram, parts, slots, None, None)
    below = _below(scenario, each, len(layers), one, host)
    return Tiers(one, total, fixed, capacity, dram, parts, slots, *below)


def _cache_elsewhere(scenario: Scenario) -> tuple[bool, bool]:
    """Whether keys and values lie in host memory; in the memory of a near-memory card."""
    pim = scenario.cluster.node.pim
    card = pim is not None and pim.host_memory_of is None
    where = scenario.executor.attention if scenario.offload.phase == "decode" else "device"
    return where == "cpu", where == "pim" and card


def _check_card(scenario: Scenario, need_bytes: float) -> None:
    """Near-memory units that compute what the device lacks hold it all in a memory of their own."""
    if scenario.executor.policy != "near_memory":
        return
    pim = scenario.cluster.node.pim
    if pim is None or pim.host_memory_of is not None:
        accepted = "a node whose pim has a memory of its own; units in the device's memory: list_schedule"
        raise InputError.at("executor.policy", "near_memory", accepted)
    have = pim.main_memory.capacity_bytes
    if need_bytes > have:
        message = (
            f"cluster.node.pim: experts need {fmt_bytes(need_bytes)}, {pim.name} holds {fmt_bytes(have)}"
        )
        raise InfeasibleError(message + "; accepted: fewer bits (dtypes.experts) or more memory")


Slots = NDArray[np.int64] | None


def _below(scenario: Scenario, each: int, layers: int, one: float, host_bytes: float) -> tuple[Slots, Slots]:
    """Experts of each layer in host memory (None for all), and in CXL memory (None for the rest, or none).

    Raises
    ------
    InfeasibleError
        Host memory, CXL memory and disk together cannot hold the experts.
    """
    memory, host = scenario.memory.host, scenario.cluster.node.host
    total = each * layers
    fit = int(max(0.0, host_bytes) // one) // layers
    wanted = memory.slots_per_layer
    if fit >= each and (wanted is None or wanted >= each):
        return None, None
    count = min(fit if wanted is None else wanted, each)
    # a host cache that changes leaves its copies behind
    rest = each - count if cache_policies.build(memory.policy, {}, field="memory.host").bypasses else each
    behind = int(host.cxl.capacity_bytes // one) // layers if host.cxl is not None else 0
    need = f"{total} experts of {fmt_bytes(one)} need {fmt_bytes(total * one)}"
    message = ""
    if count > fit:
        message = f"memory.host.slots_per_layer: got {wanted}; accepted: 1 to {fit}, what fits in host.dram"
    elif behind < rest and host.ssd is None:
        holds = f"host memory holds {fmt_bytes(host_bytes)}"
        if host.cxl is not None:
            holds += f", CXL memory {fmt_bytes(host.cxl.capacity_bytes)}"
        message = (
            f"cluster.node.host: {need}, {holds} and the node has no ssd; "
            "accepted: a larger host.dram, a larger host.cxl, a host.ssd, or fewer bits (dtypes.experts)"
        )
    elif behind < rest and host.ssd is not None and total * one > host.ssd.capacity_bytes:
        message = f"cluster.node.host.ssd: {need}, the disk holds {fmt_bytes(host.ssd.capacity_bytes)}"
    if message:
        raise InfeasibleError(message)
    near = np.full(layers, count, np.int64)
    return near, None if behind >= rest else np.full(layers, behind, np.int64)


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
