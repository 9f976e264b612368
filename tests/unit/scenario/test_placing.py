"""A scenario as the judge of placements."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.evidence import rng_for
from moesim.files import Tree
from moesim.placement import Placement, placement_methods
from moesim.placement.rebalance import Rebalanced
from moesim.scenario.build import build
from moesim.scenario.placing import step_result, step_score, with_placement
from moesim.scenario.rebalancing import StepLaw
from moesim.scenario.resolve import resolve_tree

TREE = {
    "schema_version": 1,
    "name": "small",
    "question": "decode_step",
    "model": "mixtral_8x7b",
    "cluster": "h100_x8",
    "plan": {"tp": 1, "attention_dp": 4, "ep": 4},
    "routing": {"generator": "lognormal", "num_batches": 1},
    "batch": {"tokens_per_rank": 64, "context_tokens": 256},
    "bands": {"samples": 2},
}


@pytest.fixture(scope="module")
def built():
    return build(resolve_tree(Tree(TREE, source="small")))


def placed(built, name):
    return placement_methods.build(name).solve(built.problem, rng_for(0, name)).placement


def test_balanced_experts_make_the_step_shorter(built):
    found = [step_result(built, placed(built, name)) for name in ("linear", "eplb")]
    linear, eplb = (one.metrics["tpot_s"].value for one in found)
    assert eplb < linear


def test_a_score_sees_only_what_placements_may_see(built):
    score = step_score(built)
    blind = replace(built, traffic=replace(built.traffic, held_out=built.traffic.held_out.window(0, 8)))
    assert step_score(blind)(placed(built, "eplb")) == score(placed(built, "eplb"))
    assert score(placed(built, "eplb")) < score(placed(built, "linear"))


def test_a_placement_of_another_shape_is_refused(built):
    with pytest.raises(InputError, match=r"\(layers, experts, ranks\)"):
        with_placement(built, Placement([[0, 1, 2, 3]], 4, 2))


def test_break_even_by_hand():
    law = StepLaw(base_s=1.0, slope_s_per_token=0.01, move_s_per_expert=0.5)
    never = Rebalanced(0, np.array([100.0, 100.0]), np.ones(2), np.zeros((0, 2), np.int64))
    often = Rebalanced(1, np.array([60.0, 60.0]), np.ones(2), np.array([[4, 2]]))
    assert law.mean_step_s(never) == pytest.approx(2.0)
    assert law.mean_move_s(often) == pytest.approx(2.0)
    # 0.4 s a step are saved: 2 s are earned back in 5 steps
    assert law.break_even_steps(often, never) == pytest.approx(5)
    assert law.break_even_steps(never, often) is None
