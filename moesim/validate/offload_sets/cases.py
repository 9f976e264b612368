"""A published set-up as a run of the offload driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import rng_for
from moesim.files import find
from moesim.hardware.load import load_device
from moesim.hardware.schema import Device, Host, Link, MemoryTier, Node
from moesim.kernels.efficiency import roofline_efficiencies
from moesim.memory.caches import CachePolicy, cache_policies
from moesim.memory.demand import Demand, demand_of
from moesim.model import Dtypes, ModelSpec, load
from moesim.model.layer_ops import expert_op
from moesim.model.ops import Segment
from moesim.offload import Costs, Offload, OffloadRun, executors, prefetchers, simulate
from moesim.offload.costs import Unit
from moesim.offload.host import HostWork, roofline_times
from moesim.offload.machine import costs_of
from moesim.offload.rates import DEFAULT_PROGRAM, Rates, hybrid_rates
from moesim.traces import RoutingTrace
from moesim.traces.consistency import with_consistency
from moesim.traces.matched import MatchedParameters, matched_trace, read_parameters
from moesim.units import TB
from moesim.validate.claims import published
from moesim.validate.local_routing import TOKENS, base_parameters, skewed

Data = Mapping[str, Any]
EARLIER_TOKENS = 448
"""Traffic that a placement by frequency has seen. [tokens]"""
WARM_PASSES = 8
PASSES = 16


@dataclass(frozen=True, eq=False)
class Case:
    """One set-up.

    Attributes
    ----------
    model, dtypes, node : ModelSpec, Dtypes, Node
    work : HostWork
        What the engine's host adds.
    rates : Rates
        What its host reaches.
    context : int
        Tokens before the measured ones. [tokens]
    by_rows : bool
        Expert kernels work row by row instead of in tiles: llama.cpp on integrated graphics and CPUs.
    byte_scale : float
        Stored bytes of an expert over those of its described format. [-]
    blocks : bool
        Kernels of the device read the experts as they are stored, so ``byte_scale`` holds there too.
    """

    model: ModelSpec
    dtypes: Dtypes
    node: Node
    work: HostWork
    rates: Rates
    context: int
    by_rows: bool = False
    byte_scale: float = 1.0
    blocks: bool = False

    def costs(self, tokens: int = 1, *, prefill: bool = False) -> Costs:
        """Durations of a pass of ``tokens`` tokens."""
        segment = (
            Segment.prefill(1.0, float(tokens), float(self.context))
            if prefill
            else Segment.decode(float(tokens), float(self.context))
        )
        # more bytes a weight pass the same memory later; unpacking them takes as long
        fraction = self.rates.cpu_bandwidth_fraction / self.byte_scale
        costs = costs_of(
            self.model,
            self.dtypes,
            self.node,
            [segment],
            work=self.work,
            most_tokens=tokens,
            rates=self.rates.model_copy(update={"cpu_bandwidth_fraction": fraction}),
        )
        if self.byte_scale != 1.0:
            costs = self._stored(costs)
        return replace(costs, device=self._rows(costs.device)) if self.by_rows else costs

    def _stored(self, costs: Costs) -> Costs:
        """Copies, and kernels that read stored blocks, at the stored bytes of an expert."""
        scale = self.byte_scale
        costs = replace(costs, copy=replace(costs.copy, seconds=float(costs.copy.seconds) * scale))
        times = costs.device.seconds
        if not self.blocks:
            return costs
        return replace(costs, device=replace(costs.device, seconds=lambda tokens: times(tokens) * scale))

    def _rows(self, unit: Unit) -> Unit:
        """Experts on a roofline with the shares of the grouped kernels, without tiles."""
        moe = self.model.layers[self.model.moe_layers[0]].moe
        assert moe is not None
        op = expert_op(moe, self.model.hidden_size, moe.num_experts, self.dtypes)
        reached = roofline_efficiencies().families["moe"]
        device = self.node.device
        peak = device.dense_peak_flops_per_s("bf16") * reached.compute_fraction
        bandwidth = device.main_memory.bandwidth_bytes_per_s * reached.bandwidth_fraction
        return replace(unit, seconds=roofline_times(op, peak, bandwidth, 0.0))


def case_of(machine: Data, engine: Data, model: ModelSpec, dtypes: Dtypes, context: int) -> Case:
    """Set-up from a described machine and engine.

    ``graphs: false`` of a machine: kernels of the device are started one by one where a layer leaves its
    experts to the CPU, and the device waits for each start.
    """
    rates = hybrid_rates(engine.get("program", DEFAULT_PROGRAM))
    given = {**engine, **machine}
    names = ("handover_s", "cpu_bandwidth_fraction")
    update: dict[str, Any] = {name: given[name] for name in names if name in given}
    rates = rates.model_copy(update=update)
    if not machine.get("graphs", True):
        rates = rates.model_copy(update={"handover_s": rates.handover_s + engine.get("start_s", 0.0)})
    work = HostWork(
        pass_s=engine["pass_s"],
        layer_s=engine["layer_s"],
        expert_s=engine.get("expert_s", 0.0),
        cpu_threads=machine.get("threads"),
        kernels=engine.get("kernels", "default"),
    )
    by_rows, blocks = bool(machine.get("by_rows", False)), bool(engine.get("blocks", False))
    return Case(model, dtypes, node_of(machine), work, rates, context, by_rows, blocks=blocks)


def node_of(machine: Data) -> Node:
    """Node of a machine of the published file."""
    host = Host(
        cpu=_cpu(machine),
        num_sockets=machine["sockets"],
        dram=MemoryTier(capacity_bytes=2 * TB, bandwidth_bytes_per_s=machine["dram"]),
        pcie=Link(bandwidth_bytes_per_s=machine["pcie"], latency_s=1e-5),
    )
    return Node(
        name="published",
        device=_device(machine),
        num_devices=1,
        scale_up=None,
        scale_up_kind="none",
        host=host,
        nic=None,
        num_nics=0,
    )


def _cpu(machine: Data) -> Device:
    """Shipped CPU, with the published cores and clock where it only stands in for the machine's own."""
    cpu = load_device(machine["cpu"])
    if "cores" not in machine:
        return cpu
    assert cpu.clock_hz is not None
    share = machine["cores"] * machine["clock_hz"] / (cpu.num_units * cpu.clock_hz)
    peaks = {name: peak * share for name, peak in cpu.peak_flops_per_s.items()}
    update = {"num_units": machine["cores"], "clock_hz": machine["clock_hz"], "peak_flops_per_s": peaks}
    return cpu.model_copy(update=update)


def _device(machine: Data) -> Device:
    """Shipped device with the published memory and peak; several in tensor parallel count as one."""
    device = load_device(machine["device"])
    count = machine.get("count", 1)
    tier = device.main_memory
    memory = MemoryTier(
        capacity_bytes=machine.get("capacity", tier.capacity_bytes) * count,
        bandwidth_bytes_per_s=machine.get("memory", tier.bandwidth_bytes_per_s) * count,
        latency_s=tier.latency_s,
    )
    peaks = dict(device.peak_flops_per_s)
    if "flops" in machine:
        peak = machine["flops"] * machine.get("compute_scale", 1.0)
        peaks = {"bf16": peak, "fp16": peak, "fp32": peak / 2}
    scaled = {name: peak * count for name, peak in peaks.items()}
    return device.model_copy(
        update={"name": "published", "memory": {"main": memory}, "peak_flops_per_s": scaled}
    )


def model_of(name: str, top_k: int | None = None) -> ModelSpec:
    """Bundled model, with fewer experts a token where asked for."""
    model = load(name)
    if top_k is None:
        return model
    return model.with_layers(
        [
            layer if layer.moe is None else replace(layer, ffn=replace(layer.moe, top_k=top_k))
            for layer in model.layers
        ]
    )


@lru_cache(maxsize=32)
def traffic(like: str, layers: int, experts: int, top_k: int, tokens: int, seed: int) -> RoutingTrace:
    """Routed tokens of a shape, as in the recording ``like``, or as is published of the model ``like``."""
    rng = rng_for(seed, f"validate/{like}/{layers}/{experts}/{top_k}")
    return matched_trace(_routing(like, seed), tokens, layers, experts, top_k, rng)


def requests_like(
    like: str, shape: tuple[int, int, int], tokens: int, requests: int, seed: int
) -> list[RoutingTrace]:
    """Requests of ``tokens`` tokens each for a shape of layers, experts and choices."""
    parameters = replace(_routing(like, seed), request_tokens=tokens)
    trace = matched_trace(parameters, requests * tokens, *shape, rng_for(seed, f"validate/{like}/requests"))
    return [trace.window(i * tokens, (i + 1) * tokens) for i in range(requests)]


def _routing(like: str, seed: int) -> MatchedParameters:
    """Parameters of a recording, or of a model of which skew and local consistency are published."""
    if like in _published_models():
        return _as_published(like, seed)
    return read_parameters(find(like, "traces", field="like", suffixes=(".json",)))


def _published_models() -> dict[str, Data]:
    """Models of which skew and local consistency are published, by name."""
    return {row["name"]: row for row in published("local_routing").data["models"]}


@lru_cache(maxsize=4)
def _as_published(name: str, seed: int) -> MatchedParameters:
    """Routing of a published skew and local consistency; the rest is that of one recording."""
    data, row = published("local_routing").data, _published_models()[name]
    skew = skewed(base_parameters(), row, data["request_tokens"], seed)
    return with_consistency(skew, row["srp"] / 100, TOKENS, seed, segment_tokens=data["segment_tokens"])


def demand_for(model: ModelSpec, like: str, seed: int, *, tokens: int = 1, passes: int = PASSES) -> Demand:
    """Consecutive tokens after those that a placement by frequency may have seen."""
    need = EARLIER_TOKENS + tokens * (passes + WARM_PASSES)
    trace = traffic(like, len(model.moe_layers), model.num_experts, model.top_k, need, seed)
    earlier = trace.window(0, EARLIER_TOKENS).counts()
    later = trace.window(EARLIER_TOKENS, trace.num_tokens)
    return demand_of(later, tokens, max_passes=passes + WARM_PASSES, prior_counts=earlier)


def offload_of(
    slots: NDArray[np.int64],
    *,
    cache: str = "lru",
    executor: str = "device",
    prefetch: str = "none",
    cache_params: Data | None = None,
    executor_params: Data | None = None,
    prefetch_params: Data | None = None,
) -> Offload:
    """Policies by name."""
    policy: CachePolicy = cache_policies.build(cache, cache_params or {})
    return Offload(
        policy,
        slots,
        executors.build(executor, executor_params or {}),
        prefetchers.build(prefetch, prefetch_params or {}),
    )


def run(demand: Demand, costs: Costs, offload: Offload, seed: int) -> tuple[float, OffloadRun]:
    """Seconds of a pass after the caches have filled, and the run."""
    done = simulate(demand, costs, offload, seed=seed)
    return done.pass_s(min(WARM_PASSES, demand.num_passes - 1)), done
