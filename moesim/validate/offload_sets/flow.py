"""ExpertFlow: experts on demand against prefetched ones, an encoder-decoder under greedy decoding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moesim.engine.program import Part
from moesim.evidence import Estimate
from moesim.memory.demand import demand_of, demand_of_batches
from moesim.model import load
from moesim.offload import Costs, batchers, simulate
from moesim.offload.batchers import batched_steps
from moesim.offload.costs import Unit
from moesim.offload.rates import hybrid_rates
from moesim.validate.claims import Claim
from moesim.validate.offload_sets.cases import offload_of, traffic

Data = Mapping[str, Any]


def flow_claims(data: Data, seed: int) -> list[Claim]:
    """On demand: synchronous copies from pageable memory. Prefetch: pinned, beside the decoder's work."""
    given = data["expertflow"]
    model = load("switch_base_128")
    moe = model.layers[model.moe_layers[0]].moe
    assert moe is not None
    size = 2 * moe.expert_parameters(model.hidden_size)
    pinned_s = size / given["link_bytes_per_s"]
    pageable_s = pinned_s / hybrid_rates().pageable_fraction
    layers = len(model.moe_layers) // 2
    found = []
    for row in given["rows"]:
        batch = row["batch"]
        trace = traffic("deepseek_v2_lite", layers, moe.num_experts, 1, batch * (given["steps"] + 4), seed)
        demand = demand_of(trace, batch)
        slots = np.full(layers, max(given["slots"], demand.largest), np.int64)
        times = {}
        for name, copy_s, prefetch in (("on_demand", pageable_s, "none"), ("prefetch", pinned_s, "oracle")):
            costs = _decoder(layers, given["step_s"], copy_s)
            params = {"depth": 2} if prefetch == "oracle" else {}
            way = offload_of(np.minimum(slots, given["slots"]), prefetch=prefetch, prefetch_params=params)
            done = simulate(demand, costs, way, seed=seed)
            # the encoder touches every expert once and loads on demand in both
            encoder_s = given["step_s"] + layers * (moe.num_experts - given["slots"]) * pageable_s
            times[name] = encoder_s + given["steps"] * done.pass_s(4)
        found.append(
            Claim(
                f"ExpertFlow on demand over prefetch, batch {batch}",
                given["source"],
                "ratio",
                row["on_demand"] / row["prefetch"],
                times["on_demand"] / times["prefetch"],
                0.2,
                note="on-demand copies pageable, prefetched ones pinned",
            )
        )
    return found


def scheduling_claims(data: Data, seed: int) -> list[Claim]:
    """Token scheduling alone: samples exchanged within a pool of batches, experts on demand."""
    given = data["expertflow_scheduling"]
    model = load("switch_base_128")
    moe = model.layers[model.moe_layers[0]].moe
    assert moe is not None
    layers, batch, pool = len(model.moe_layers) // 2, given["batch"], given["pool"]
    tokens = batch * pool * (given["steps"] + 1)
    trace = traffic("deepseek_v2_lite", layers, moe.num_experts, 1, tokens, seed)
    copy_s = 2 * moe.expert_parameters(model.hidden_size) / given["link_bytes_per_s"]
    costs = _decoder(layers, given["step_s"], copy_s / hybrid_rates().pageable_fraction)
    seconds = {}
    for name in ("arrival", "similar_routes"):
        passes = batched_steps(trace, given["steps"], batch, batchers.build(name, {"pool": pool}))
        way = offload_of(np.full(layers, given["slots"], np.int64))
        seconds[name] = simulate(demand_of_batches(trace, passes), costs, way, seed=seed).pass_s(pool)
    gain = 100 * (seconds["arrival"] / seconds["similar_routes"] - 1)
    note = f"batches of {batch}, a pool of {pool}; generated routing has neither texts nor languages"
    name = "ExpertFlow token scheduling alone, gain"
    source = given["source"]
    return [Claim(name, source, "points", given["gain_percent"], gain, 5.0, absolute=True, note=note)]


def _decoder(layers: int, step_s: float, copy_s: float) -> Costs:
    """A decode step that its launches bound, every second layer with experts."""
    part = [Part("launches", "idle", Estimate(step_s / (2 * layers), "launch", "assumed", 0.0))]
    return Costs(
        before=[part] * (2 * layers),
        after=[[]] * (2 * layers),
        moe_layers=range(1, 2 * layers, 2),
        first=[],
        last=[],
        device=Unit(lambda tokens: np.zeros(tokens.size), Estimate(0.0, "moe", "assumed", 0.0)),
        copy=Estimate(copy_s, "host_copy", "assumed", 0.0),
    )
