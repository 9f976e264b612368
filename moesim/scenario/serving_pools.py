"""Deployments of a serving scenario: plan, engine and machine of the instances of each role."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from moesim.errors import InputError, Problem
from moesim.model import from_hf
from moesim.parallel.plan import Plan
from moesim.scenario.machine import communication_of
from moesim.scenario.resolve import Resolved
from moesim.scenario.schema import Scenario
from moesim.scenario.serving_offload import experts_away, is_offloaded
from moesim.scenario.serving_schema import EngineSection
from moesim.serving.deployment import Deployment
from moesim.serving.drafting import most_spread
from moesim.serving.engine import Engine, Hold
from moesim.serving.expert_draws import Generator
from moesim.serving.instances import engine_of
from moesim.serving.policies import batching_policies
from moesim.serving.profiles import DEFAULT_ACCEPTANCE, NEWEST, Profile, Speculation, load_profile
from moesim.serving.service import Role
from moesim.steps.overlap import overlap_policies

REPLACED = ("memory_fraction", "block_tokens", "async_scheduling", "chunked_prefill", "reserve_whole")
"""Fields of the engine section that replace one of the profile under the same name."""
UNREAD = ("batch", "bands", "offload", "training", "interpreter")
"""Sections of other questions: a service says so where they are given."""


@dataclass(frozen=True)
class Pool:
    """Instances of one role.

    Attributes
    ----------
    role : str
    count : int
        Instances that are there from the start, or will be added.
    deployment : Deployment
    engine : Engine
    """

    role: Role
    count: int
    deployment: Deployment
    engine: Engine


def pools_of(resolved: Resolved) -> tuple[Profile, tuple[Pool, ...], tuple[str, ...]]:
    """Engine profile, instances of every role, and warnings.

    Raises
    ------
    InputError
        Unknown policy, parameter or engine, or sections that contradict each other.
    InfeasibleError
        The weights do not fit.
    """
    scenario = resolved.scenario
    section, warnings = scenario.serving, _unread(scenario)
    profile = _profile(scenario, warnings)
    if (section.prefill is None) != (section.decode is None):
        raise InputError([Problem("serving", "prefill and decode pools need each other; one is missing")])
    wanted: list[tuple[Role, int, dict[str, Any] | None]] = [("both", section.instances, None)]
    if section.prefill is not None and section.decode is not None:
        if section.instances != 1:
            raise InputError.at("serving.instances", section.instances, "absent beside prefill and decode")
        wanted = [
            ("prefill", section.prefill.instances, section.prefill.plan),
            ("decode", section.decode.instances, section.decode.plan),
        ]
    if not scenario.faults.is_empty and sum(count for _, count, _ in wanted) > 1:
        accepted = "one instance, or a change of kind slow in serving.changes"
        raise InputError([Problem("faults", f"are those of one instance's devices; accepted: {accepted}")])
    pools = []
    for role, count, own_plan in wanted:
        deployment = _deployment(resolved, profile, _plan(scenario, own_plan, f"serving.{role}.plan"))
        if is_offloaded(scenario):
            instances = sum(number for _, number, _ in wanted)
            deployment = replace(deployment, away=experts_away(resolved, deployment, instances))
        changes = _engine_changes(scenario, deployment)
        pools.append(Pool(role, count, deployment, engine_of(deployment, changes)))
    _check_overlap(scenario, pools)
    return profile, tuple(pools), tuple(warnings)


def _deployment(resolved: Resolved, profile: Profile, plan: Plan) -> Deployment:
    scenario = resolved.scenario
    model = from_hf(resolved.tree.sub("model"), resolved.model_name)
    generator = Generator()
    if scenario.routing is not None and scenario.routing.generator is not None:
        generator = Generator.of(scenario.routing.generator, scenario.routing.params)
    return Deployment(
        model,
        plan,
        scenario.dtypes.of_model(),
        scenario.cluster,
        profile,
        max_num_batched_tokens=scenario.engine.max_num_batched_tokens,
        max_num_seqs=scenario.engine.max_num_seqs,
        generator=generator,
        redundant_experts=scenario.placement.redundant_experts if model.num_experts else 0,
        overlap=overlap_policies.build(scenario.overlap.policy, scenario.overlap.params, field="overlap"),
        communication=communication_of(scenario.network),
        faults=scenario.faults,
    )


def _check_overlap(scenario: Scenario, pools: list[Pool]) -> None:
    """A policy that no instance could follow is an error: there is nothing to overlap."""
    overlap = pools[0].deployment.overlap
    if overlap is None or overlap.num_batches == 1 or any(pool.deployment.overlaps for pool in pools):
        return
    accepted = "none: without experts and plan.attention_dp > 1 no exchange is there to be hidden"
    raise InputError.at("overlap.policy", scenario.overlap.policy, accepted)


def _unread(scenario: Scenario) -> list[str]:
    given = [name for name in UNREAD if name in scenario.model_fields_set]
    return [f"{name}: not read (the question is serve)" for name in given]


def _plan(scenario: Scenario, own: dict[str, Any] | None, field: str) -> Plan:
    values = scenario.plan
    if own is not None:
        unknown = [key for key in own if key not in type(values).model_fields]
        if unknown:
            accepted = f"fields of plan: {', '.join(type(values).model_fields)}"
            msg = f"{field}.{unknown[0]}"
            raise InputError.at(msg, own[unknown[0]], accepted)
        values = type(values)(**own)
    plan = Plan.of(values.tp, values.pp, values.attention_dp, values.ep, values.moe_tp)
    if values.num_devices not in (None, plan.num_devices):
        accepted = f"{plan.num_devices} (pp * tp * attention_dp)"
        where = "plan.num_devices" if own is None else f"{field}.num_devices"
        raise InputError.at(where, values.num_devices, accepted)
    return plan


def _profile(scenario: Scenario, warnings: list[str]) -> Profile:
    section = scenario.engine
    profile = load_profile(section.name, section.version or NEWEST, where="engine")
    warnings += [profile.stand_in] if profile.stand_in else []
    changes: dict[str, object] = {}
    for name in REPLACED:
        value = getattr(section, name)
        if value is not None:
            changes[name] = value
    changes |= profile.with_exchanges(
        section.all_to_all, section.overlap_decode_tokens, section.overlap_prefill_tokens
    )
    changes["speculation"] = _speculation(section, profile.speculation, warnings)
    return profile.model_copy(update=changes)


def _speculation(section: EngineSection, known: Speculation, warnings: list[str]) -> Speculation:
    """Drafts as the scenario has them, else as the engine's version does."""
    changes: dict[str, object] = {}
    if section.draft_tokens is not None:
        changes = dict.fromkeys(("draft_tokens", "draft_tokens_attention_dp"), section.draft_tokens)
    acceptance = known.acceptance if section.acceptance is None else section.acceptance
    if section.draft_tokens and not acceptance and section.acceptance is None:
        acceptance = DEFAULT_ACCEPTANCE
        warnings.append(f"engine.acceptance: not given, {acceptance} is assumed")
    spread, most = section.acceptance_spread, most_spread(acceptance)
    if spread and spread >= most:
        accepted = f"below {most:.3g}, what a mean of {acceptance:g} allows"
        raise InputError.at("engine.acceptance_spread", spread, accepted)
    return known.model_copy(update=changes | {"acceptance": acceptance, "acceptance_spread": spread})


def _engine_changes(scenario: Scenario, deployment: Deployment) -> dict[str, Any]:
    """Fields of the engine that the scenario sets."""
    section = scenario.engine
    changes: dict[str, Any] = {"prefix_caching": section.prefix_caching, "preemption": section.preemption}
    drafting = deployment.drafting
    if drafting is not None:
        changes["drafting"] = replace(drafting, seed=scenario.seed)
    elif section.draft_tokens:
        accepted = "0: the model has no layers of multi-token prediction"
        raise InputError.at("engine.draft_tokens", section.draft_tokens, accepted)
    if section.num_gpu_blocks is not None:
        changes["num_blocks"] = section.num_gpu_blocks
    if section.hold is not None:
        fill = float("inf") if section.hold.fill is None else section.hold.fill
        changes["hold"] = Hold(section.hold.iterations, section.hold.gathers, fill)
    if section.batching is not None:
        changes["batching"] = batching_policies.build(section.batching, field="engine.batching")
    if section.preemption == "swap":
        tokens = section.block_tokens or deployment.profile.block_tokens
        link = scenario.cluster.node.host.pcie
        if link is None:
            raise InputError.at("engine.preemption", "swap", "recompute: the node describes no host.pcie")
        held = tokens * deployment.cache_bytes_per_token()
        changes["swap_s_per_block"] = held / link.bandwidth_bytes_per_s
    budget, most = deployment.token_budget, deployment.sequence_limit
    if most > budget:
        accepted = f"at most max_num_batched_tokens = {budget}: every sequence needs a token of an iteration"
        raise InputError.at("engine.max_num_seqs", most, accepted)
    return changes
