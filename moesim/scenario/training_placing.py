"""Where the experts of a training scenario live, and who helps with those that get too many tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem
from moesim.evidence import rng_for
from moesim.files import find
from moesim.model import ModelSpec
from moesim.parallel.train_plan import TrainPlan
from moesim.placement import Placement, placement_methods
from moesim.placement import Problem as Placing
from moesim.placement.split_registry import Batch, Keeping, splits
from moesim.placement.store import read_placement
from moesim.scenario.schema import Scenario
from moesim.scenario.training_schema import SplitSection
from moesim.training.loads import Shares
from moesim.training.spread import Spread

LINEAR = "linear"


def placement_under(
    scenario: Scenario, model: ModelSpec, plan: TrainPlan, loads: NDArray[np.float64]
) -> Placement | None:
    """Placement of every layer's experts on one group's ranks; None where they lie in order.

    Parameters
    ----------
    loads : ndarray, ``(layer, expert)``
        Traffic that the method may look at. [tokens]

    Raises
    ------
    InputError
        Replicas, a method that needs more than loads, or a file of another shape.
    """
    section = scenario.placement
    if section.redundant_experts:
        accepted = "0: copies of an expert would need their gradients summed in every microbatch"
        raise InputError.at("placement.redundant_experts", section.redundant_experts, accepted)
    wanted = (len(model.moe_layers), model.num_experts, plan.ep)
    if section.file is not None:
        found = read_placement(find(section.file, "placements", field="placement.file")).placement
        got = (found.num_layers, found.num_experts, found.num_ranks)
        if got != wanted:
            accepted = f"(layers, experts, ranks) = {wanted}, as of the scenario"
            raise InputError.at("placement.file", got, accepted)
        return found
    if section.method == LINEAR or not model.num_experts:
        return None
    return placed(section.method, section.params, loads, scenario, plan)


def placed(
    method: str,
    params: dict[str, object],
    loads: NDArray[np.float64],
    scenario: Scenario,
    plan: TrainPlan,
    start: Placement | None = None,
) -> Placement:
    """Placement that a method finds for these loads."""
    built = placement_methods.build(method, params, field="placement")
    per_node = min(scenario.cluster.devices_per_domain // max(plan.etp, 1), plan.ep)
    problem = Placing(
        loads=loads.astype(np.float64),
        num_ranks=plan.ep,
        slots_per_rank=loads.shape[-1] // plan.ep,
        ranks_per_node=per_node if per_node and plan.ep % per_node == 0 else None,
        start=start,
    )
    missing = [name for name in getattr(built, "needs", ()) if getattr(problem, name) is None]
    if missing:
        text = f"got {method!r}, which needs {', '.join(missing)}; accepted: a method that needs loads alone"
        raise InputError([Problem("placement.method", text)])
    return built.solve(problem, rng_for(scenario.seed, "placement")).placement


def kept_copies(split: SplitSection) -> dict[str, Any]:
    """What a split's copies add to a rank, as fields of :class:`~moesim.training.states.States`."""
    if split.policy == "none":
        return {}
    policy = splits.build(split.policy, split.params, field="training.split")
    if not isinstance(policy, Keeping):
        return {}
    return {"materialised_experts": policy.foreign_experts, "rematerialise": policy.rematerialise}


def spread_of(
    scenario: Scenario,
    plan: TrainPlan,
    shares: Shares,
    copies: float,
    placement: Placement | None,
    microbatches: int = 1,
) -> Spread | None:
    """Who serves the tokens of every draw; None where every expert is served at home, homes in order.

    Parameters
    ----------
    shares : ndarray, ``(draw, layer, expert)``
    copies : float
        Token copies of a group's microbatch in a layer. [tokens]
    placement : Placement, optional
        Homes; None: in order.
    microbatches : int
        Of a step: copies that stay are sent once for all of them.
    """
    split = scenario.training.split
    if placement is None and split.policy == "none":
        return None
    num_draws, num_layers, num_experts = shares.shape
    native = placement or in_order(num_layers, num_experts, plan.ep)
    home = native.rank_share.argmax(axis=-1)
    if split.policy == "none":
        served = np.broadcast_to(native.rank_share, (num_draws, *native.rank_share.shape))
        return Spread(served, home)
    policy = splits.build(split.policy, split.params, field="training.split")
    rng = rng_for(scenario.seed, "training/split")
    node = np.arange(plan.ep) // max(scenario.cluster.devices_per_domain // max(plan.etp, 1), 1)
    found = [policy.serve(Batch(draw[None] * copies, node), native, rng) for draw in shares]
    first = found[0]
    held = np.stack([one.placement.resident for one in found]) if first.near_first else None
    served = np.stack([one.placement.rank_share for one in found])
    return Spread(served, home, held, first.ahead, first.twice, 1.0 / microbatches)


def in_order(num_layers: int, num_experts: int, num_ranks: int) -> Placement:
    """Consecutive experts on consecutive ranks."""
    slots = np.broadcast_to(np.arange(num_experts), (num_layers, num_experts))
    return Placement(slots, num_experts, num_ranks)
