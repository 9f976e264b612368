"""Experts of a service that are not on its device: the offload clock's passes, as time of an iteration.

Passes of growing numbers of tokens are played twice by the driver of offload runs, with the scenario's tiers
and policies and with all experts on the device. The difference is what an iteration of that many tokens waits
for links, host and misses; the request clock adds it to its own price of the iteration.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from moesim.errors import InputError, Problem
from moesim.memory.caches import cache_policies
from moesim.offload import Offload, executors, prefetchers, simulate
from moesim.offload.rates import hybrid_rates
from moesim.scenario.offload import seconds_of
from moesim.scenario.offloading import Offloading, build_offload, demand_for
from moesim.scenario.resolve import Resolved
from moesim.scenario.schema import BatchSection, OffloadSection, Scenario
from moesim.serving.away import ExpertsAway
from moesim.serving.deployment import Deployment

SECTIONS = ("memory", "executor")
"""Sections that say where experts are and who computes them."""
TOKENS = (1, 4, 16, 64, 256, 1000)
FEW = 16
MOST_PASSES, LEAST_PASSES, MOST_TRAFFIC = 12, 2, 2000
"""Passes that are measured, after as many that fill the caches; fewer where each has many tokens."""
MOST_PASS_TOKENS = 4096
"""Beyond it the last slope answers: such a pass has met every expert."""


def is_offloaded(scenario: Scenario) -> bool:
    """Whether a service keeps experts outside its device."""
    return any(name in scenario.model_fields_set for name in SECTIONS)


def experts_away(resolved: Resolved, deployment: Deployment, num_instances: int) -> ExpertsAway:
    """Time of iterations of a deployment beside the experts that its device lacks.

    Raises
    ------
    InputError
        Not one instance on one device, no experts, or no number of experts to hold.
    InfeasibleError
        The tiers cannot hold the model.
    """
    scenario = resolved.scenario
    _check(scenario, deployment, num_instances)
    most = min(deployment.token_budget, MOST_PASS_TOKENS)
    decodes = deployment.sequence_limit * (1 + deployment.drafts)
    grid = [*(n for n in TOKENS if n < most), most]
    decode, prefill, hits = (np.zeros(len(grid)) for _ in range(3))
    # the most tokens that any point asks for: their traffic is drawn once
    like = _passes(resolved, most, "prefill")
    for place, tokens in enumerate(grid):
        built = _passes(resolved, tokens, "prefill" if tokens > decodes else "decode", like)
        decode[place], hits[place] = _beside_resident(built)
        # prompts of a few tokens, and decodes of more than there are sequences, are the other's
        prefill[place] = decode[place]
        if FEW < tokens <= decodes:
            prefill[place] = _beside_resident(_passes(resolved, tokens, "prefill", like))[0]
    points = np.array(grid, dtype=np.float64)
    held = like.tiers.parts["expert cache"]
    return ExpertsAway(points, decode, prefill, hits, held, hybrid_rates(scenario.executor.program).sigma)


def _check(scenario: Scenario, deployment: Deployment, num_instances: int) -> None:
    problems = []
    if not deployment.model.num_experts:
        problems.append(Problem("memory", "a dense model has no experts to keep elsewhere"))
    if deployment.plan.num_devices != 1 or num_instances != 1:
        message = "experts outside the device are simulated for one instance on one device"
        problems.append(Problem("plan", f"got {deployment.plan.num_devices} x {num_instances}; {message}"))
    if scenario.memory.cache.slots_per_layer is None:
        accepted = "how many experts of each layer the device holds: what is left is for keys and values"
        problems.append(Problem("memory.cache.slots_per_layer", f"missing; accepted: {accepted}"))
    if scenario.executor.attention != "device":
        got = f"got {scenario.executor.attention!r}; accepted: device (the question is serve)"
        problems.append(Problem("executor.attention", got))
    if problems:
        raise InputError(problems)


def _passes(
    resolved: Resolved, tokens: int, phase: Literal["decode", "prefill"], like: Offloading | None = None
) -> Offloading:
    """Passes of so many tokens, without a context: attention is the request clock's."""
    passes = max(min(MOST_PASSES, MOST_TRAFFIC // tokens), LEAST_PASSES)
    section = OffloadSection(phase=phase, passes=passes, warmup_passes=passes)
    asked = {"batch": BatchSection(tokens_per_rank=tokens), "offload": section}
    asked_for = replace(resolved, scenario=resolved.scenario.model_copy(update=asked))
    if like is not None:
        like = replace(like, demand=demand_for(asked_for.scenario, like.traffic))
    return build_offload(asked_for, like)


def _beside_resident(built: Offloading) -> tuple[float, float]:
    """What a pass takes beside one with all experts on the device [s], and the share of hits."""
    seed, demand = built.scenario.seed, built.demand
    done = simulate(demand, built.costs, built.offload, seed=seed)
    whole = Offload(
        cache_policies.build("lru", {}, field="memory.cache"),
        np.full_like(built.tiers.slots, demand.num_experts),
        executors.build("device", {}, field="executor"),
        prefetchers.build("none", {}, field="memory.prefetch"),
        filled=True,
    )
    resident = simulate(demand, built.costs, whole, seed=seed)
    hits = done.tally.hits / max(done.tally.lookups, 1)
    return seconds_of(built, done) - seconds_of(built, resident), hits
