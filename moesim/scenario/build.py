"""Resolved scenario to everything a step needs: model, plan, fabric, costs, traffic, placement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem
from moesim.evidence import rng_for
from moesim.files import Tree, find
from moesim.memory.ledger import Ledger, Occupancy
from moesim.memory.remedy import Question
from moesim.memory.remedy import check as check_memory
from moesim.model import Dtypes, ModelSpec, from_hf
from moesim.model.dtypes import bytes_per_element
from moesim.model.ops import Segment
from moesim.network.exchanges.base import Phase
from moesim.network.exchanges.probe import Even, decided
from moesim.network.fabric import AUTO
from moesim.parallel.plan import Plan
from moesim.parallel.plan import check as check_plan
from moesim.placement import Placement, Solution, placement_methods
from moesim.placement import Problem as PlacementProblem
from moesim.placement.knowledge import hops, traffic_parts
from moesim.placement.registry import needs_of
from moesim.placement.store import read_placement
from moesim.scenario.machine import Machine, machine_of
from moesim.scenario.resolve import Resolved
from moesim.scenario.schema import PlacementSection, Scenario
from moesim.scenario.traffic import Traffic, load_traffic, sample_tokens
from moesim.steps.layers import Lane, Stage, StageBuilder
from moesim.steps.overlap import Overlap, overlap_policies
from moesim.steps.routing import CopyTable, ExpertRanks, RoutedBatch, route


@dataclass(frozen=True)
class Built:
    """A scenario as objects, ready to be turned into programs.

    Attributes
    ----------
    resolved : Resolved
        Where it came from.
    model, plan, dtypes, overlap
        What the step builder takes.
    machine : Machine
        Costs and link classes.
    memory, ledger
        What is resident on every rank; it fits.
    traffic, problem, solution
        Routed tokens, the placement problem on their fit part and its solution; None for a dense model.
    """

    resolved: Resolved
    model: ModelSpec
    plan: Plan
    dtypes: Dtypes
    overlap: Overlap
    machine: Machine
    memory: Question
    ledger: Ledger
    traffic: Traffic | None
    problem: PlacementProblem | None
    solution: Solution | None

    @property
    def scenario(self) -> Scenario:
        """Validated values."""
        return self.resolved.scenario

    @property
    def num_slots(self) -> int:
        """Physical expert slots of a layer."""
        return self.solution.placement.num_slots if self.solution else 0

    def placed(self, section: PlacementSection) -> Built:
        """The same scenario and traffic with another placement.

        Raises
        ------
        InputError
            Unknown method or parameter, or slots that do not fill the ranks.
        InfeasibleError
            The replicas do not fit.
        """
        if self.traffic is None:
            raise InputError([Problem("placement", "a dense model has no experts to place")])
        scenario = self.scenario.model_copy(update={"placement": section})
        tree = Tree(
            self.resolved.tree.data | {"placement": section.model_dump(exclude_unset=True)},
            self.resolved.tree.positions,
            self.resolved.tree.source,
        )
        check_plan(
            self.plan,
            self.model,
            self.model.num_experts + section.redundant_experts,
            scenario.cluster.num_devices,
        )
        memory = _memory_question(scenario, self.model, self.plan, self.dtypes)
        problem, solution = placed(scenario, self.traffic, self.plan)
        return replace(
            self,
            resolved=replace(self.resolved, scenario=scenario, tree=tree),
            memory=memory,
            ledger=check_memory(memory),
            problem=problem,
            solution=solution,
        )

    def stages(self, machine: Machine | None = None) -> list[StageBuilder]:
        """Builder of every pipeline stage on this machine, or on another one."""
        machine = machine or self.machine
        plan = self.plan
        layers = plan.stage_layers(self.model.num_layers)
        return [
            StageBuilder(
                model=self.model,
                stage=Stage(
                    index=index,
                    ranks=plan.stage_ranks(index),
                    tp=plan.tp,
                    ep=plan.ep,
                    moe_tp=plan.moe_tp,
                    attention_dp=plan.attention_dp,
                    layers=own,
                    is_first=index == 0,
                    is_last=index == plan.pp - 1,
                ),
                dtypes=self.dtypes,
                dispatch_dtype=self.scenario.dtypes.dispatch,
                cost=machine.cost,
                fabric=machine.fabric,
                num_ranks=plan.num_devices,
                num_slots=self.num_slots,
                links=machine.links,
            )
            for index, own in enumerate(layers)
        ]


def build(resolved: Resolved) -> Built:
    """Objects of a resolved scenario; every contradiction between its parts is an error here.

    Raises
    ------
    InputError
        The plan, the placement or the trace does not go with the model or the cluster.
    InfeasibleError
        A rank needs more memory than it has.
    """
    scenario = resolved.scenario
    model = from_hf(resolved.tree.sub("model"), resolved.model_name)
    section = scenario.plan
    plan = Plan.of(section.tp, section.pp, section.attention_dp, section.ep, section.moe_tp)
    redundant = scenario.placement.redundant_experts if model.num_experts else 0
    check_plan(plan, model, model.num_experts + redundant, scenario.cluster.num_devices)
    if section.num_devices not in (None, plan.num_devices):
        accepted = f"{plan.num_devices} (pp * tp * attention_dp)"
        raise InputError.at("plan.num_devices", section.num_devices, accepted)
    if (scenario.routing is None) != (model.num_experts == 0):
        need = "a dense model has no routing" if model.num_experts == 0 else "missing (the model has experts)"
        raise InputError([Problem("routing", need)], source=resolved.tree.source)
    dtypes = scenario.dtypes.of_model()
    overlap = overlap_policies.build(scenario.overlap.policy, scenario.overlap.params, field="overlap")
    _check_batch(scenario, plan, overlap)
    memory = _memory_question(scenario, model, plan, dtypes)
    ledger = check_memory(memory)
    traffic = problem = solution = None
    if scenario.routing is not None:
        step_tokens = scenario.batch.tokens_per_rank * plan.attention_dp
        traffic = load_traffic(scenario.routing, model, step_tokens, scenario.seed)
        problem, solution = placed(scenario, traffic, plan)
    scenario = _with_exchange(scenario, model, plan)
    resolved = replace(resolved, scenario=scenario)
    machine = machine_of(
        scenario.cluster, plan.num_devices, scenario.network, scenario.faults, scenario.named_engine
    )
    return Built(resolved, model, plan, dtypes, overlap, machine, memory, ledger, traffic, problem, solution)


def _with_exchange(scenario: Scenario, model: ModelSpec, plan: Plan) -> Scenario:
    """Scenario whose exchange is decided, where neither it nor what it sends once was named."""
    network = scenario.network
    if network.deduplicate != "auto" or network.exchange != AUTO or plan.attention_dp == 1:
        return scenario
    moe = next((layer.moe for layer in model.layers if layer.moe is not None), None)
    if moe is None:
        return scenario
    fabric = machine_of(scenario.cluster, plan.num_devices, network, scenario.faults).fabric
    row_bytes: dict[Phase, float] = {
        "dispatch": model.routed_hidden * bytes_per_element(scenario.dtypes.dispatch),
        "combine": model.routed_hidden * bytes_per_element(scenario.dtypes.activations),
    }
    tokens = scenario.batch.tokens_per_rank / plan.tp
    even = Even(plan.stage_ranks(0), tokens, moe.num_experts, moe.top_k, row_bytes)
    chosen = decided(fabric, even)
    update = {"exchange": chosen.exchange, "deduplicate": chosen.deduplicate}
    return scenario.model_copy(update={"network": network.model_copy(update=update)})


def _memory_question(scenario: Scenario, model: ModelSpec, plan: Plan, dtypes: Dtypes) -> Question:
    """What one attention group keeps at once: the sequences of every microbatch in flight."""
    batch = scenario.batch
    decode = scenario.question == "decode_step"
    sequences = batch.tokens_per_rank if decode else batch.sequences_per_rank or 1
    occupancy = Occupancy(
        num_sequences=sequences * plan.pp,
        context_tokens=batch.context_tokens + batch.tokens_per_rank / sequences,
        step_tokens=batch.tokens_per_rank,
        redundant_experts=scenario.placement.redundant_experts if model.num_experts else 0,
    )
    capacity_bytes = scenario.cluster.node.device.main_memory.capacity_bytes
    return Question(model, plan, dtypes, occupancy, capacity_bytes, scenario.memory.reserved_fraction)


def _check_batch(scenario: Scenario, plan: Plan, overlap: Overlap) -> None:
    tokens = scenario.batch.tokens_per_rank
    if tokens < overlap.num_batches:
        accepted = (
            f"at least {overlap.num_batches}, one token for each batch of overlap {scenario.overlap.policy}"
        )
        raise InputError.at("batch.tokens_per_rank", tokens, accepted)
    sequences = scenario.batch.sequences_per_rank
    if sequences is not None and (scenario.question == "decode_step" or sequences > tokens):
        accepted = "absent in decode_step (one token a sequence), else at most tokens_per_rank"
        raise InputError.at("batch.sequences_per_rank", sequences, accepted)


def placed(scenario: Scenario, traffic: Traffic, plan: Plan) -> tuple[PlacementProblem, Solution]:
    """Placement problem on the fit traffic, and its solution."""
    section = scenario.placement
    problem = PlacementProblem.with_redundancy(
        traffic.fit.counts(),
        plan.ep,
        section.redundant_experts,
        ranks_per_node=_ep_ranks_per_node(scenario, plan),
    )
    if section.file is not None:
        return problem, Solution(_from_file(section.file, problem))
    method = placement_methods.build(section.method, section.params, field="placement")
    rng = rng_for(scenario.seed, "placement/batches")
    known = traffic_parts(traffic.fit, needs_of(method), rng)
    links = hops(plan.ep, problem.ranks_per_node)
    # every rank holds as many tokens, and experts come from where engines put them
    costs = np.tile(links.mean(axis=0), (problem.num_layers, 1))
    start = placement_methods.build("linear").solve(problem, rng).placement
    problem = replace(problem, link_costs=links, rank_costs=costs, start=start, **known)
    return problem, method.solve(problem, rng_for(scenario.seed, "placement"))


def _ep_ranks_per_node(scenario: Scenario, plan: Plan) -> int | None:
    """Expert-parallel ranks that share a scale-up domain; None where that is all of them or uneven."""
    per_domain = scenario.cluster.devices_per_domain // plan.moe_tp
    return per_domain if 0 < per_domain < plan.ep and plan.ep % per_domain == 0 else None


def _from_file(name: str, problem: PlacementProblem) -> Placement:
    placement = read_placement(find(name, "placements", field="placement.file")).placement
    wanted = (problem.num_layers, problem.num_experts, problem.num_ranks)
    got = (placement.num_layers, placement.num_experts, placement.num_ranks)
    if got != wanted:
        accepted = f"(layers, experts, ranks) = {wanted}"
        raise InputError.at("placement.file", got, accepted)
    return placement


def routed_lanes(built: Built, placement: Placement | None, num_batches: int) -> list[list[list[Lane]]]:
    """Lanes of ``num_batches`` sampled steps: ``[batch][stage][half]``.

    Tokens come from the held-out traffic, so a placement is judged on what it has not seen. The same
    seed gives the same tokens whatever the placement.
    """
    scenario = built.scenario
    halves = _halves(scenario.batch.tokens_per_rank, built.overlap.num_batches)
    result = []
    for batch in range(num_batches):
        ids = _sampled(built, batch)
        lanes: list[list[Lane]] = []
        for stage in built.stages():
            rows = [built.model.moe_layers.index(layer) for layer in stage.moe_layers]
            router = _Router(built, placement, stage, rows) if placement and rows else None
            lanes.append(
                [
                    Lane(_segments(scenario, start, stop), router.route(ids, start, stop) if router else None)
                    for start, stop in halves
                ]
            )
        result.append(lanes)
    return result


def _sampled(built: Built, batch: int) -> NDArray[np.int64] | None:
    if built.traffic is None:
        return None
    phase = built.scenario.question.removesuffix("_step")
    rng = rng_for(built.scenario.seed, f"batch/{batch}")
    tokens = built.scenario.batch.tokens_per_rank
    return sample_tokens(built.traffic.held_out, tokens, built.plan.attention_dp, phase, rng)


def _halves(tokens: int, parts: int) -> list[tuple[int, int]]:
    edges = [tokens * part // parts for part in range(parts + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def _segments(scenario: Scenario, start: int, stop: int) -> tuple[Segment, ...]:
    """What tokens ``start`` to ``stop - 1`` of an attention group are: whole sequences, or a part of one."""
    batch = scenario.batch
    tokens = stop - start
    if scenario.question == "decode_step":
        return (Segment.decode(tokens, batch.context_tokens),)
    length = batch.tokens_per_rank / (batch.sequences_per_rank or 1)
    if tokens >= length:
        return (Segment.prefill(tokens / length, length, batch.context_tokens),)
    # a piece of one sequence also sees what came before it
    return (Segment.prefill(1, tokens, batch.context_tokens + start % length),)


class _Router:
    """Routes slices of each attention group's tokens on one stage."""

    def __init__(self, built: Built, placement: Placement, stage: StageBuilder, rows: Sequence[int]) -> None:
        self.built, self.rows = built, list(rows)
        ranks = stage.stage.ranks
        split = None if placement.split is None else placement.split[self.rows]
        self.table = CopyTable.of(placement.physical_to_logical[self.rows], placement.num_experts, split)
        fabric = built.machine.fabric
        domain = np.asarray(fabric.domain[ranks])
        self.shared_loads = (
            partial(fabric.topology.shared_loads, ranks=ranks) if len(fabric.topology.shared) else None
        )
        links = built.machine.links
        self.link_loads = None if links is None else partial(links.layer_loads, ranks=ranks)
        self.ranks = ExpertRanks(built.plan.ep_rank(), domain, placement.num_slots)

    def route(self, ids: NDArray[np.int64] | None, start: int, stop: int) -> RoutedBatch:
        """Routed batch of tokens ``start`` to ``stop - 1`` of every attention group."""
        assert ids is not None  # a placement exists only with traffic
        plan = self.built.plan
        tokens = self.built.scenario.batch.tokens_per_rank
        grouped = ids.reshape(plan.attention_dp, tokens, *ids.shape[1:])[:, start:stop][:, :, self.rows]
        group, position = np.divmod(np.arange(plan.attention_dp * (stop - start)), stop - start)
        source = group * plan.tp + position % plan.tp
        flat = grouped.reshape(-1, *grouped.shape[2:])
        deduplicate = self.built.machine.fabric.communication.deduplicate
        loads = self.shared_loads, self.link_loads
        return route(flat, source, self.table, self.ranks, deduplicate, *loads)
