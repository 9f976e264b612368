"""Serving scenario to a service: deployments, engines, workload, and what happens on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moesim.errors import InfeasibleError, InputError, Problem
from moesim.files import find
from moesim.memory.ledger import Occupancy, ledger
from moesim.scenario.resolve import Resolved
from moesim.scenario.schema import Scenario
from moesim.scenario.serving_experts import ServedExperts, served_experts
from moesim.scenario.serving_pools import Pool, pools_of
from moesim.scenario.serving_schema import LengthSection
from moesim.serving.deployment import ROUTED, Deployment
from moesim.serving.expert_steps import ExpertsOf
from moesim.serving.instances import iterations_of
from moesim.serving.iterations import Iterations
from moesim.serving.one_launch import Spread
from moesim.serving.policies import (
    Lengths,
    arrival_processes,
    length_distributions,
    routers,
)
from moesim.serving.profiles import Profile
from moesim.serving.requests import closed_loop, open_loop, read_requests, with_prefixes, with_turns
from moesim.serving.service import Change, InstanceSpec, Service, Transfer
from moesim.serving.workload import Workload

WEIGHTS = ("attention and dense weights", "embedding and head", ROUTED)
"""Parts of the memory ledger that a new instance has to load."""


@dataclass(frozen=True)
class Serving:
    """A serving scenario as objects.

    Attributes
    ----------
    resolved : Resolved
    profile : Profile
    pools : tuple of Pool
    workload : Workload
    warnings : tuple of str
    experts : ServedExperts or None
        Experts of every iteration; None: those of typical batches.
    """

    resolved: Resolved
    profile: Profile
    pools: tuple[Pool, ...]
    workload: Workload
    warnings: tuple[str, ...]
    experts: ServedExperts | None = None

    @property
    def scenario(self) -> Scenario:
        """Validated values."""
        return self.resolved.scenario

    @property
    def num_devices(self) -> int:
        """Devices of all instances."""
        return sum(pool.count * pool.deployment.plan.num_devices for pool in self.pools)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence. [tokens]"""
        return int((self.workload.input_tokens + self.workload.output_tokens).max())

    def iterations(self, scale: float = 1.0, *, compared: bool = False) -> list[Iterations]:
        """Prices of the iterations of each pool.

        ``scale`` is a draw of their error; what is only ``compared`` with other runs is looked up.
        """
        how = "memo" if compared else self.scenario.serving.step_times
        spread = Spread.of(self.workload.input_tokens, self.workload.output_tokens)
        return [
            iterations_of(
                pool.deployment, pool.engine, how=how, longest=self.longest, scale=scale, spread=spread
            )
            for pool in self.pools
        ]

    @cached_property
    def _expert_makers(self) -> list[Callable[[float], ExpertsOf] | None]:
        if self.experts is None:
            return [None for _ in self.pools]
        return [self.experts.of(pool.deployment, _link_rate(pool.deployment)) for pool in self.pools]

    def service(
        self,
        iterations: list[Iterations],
        progress: Callable[[int], None] | None = None,
        *,
        scale: float = 1.0,
    ) -> Service:
        """The service, ready to be run; ``scale`` is that of its iterations."""
        section = self.scenario.serving
        added = {change.instance for change in section.changes if change.kind == "add"}
        specs: list[InstanceSpec] = []
        for pool, prices, maker in zip(self.pools, iterations, self._expert_makers, strict=True):
            experts = maker(scale) if maker else None
            for _ in range(pool.count):
                ranks = pool.deployment.num_ranks
                starts = len(specs) not in added
                specs.append(InstanceSpec(pool.engine, prices, ranks, pool.role, starts, experts))
        return Service(
            self.workload,
            specs,
            routers.build(section.router.policy, section.router.params, field="serving.router"),
            changes=[self._change(index) for index in range(len(section.changes))],
            transfer=self._transfer(),
            seed=self.scenario.seed,
            progress=progress,
        )

    def _change(self, index: int) -> Change:
        section = self.scenario.serving.changes[index]
        count = sum(pool.count for pool in self.pools)
        if section.instance >= count:
            accepted = f"0 to {count - 1}, an instance of the service"
            msg = f"serving.changes.{index}.instance"
            raise InputError.at(msg, section.instance, accepted)
        if section.kind != "add":
            return Change(section.at_s, section.kind, section.instance, section.factor)
        ready_s = self.weights_s(section.instance) if section.ready_s is None else section.ready_s
        return Change(section.at_s + ready_s, "up", section.instance)

    def told_changes(self) -> list[dict[str, float | str]]:
        """What happens to instances, and when, in words."""
        told: list[dict[str, float | str]] = []
        for index, section in enumerate(self.scenario.serving.changes):
            words = {
                "down": "dies",
                "up": "is back",
                "drain": "drains",
                "slow": f"takes {section.factor:g}x as long",
                "add": f"joins, asked for at {section.at_s:g} s",
            }
            at_s = self._change(index).at_s
            told.append({"at_s": at_s, "label": f"{section.instance} {words[section.kind]}"})
        return told

    def weights_s(self, instance: int) -> float:
        """Time in which the weights of an instance come over the links of its devices. [s]"""
        owner = [pool for pool in self.pools for _ in range(pool.count)][instance]
        return _weight_bytes(owner.deployment) / _link_rate(owner.deployment)

    def _transfer(self) -> Transfer:
        source = self.pools[0].deployment
        if len(self.pools) == 1:
            return Transfer()
        fabric = source.costs.fabric
        return Transfer(fabric.scale_out_latency_s, source.cache_bytes_per_token() / _link_rate(source))


def _weight_bytes(deployment: Deployment) -> float:
    """Weights of the fullest rank. [bytes]"""
    book = ledger(
        deployment.model,
        deployment.plan,
        deployment.dtypes,
        Occupancy(0.0, 0.0, 1.0),
        capacity_bytes=deployment.cluster.node.device.main_memory.capacity_bytes,
        reserved_fraction=0.0,
    )
    weights = float(np.max(np.sum([book.parts[name] for name in WEIGHTS], axis=0)))
    return weights if deployment.away is None else weights - float(book.parts[ROUTED].max())


def _link_rate(deployment: Deployment) -> float:
    """Bytes a second that reach a device from another instance. [bytes/s]"""
    fabric = deployment.costs.fabric
    one_domain = deployment.cluster.num_domains == 1
    return fabric.scale_up_bytes_per_s if one_domain else fabric.nic_rate


def build_serving(resolved: Resolved) -> Serving:
    """Objects of a serving scenario; every contradiction is an error here.

    Raises
    ------
    InputError
        Unknown policy, parameter or engine, or sections that contradict each other.
    InfeasibleError
        The weights do not fit, or the instances need more devices than there are.
    """
    scenario = resolved.scenario
    profile, pools, warnings = pools_of(resolved)
    workload = _workload(scenario)
    experts, told = None, list[str]()
    if pools[0].deployment.away is None:
        experts, told = served_experts(scenario, pools[0].deployment, workload.num_requests)
    serving = Serving(resolved, profile, pools, workload, (*warnings, *told), experts)
    if serving.num_devices > scenario.cluster.num_devices:
        have = scenario.cluster.num_devices
        message = f"the instances need {serving.num_devices} devices, the cluster has {have}"
        raise InfeasibleError(message)
    return serving


def _lengths(given: int | LengthSection, field: str) -> Lengths:
    if isinstance(given, int):
        return length_distributions.build("fixed", {"tokens": given}, field=field)
    return length_distributions.build(given.kind, given.params, field=field)


def _workload(scenario: Scenario) -> Workload:
    section, seed = scenario.workload, scenario.seed
    if section is None:
        raise InputError([Problem("workload", "missing (the question is serve)")])
    inputs = _lengths(section.input_tokens, "workload.input_tokens")
    outputs = _lengths(section.output_tokens, "workload.output_tokens")
    count, warmup = section.num_requests, section.warmup_requests
    if section.concurrency is not None and section.kind != "closed_loop":
        raise InputError.at("workload.concurrency", section.concurrency, "absent unless kind is closed_loop")
    if section.kind in {"closed_loop", "file"} and section.params:
        unknown = next(iter(section.params))
        msg = f"workload.{unknown}"
        raise InputError.at(msg, section.params[unknown], f"no such field of {section.kind}")
    if section.kind == "closed_loop":
        if section.concurrency is None:
            raise InputError([Problem("workload.concurrency", "missing (kind is closed_loop)")])
        workload = closed_loop(
            section.concurrency, section.ramp_s, inputs, outputs, count, seed=seed, warmup=warmup
        )
    elif section.kind == "file":
        if section.file is None:
            raise InputError([Problem("workload.file", "missing (kind is file)")])
        path = find(section.file, "workloads", field="workload.file", suffixes=(".csv", ".jsonl"))
        limit = count if "num_requests" in section.model_fields_set else None
        workload = read_requests(path, limit=limit, warmup=warmup)
    else:
        process = arrival_processes.build(section.kind, section.params, field="workload")
        workload = open_loop(process, inputs, outputs, count, seed=seed, warmup=warmup)
    if warmup >= workload.num_requests:
        accepted = f"fewer than the {workload.num_requests} requests"
        raise InputError.at("workload.warmup_requests", warmup, accepted)
    if section.prefixes is not None:
        workload = with_prefixes(workload, section.prefixes.groups, section.prefixes.tokens, seed=seed)
    if section.turns is not None:
        workload = with_turns(workload, section.turns.requests, section.turns.think_s)
    return workload
