"""Seconds of rebalancing: what better balance saves in every step against what moving weights costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.evidence import rng_for
from moesim.model.parameters import expert_bytes
from moesim.placement import evaluate, placement_methods
from moesim.placement.rebalance import Rebalanced
from moesim.placement.start import balanced
from moesim.scenario.build import Built
from moesim.scenario.placing import step_result


@dataclass(frozen=True, slots=True)
class StepLaw:
    """Seconds of a step by how its experts are loaded: a straight line through two simulated steps.

    Attributes
    ----------
    base_s : float
        What does not depend on balance. [s]
    slope_s_per_token : float
        Per token of the largest rank load, summed over layers. [s/token]
    move_s_per_expert : float
        Loading one expert on a rank over its slowest link, when all ranks load at once. [s]
    """

    base_s: float
    slope_s_per_token: float
    move_s_per_expert: float

    def step_s(self, objective: float) -> float:
        """Seconds of a step whose largest rank loads sum to ``objective`` tokens."""
        return self.base_s + self.slope_s_per_token * objective

    def mean_step_s(self, run: Rebalanced) -> float:
        """Mean step of a run, without moves. [s]"""
        return self.step_s(float(run.objectives.mean()))

    def mean_move_s(self, run: Rebalanced) -> float:
        """Weights moved at a renewal, mean; the busiest rank decides. [s]"""
        return self.move_s_per_expert * float(run.moved.max(axis=1).mean()) if len(run.moved) else 0.0

    def break_even_steps(self, run: Rebalanced, never: Rebalanced) -> float | None:
        """Steps after which one renewal has paid for itself; None if it never does. [-]"""
        gain = self.mean_step_s(never) - self.mean_step_s(run)
        return self.mean_move_s(run) / gain if gain > 0 else None


def step_law(built: Built) -> StepLaw:
    """Law of a decode scenario: its step under experts in order and under balanced ones."""
    assert built.problem is not None  # a scenario with routing has experts
    assert built.traffic is not None
    rng = rng_for(built.scenario.seed, "rebalancing")
    plain = placement_methods.build("linear").solve(built.problem, rng).placement
    even = balanced(built.problem, rng)
    tokens = built.scenario.batch.tokens_per_rank * built.plan.attention_dp
    unseen = built.traffic.held_out
    loads = unseen.batches(tokens, 32, rng_for(built.scenario.seed, "rebalancing/batches")).astype(float)
    points = [
        (evaluate(loads, placed).objective, step_result(built, placed).metrics["tpot_s"].value)
        for placed in (plain, even)
    ]
    (worse, slow), (better, fast) = points
    slope = max((slow - fast) / (worse - better), 0.0) if worse > better else 0.0
    layer = built.model.layers[built.model.moe_layers[0]]
    size = expert_bytes(layer, built.model.hidden_size, built.dtypes, moe_tp=built.plan.moe_tp)
    fabric = built.machine.fabric
    one_domain = fabric.is_one_domain(np.arange(fabric.num_ranks))
    reached = (
        fabric.scale_up_bytes_per_s * fabric.efficiencies.families["all_to_all"].bandwidth_fraction
        if one_domain
        else fabric.nic_rate
    )
    return StepLaw(fast - slope * better, slope, size / reached)
