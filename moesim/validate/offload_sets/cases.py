"""A published set-up as a run of the offload driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import rng_for
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
from moesim.offload.rates import Rates, hybrid_rates
from moesim.traces import RoutingTrace
from moesim.traces.generators import generators
from moesim.units import TB

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
    """

    model: ModelSpec
    dtypes: Dtypes
    node: Node
    work: HostWork
    rates: Rates
    context: int
    by_rows: bool = False

    def costs(self, tokens: int = 1, *, prefill: bool = False) -> Costs:
        """Durations of a pass of ``tokens`` tokens."""
        segment = (
            Segment.prefill(1.0, float(tokens), float(self.context))
            if prefill
            else Segment.decode(float(tokens), float(self.context))
        )
        costs = costs_of(
            self.model,
            self.dtypes,
            self.node,
            [segment],
            work=self.work,
            most_tokens=tokens,
            rates=self.rates,
        )
        return replace(costs, device=self._rows(costs.device)) if self.by_rows else costs

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
    """Set-up from a described machine and engine."""
    rates = hybrid_rates().model_copy(
        update={
            "handover_s": engine["handover_s"],
            "cpu_bandwidth_fraction": machine.get("cpu_bandwidth_fraction", engine["cpu_bandwidth_fraction"]),
        }
    )
    kernels = engine.get("kernels", "default")
    work = HostWork(
        pass_s=engine["pass_s"],
        layer_s=engine["layer_s"],
        expert_s=engine.get("expert_s", 0.0),
        kernels=kernels,
    )
    by_rows = bool(machine.get("by_rows", False))
    return Case(model, dtypes, node_of(machine), work, rates, context, by_rows)


def node_of(machine: Data) -> Node:
    """Node of a machine of the published file."""
    host = Host(
        cpu=load_device(machine["cpu"]),
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
    """Routed tokens of a shape, as in the recording ``like``."""
    rng = rng_for(seed, f"validate/{like}/{layers}/{experts}/{top_k}")
    return generators.build("matched", {"like": like}).generate(tokens, layers, experts, top_k, rng)


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
