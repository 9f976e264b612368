"""Experts of a service: where they are, how they move while it runs, and whose traffic asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem
from moesim.evidence import rng_for
from moesim.kernels.histogram import TILE_ROWS, ExpertLoad
from moesim.model.parameters import expert_bytes
from moesim.placement import Method, Placement, placement_methods
from moesim.placement import Problem as PlacementProblem
from moesim.placement.rebalance import renewed
from moesim.placement.registry import needs_of
from moesim.placement.split_registry import Batch, Split, splits
from moesim.scenario.build import placed
from moesim.scenario.schema import Scenario
from moesim.scenario.serving_schema import DispatchSection
from moesim.scenario.traffic import Traffic, load_traffic
from moesim.serving.deployment import Deployment
from moesim.serving.expert_steps import (
    COLUMNS,
    ExpertCosts,
    ExpertsOf,
    Fixed,
    Spread,
    StepExperts,
    loads_of,
)
from moesim.serving.measures import together
from moesim.serving.request_rows import RequestRows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EVEN = "even"
BY_SOURCE = "same_node_first"
"""Copies by where a token comes from: here a batch is seen as a whole."""


@dataclass(frozen=True)
class Renewal:
    """Placing anew while a service runs.

    Attributes
    ----------
    method : Method
    every, window : int
        Iterations between two placements, and those that one is made from.
    """

    method: Method
    every: int
    window: int


@dataclass
class PlacedExperts:
    """A placement on its ranks: the balance of one instance during one run.

    Attributes
    ----------
    placement : Placement
        At present.
    problem : PlacementProblem
        Its ranks and slots.
    move_s : float
        Bringing one expert of each layer looked at to a rank, for all layers that these stand for. [s]
    renewal : Renewal or None
        None: it stays.
    split : Split or None
        Policy that sees each batch; None: evenly over copies.
    seed : int
    """

    placement: Placement
    problem: PlacementProblem
    move_s: float
    renewal: Renewal | None
    split: Split | None
    seed: int
    _age: int = 0
    _seen: list[Ints] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = rng_for(self.seed, "serving/experts")
        self._node = np.zeros(self.placement.num_ranks, dtype=np.int64)
        self._settle(self.placement)

    def spread(self, counts: Ints) -> Spread:
        """As :class:`~moesim.serving.expert_steps.Balance`."""
        if self.split is None:
            return self._fixed.spread(counts)
        each = [self._dispatched(self.split, step) for step in counts]
        loads = [load for load, _ in each]
        stacked = ExpertLoad(
            np.stack([load.rows for load in loads], axis=-1),
            np.stack([load.touched for load in loads], axis=-1),
            {b: np.stack([load.padded_rows[b] for load in loads], axis=-1) for b in TILE_ROWS},
        )
        return Spread(stacked, np.array([sent for _, sent in each]))

    def horizon(self) -> int:
        """As :class:`~moesim.serving.expert_steps.Balance`."""
        return self._fixed.horizon() if self.renewal is None else self.renewal.every - self._age

    def done(self, counts: Ints) -> float:
        """As :class:`~moesim.serving.expert_steps.Balance`; the busiest rank decides how long that takes."""
        if self.renewal is None:
            return 0.0
        self._age += len(counts)
        self._seen = [*self._seen, *counts][-self.renewal.window :]
        if self._age < self.renewal.every:
            return 0.0
        self._age = 0
        seen = np.array(self._seen, dtype=np.float64)
        before = self.placement
        self._settle(renewed(seen, self.problem, self.renewal.method, before, self._rng))
        moved = (self.placement.resident & ~before.resident).sum(axis=(0, 1))
        return float(moved.max()) * self.move_s

    def _settle(self, placement: Placement) -> None:
        self.placement = placement
        self._fixed = Fixed(placement.physical_to_logical, placement.num_ranks, placement.num_experts)

    def _dispatched(self, split: Split, counts: Ints) -> tuple[ExpertLoad, float]:
        """Load of one batch under a policy that sees it, and the time to send weights for it."""
        batch = Batch(counts[None].astype(np.float64), self._node)
        served = split.serve(batch, self.placement, self._rng)
        slots = _whole(counts, served.placement.physical_to_logical, served.split[0])
        load = loads_of(slots.reshape(1, len(slots), self.placement.num_ranks, -1))
        sent = (served.placement.resident & ~self.placement.resident).sum(axis=1)
        condensed = ExpertLoad(
            load.rows[..., 0], load.touched[..., 0], {b: rows[..., 0] for b, rows in load.padded_rows.items()}
        )
        return condensed, float(sent.max(axis=1).sum()) * self.move_s


def _whole(counts: Ints, slots: Ints, shares: Floats) -> Ints:
    """Whole tokens of every slot, ``(layer, slot)``, that sum to each expert's."""
    expert = np.where(slots >= 0, slots, counts.shape[1])
    order = np.argsort(expert, axis=1, kind="stable")
    known = np.pad(counts, ((0, 0), (0, 1)))
    wanted = np.take_along_axis(known, expert, axis=1) * shares
    # an expert's shares sum to its tokens, so that sums rounded in its order are whole at its end
    upto = np.rint(np.cumsum(np.take_along_axis(wanted, order, axis=1), axis=1)).astype(np.int64)
    result = np.empty_like(upto)
    np.put_along_axis(result, order, np.diff(upto, axis=1, prepend=0), axis=1)
    return result


@dataclass(frozen=True)
class ServedExperts:
    """Traffic of a service and what a scenario says of its experts.

    Attributes
    ----------
    scenario : Scenario
    traffic : Traffic
    rows : RequestRows
        Of every request, from the part of the traffic that no placement has seen.
    """

    scenario: Scenario
    traffic: Traffic
    rows: RequestRows

    def of(self, deployment: Deployment, rate: float) -> Callable[[float], ExpertsOf]:
        """Makes, for a factor on times, what makes the experts of an instance.

        Parameters
        ----------
        deployment : Deployment
        rate : float
            Bytes a second that reach a rank when weights move. [bytes/s]
        """
        problem, solution = placed(self.scenario, self.traffic, deployment.plan)
        layers = self.rows.layers
        whole = solution.placement
        split = None if whole.split is None else whole.split[layers]
        start = Placement(whole.physical_to_logical[layers], whole.num_experts, whole.num_ranks, split)
        small = PlacementProblem(
            problem.loads[layers], problem.num_ranks, problem.slots_per_rank, problem.ranks_per_node
        )
        model = deployment.model
        layer = model.layers[model.moe_layers[0]]
        size = expert_bytes(layer, model.hidden_size, deployment.dtypes, moe_tp=deployment.plan.moe_tp)
        move_s = size / rate * len(model.moe_layers) / len(layers)
        renewal, policy = _renewal(self.scenario), _split(self.scenario.serving.dispatch)
        seed = self.scenario.seed

        def at(scale: float) -> ExpertsOf:
            costs = ExpertCosts(deployment, scale)

            def made() -> StepExperts:
                balance = PlacedExperts(start, small, move_s, renewal, policy, seed)
                return StepExperts(self.rows, costs, balance)

            return made

        return at


def served_experts(
    scenario: Scenario, deployment: Deployment, num_requests: int
) -> tuple[ServedExperts | None, list[str]]:
    """Experts of a scenario that says anything of them, and warnings; None where typical batches will do.

    Raises
    ------
    InputError
        A dense model with experts to place, or a trace of another model's shape.
    """
    section, wants = scenario.serving, ""
    for name in ("rebalance", "dispatch"):
        if getattr(section, name) is not None:
            wants = f"serving.{name}"
    if (
        scenario.placement.redundant_experts
        or scenario.placement.file
        or "method" in (scenario.placement.model_fields_set)
    ):
        wants = wants or "placement"
    if not deployment.model.num_experts:
        if wants:
            raise InputError([Problem(wants, "a dense model has no experts to place")])
        return None, []
    if scenario.routing is None or (scenario.routing.trace is None and not wants):
        if wants:
            raise InputError([Problem("routing", f"missing ({wants} needs traffic)")])
        return None, []
    if deployment.plan.pp > 1:
        accepted = "1: experts of single iterations are not told apart by stage"
        raise InputError.at("plan.pp", deployment.plan.pp, accepted)
    traffic = load_traffic(scenario.routing, deployment.model, 1, scenario.seed)
    rows = RequestRows.of(traffic.held_out, num_requests, seed=scenario.seed)
    return ServedExperts(scenario, traffic, rows), list(traffic.warnings)


def expert_numbers(experts: Sequence[StepExperts]) -> dict[str, tuple[float, str]]:
    """Imbalance of all instances, and what moving weights took."""
    if not experts:
        return {}
    sums = {name: sum(float(e.series.column(name).sum()) for e in experts) for name in COLUMNS}
    routed = max(sums["routed"], 1.0)
    return {
        "mean_expert_imbalance": (sums["imbalance"] / routed, "ratio"),
        "mean_touched_experts": (sums["touched"] / routed, "count"),
        "expert_moves": (float(sum(e.moves for e in experts)), "count"),
        "expert_moves_s": (sum(e.moved_s for e in experts), "s"),
    }


def expert_view(experts: Sequence[StepExperts], width_ps: int) -> dict[str, list[float]]:
    """Imbalance over time in bins of ``width_ps``; 0 where nothing ran."""
    if not experts:
        return {}
    total = together([e.series for e in experts], width_ps)
    routed = total.column("routed")
    ratio = np.divide(total.column("imbalance"), routed, out=np.zeros_like(routed), where=routed > 0)
    return {"expert_imbalance": [round(float(v), 4) for v in ratio]}


def _renewal(scenario: Scenario) -> Renewal | None:
    section, place = scenario.serving.rebalance, scenario.placement
    if section is None:
        return None
    if place.file is not None:
        raise InputError.at("placement.file", place.file, "absent beside serving.rebalance: a method")
    method = placement_methods.build(place.method, place.params, field="placement")
    if needs_of(method) or place.method == "linear":
        accepted = "a method that places by loads, as eplb"
        raise InputError.at("placement.method", place.method, accepted)
    return Renewal(method, section.every_steps, section.window_steps)


def _split(section: DispatchSection | None) -> Split | None:
    if section is None or section.policy == EVEN:
        return None
    if section.policy == BY_SOURCE:
        accepted = ", ".join(name for name in splits.names() if name != BY_SOURCE)
        raise InputError.at("serving.dispatch.policy", section.policy, f"one of {accepted}")
    return splits.build(section.policy, section.params, field="serving.dispatch")
