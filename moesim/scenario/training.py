"""Training scenario to a set-up: model, plan, costs, routing, schedule."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from moesim.errors import InputError, Problem
from moesim.hardware.schema import Cluster
from moesim.kernels.choose import cost_of, engine_or_default
from moesim.memory.ledger import Ledger
from moesim.model import ModelSpec, from_hf
from moesim.model.dtypes import bytes_per_element
from moesim.network.exchanges.base import Phase
from moesim.network.exchanges.probe import Even, decided
from moesim.network.fabric import AUTO, Communication, Fabric
from moesim.parallel.train_plan import TrainPlan
from moesim.parallel.train_plan import check as check_plan
from moesim.scenario.machine import deduplication_of
from moesim.scenario.resolve import Resolved
from moesim.scenario.schema import PlanSection, Scenario
from moesim.scenario.training_errors import check_sections, located
from moesim.scenario.training_memory import checked_ledger, memory_of
from moesim.scenario.training_placing import kept_copies, placement_under, spread_of
from moesim.scenario.training_routing import Windows, shares_under, windows_of
from moesim.scenario.training_schema import TrainingSection
from moesim.training.backward import TrainCost
from moesim.training.framework import Framework, load_framework
from moesim.training.items import Options, TrainBatch, forward_s
from moesim.training.layout import Layout, even, given, weighted
from moesim.training.loads import Shares
from moesim.training.overlaps.base import TripleOverlap, triple_overlaps
from moesim.training.recompute import Recompute
from moesim.training.schedules.base import Geometry, Schedule, num_parts, schedules
from moesim.training.schedules.base import check as check_schedule
from moesim.training.spread import Spread
from moesim.training.states import States
from moesim.training.step import TrainSetup
from moesim.training.work import LayerWork

SEQUENTIAL = "none"


@dataclass(eq=False)
class Common:
    """What every plan of one scenario has in common; work of equal groups of ranks is priced once.

    Attributes
    ----------
    model : ModelSpec
    windows : Windows
        Traffic that routing is drawn from.
    """

    model: ModelSpec
    windows: Windows
    _works: dict[tuple[object, ...], LayerWork] = field(default_factory=dict)
    _layouts: dict[tuple[object, ...], Layout] = field(default_factory=dict)

    @classmethod
    def of(cls, resolved: Resolved) -> Common:
        """Model and traffic of a scenario."""
        model = from_hf(resolved.tree.sub("model"), resolved.model_name)
        return cls(model, windows_of(resolved.scenario, model))

    def work(self, scenario: Scenario, plan: TrainPlan, framework: Framework) -> LayerWork:
        """Pieces and links under a plan; stages and replicas change nothing in them."""
        key = _group_key(scenario, plan)
        if key not in self._works:
            self._works[key] = _work(scenario, self.model, plan, self.windows, framework)
        known = self._works[key]
        return known if known.plan == plan else replace(known, plan=plan)

    def layout(self, scenario: Scenario, work: LayerWork, parts: int) -> Layout:
        """Layers of each part, as equal in forward work as can be."""
        key = (parts, *_group_key(scenario, work.plan))
        if key not in self._layouts:
            layers = [forward_s(work.layer(index)) for index in range(self.model.num_layers)]
            last = forward_s(work.head()) + (forward_s(work.mtp()) if scenario.training.mtp else 0.0)
            self._layouts[key] = weighted(layers, parts, first=forward_s(work.embedding()), last=last)
        return self._layouts[key]


def _group_key(scenario: Scenario, plan: TrainPlan) -> tuple[object, ...]:
    """What of a plan the work of one group of ranks depends on."""
    section = scenario.training
    # copies of experts that stay for a step are shared by its microbatches
    shared = _microbatches(scenario, plan) if section.split.policy != "none" else 0
    group = (plan.num_devices, plan.tp, plan.cp, plan.ep, plan.etp, plan.folded)
    return (*group, section.micro_batch_size, shared)


@dataclass(frozen=True)
class Training:
    """A training scenario as objects.

    Attributes
    ----------
    resolved : Resolved
    setup : TrainSetup
    framework : Framework
    ledger : Ledger
        Memory of every stage's fullest rank; it fits.
    common : Common
        What other plans of the scenario share with it.
    """

    resolved: Resolved
    setup: TrainSetup
    framework: Framework
    ledger: Ledger
    common: Common

    @property
    def scenario(self) -> Scenario:
        """Validated values."""
        return self.resolved.scenario

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the reader should know about the routing."""
        return self.common.windows.warnings

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step. [tokens]"""
        section = self.scenario.training
        return section.global_batch_size * section.sequence_length


def build_training(resolved: Resolved, like: Training | None = None) -> Training:
    """Objects of a training scenario; every contradiction between its parts is an error here.

    ``like`` is the same scenario on another machine, whose routing is used again.

    Raises
    ------
    InputError
        Plan, batch, schedule or routing do not go with the model, the cluster or each other.
    InfeasibleError
        A rank needs more memory than it has.
    """
    scenario = resolved.scenario
    with located(resolved):
        check_sections(resolved)
        common = Common.of(resolved) if like is None else Common(like.common.model, like.common.windows)
        framework = load_framework(scenario.training.framework)
        setup = setup_of(scenario, common, framework)
        capacity, inner_dtype = memory_of(scenario)
        ledger = checked_ledger(setup, capacity, inner_dtype) if like is None else like.ledger
    return Training(resolved, setup, framework, ledger, common)


def setup_of(scenario: Scenario, common: Common, framework: Framework) -> TrainSetup:
    """Everything that a step of a scenario depends on.

    Raises
    ------
    InputError
        As :func:`build_training`.
    """
    section, model = scenario.training, common.model
    plan = train_plan(scenario.plan, scenario.cluster)
    check_plan(plan, model, scenario.cluster.num_devices)
    microbatches = _microbatches(scenario, plan)
    order = section.schedule
    schedule = schedules.build(order.policy, order.params, field="training.schedule")
    geometry = Geometry(plan.pp, microbatches, plan.vpp)
    check_schedule(schedule, geometry, field="training.schedule")
    _check_overlap(section, plan, schedule)
    work = common.work(scenario, plan, framework)
    return TrainSetup(
        work=work,
        layout=_layout(scenario, common, work, num_parts(schedule, geometry)),
        schedule=schedule,
        num_microbatches=microbatches,
        recompute=recompute_of(section),
        host=framework.host(captured=section.graphs == "full"),
        states=States(
            sharding=section.sharding,
            gradients=section.gradient_dtype,
            moments=section.moment_dtype,
            offload_fraction=section.optimizer_offload_fraction,
            **kept_copies(section.split),
        ),
        overlap_reduce=section.overlap_gradient_reduce,
        overlap_gather=section.overlap_parameter_gather,
        mtp=section.mtp,
    )


def _check_overlap(section: TrainingSection, plan: TrainPlan, schedule: Schedule) -> None:
    """Make sure that an overlap of the expert layer has exchanges of its own to hide.

    Raises
    ------
    InputError
        With everything that hides them otherwise, or that is not described beside it.
    """
    named = section.overlap.policy
    if named == SEQUENTIAL:
        return
    wrong = {
        "training.schedule": schedule.pairs and "one without pairs, which hide the same exchanges",
        "plan.ep": plan.ep == 1 and "at least 2, for there is no exchange",
        "training.delayed_weight_gradient": section.delayed_weight_gradient and "false",
    }
    problems = [
        Problem(field, f"goes not with training.overlap {named}; accepted: {accepted}")
        for field, accepted in wrong.items()
        if accepted
    ]
    if problems:
        raise InputError(problems)


def train_plan(section: PlanSection, cluster: Cluster) -> TrainPlan:
    """Plan of a section; data parallelism fills the devices, experts stay whole unless said otherwise.

    Raises
    ------
    InputError
        Fields of serving, or devices that the other degrees do not divide.
    """
    problems = [
        Problem(f"plan.{name}", f"belongs to serving; accepted in training: {instead}")
        for name, value, instead in (
            ("attention_dp", section.attention_dp > 1, "dp"),
            ("moe_tp", section.moe_tp is not None, "etp"),
        )
        if value
    ]
    fixed = section.tp * section.cp * section.pp
    devices = section.num_devices or (section.dp or 0) * fixed or cluster.num_devices
    dp = section.dp or devices // fixed
    if dp * fixed != devices:
        accepted = f"a multiple of tp * cp * pp = {fixed}" + (
            f" times dp = {section.dp}" if section.dp else ""
        )
        problems.append(Problem("plan.num_devices", f"got {devices}; accepted: {accepted}"))
    if problems:
        raise InputError(problems)
    etp = section.etp or (1 if section.folded else section.tp)
    return TrainPlan(
        section.tp, section.cp, dp, section.pp, section.vpp, section.ep or 1, etp, section.folded
    )


def recompute_of(section: TrainingSection) -> Recompute:
    """Policy of a section: nothing, ``full``, or the named modules.

    Raises
    ------
    InputError
        An unknown module, or ``full`` beside others.
    """
    names = section.recompute
    if names == ("full",):
        return Recompute("full", method="block" if section.recompute_layers else "uniform",
                         num_layers=section.recompute_layers or 1)  # fmt: skip
    return Recompute("selective", names) if names else Recompute()


def _microbatches(scenario: Scenario, plan: TrainPlan) -> int:
    section = scenario.training
    each = section.micro_batch_size * plan.dp
    if section.global_batch_size % each:
        accepted = f"a multiple of micro_batch_size * dp = {each}"
        raise InputError.at("training.global_batch_size", section.global_batch_size, accepted)
    return section.global_batch_size // each


def _work(
    scenario: Scenario, model: ModelSpec, plan: TrainPlan, windows: Windows, framework: Framework
) -> LayerWork:
    section, cluster, dtypes = scenario.training, scenario.cluster, scenario.dtypes.of_model()
    shares = shares_under(windows, scenario, model, plan)
    spread = _spread(scenario, model, plan, windows, shares)
    batch = TrainBatch(section.micro_batch_size, section.sequence_length)
    fabric = _fabric(scenario, model, plan)
    narrow = bytes_per_element(dtypes.experts) < bytes_per_element(dtypes.activations)
    kernels = cost_of(cluster.node.device, engine_or_default(cluster.node.device, framework.kernels))
    options = Options(
        deduplicate=fabric.communication.deduplicate,
        dispatch_dtype=scenario.dtypes.dispatch,
        delayed_weight_gradient=section.delayed_weight_gradient,
        host_reads_counts=section.host_reads_counts,
        capacity_factor=section.capacity_factor,
        router_launches=framework.small_launches(framework.router_launches),
        fused_sinks=section.fused_sinks,
        captured_pieces=section.graphs == "partial",
        overlap=_overlap(section),
    )
    cost = TrainCost(kernels, section.gradient_dtype, quantised=narrow)
    return LayerWork(
        model, plan, dtypes, batch, cost, fabric, shares, options, cluster.node.device.num_units, spread
    )


def _spread(
    scenario: Scenario, model: ModelSpec, plan: TrainPlan, windows: Windows, shares: Shares
) -> Spread | None:
    """Who serves each draw's tokens; homes come from a given placement, or are found in all windows."""
    if not model.num_experts or plan.ep == 1:
        return None
    loads = shares[0] if windows.counts is None else windows.counts.sum(axis=0)
    homes = windows.homes or placement_under(scenario, model, plan, loads)
    section = scenario.training
    tokens = section.micro_batch_size * section.sequence_length / (plan.cp * plan.tp)
    copies = tokens * plan.etp * plan.ep * (model.mean_active_experts or model.top_k)
    return spread_of(scenario, plan, shares, copies, homes, _microbatches(scenario, plan))


def _overlap(section: TrainingSection) -> TripleOverlap | None:
    chosen = section.overlap
    policy = triple_overlaps.build(chosen.policy, chosen.params, field="training.overlap")
    return None if chosen.policy == SEQUENTIAL else policy


def _fabric(scenario: Scenario, model: ModelSpec, plan: TrainPlan) -> Fabric:
    """Links and algorithms; an exchange that is left open is decided by evenly routed tokens."""
    network, cluster = scenario.network, scenario.cluster
    communication = Communication(
        **network.model_dump(exclude={"background"}) | {"deduplicate": deduplication_of(network)}
    )
    fabric = Fabric.of(cluster, plan.num_devices, communication, scenario.faults)
    moe = next((layer.moe for layer in model.layers if layer.moe is not None), None)
    if moe is None or plan.ep == 1 or network.exchange != AUTO or network.deduplicate != "auto":
        return fabric
    row_bytes: dict[Phase, float] = {
        "dispatch": model.routed_hidden * bytes_per_element(scenario.dtypes.dispatch),
        "combine": model.routed_hidden * bytes_per_element(scenario.dtypes.activations),
    }
    section = scenario.training
    tokens = section.micro_batch_size * section.sequence_length / (plan.cp * plan.tp)
    even_load = Even(plan.ep_ranks(), tokens, moe.num_experts, moe.top_k, row_bytes)
    chosen = decided(fabric, even_load)
    return replace(
        fabric,
        communication=replace(communication, exchange=chosen.exchange, deduplicate=chosen.deduplicate),
    )


def _layout(scenario: Scenario, common: Common, work: LayerWork, parts: int) -> Layout:
    """Layers of each part: as given, equal in number, or as equal in forward work as can be."""
    num_layers, sizes = work.model.num_layers, scenario.plan.layers
    if sizes is not None:
        return given(sizes, num_layers, parts)
    if parts == 1 or scenario.training.layout == "even":
        return even(num_layers, parts)
    return common.layout(scenario, work, parts)
