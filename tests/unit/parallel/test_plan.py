"""Plans: rank layout and what is refused."""

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.model import load
from moesim.parallel import Plan
from moesim.parallel.plan import check, divisors, plan_problems


def test_expert_degrees_follow_from_the_stage():
    assert Plan.of(tp=2, attention_dp=4) == Plan(2, 1, 4, ep=8, moe_tp=1)
    assert Plan.of(tp=2, attention_dp=4, ep=2) == Plan(2, 1, 4, ep=2, moe_tp=4)
    assert Plan.of(tp=4, moe_tp=4) == Plan(4, 1, 1, ep=1, moe_tp=4)
    assert Plan.of(tp=2, pp=3, attention_dp=4).num_devices == 24


def test_layout_by_hand():
    plan = Plan.of(tp=2, pp=2, attention_dp=2, ep=2)
    ranks = np.arange(8)
    np.testing.assert_array_equal(plan.stage_of(ranks), [0, 0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(plan.dp_index(ranks), [0, 0, 1, 1, 0, 0, 1, 1])
    np.testing.assert_array_equal(plan.tp_group(ranks), [0, 0, 1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(plan.moe_tp_group(ranks), [0, 0, 1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(plan.ep_group(ranks), [0, 1, 0, 1, 2, 3, 2, 3])
    np.testing.assert_array_equal(plan.ep_rank(), [0, 0, 1, 1])
    np.testing.assert_array_equal(plan.pipeline_peer(ranks), [4, 5, 6, 7, -1, -1, -1, -1])
    np.testing.assert_array_equal(plan.pipeline_peer(ranks, -1), [-1, -1, -1, -1, 0, 1, 2, 3])


def test_first_stages_hold_the_odd_layers():
    stages = Plan.of(pp=3).stage_layers(8)
    assert [len(s) for s in stages] == [3, 3, 2]
    assert sum(stages, ()) == tuple(range(8))


def test_ep_that_does_not_divide_the_experts():
    plan = Plan.of(tp=1, attention_dp=6)
    (problem,) = plan_problems(plan, load("deepseek_v3"), 256, 8)
    assert str(problem) == ("plan.ep: got 6, which does not divide model.num_experts=256; accepted: 1, 2")


def test_replica_slots_count():
    plan = Plan.of(tp=1, attention_dp=6)
    assert plan_problems(plan, load("deepseek_v3"), 258, 8) == []
    with pytest.raises(InputError, match=r"256 \+ 1 replica slots"):
        check(plan, load("deepseek_v3"), 257, 8)


def test_every_problem_is_told_at_once():
    with pytest.raises(InputError) as caught:
        check(Plan(tp=5, pp=100, attention_dp=1, ep=2, moe_tp=1), load("qwen3_30b_a3b"), 128, 8)
    fields = [p.field for p in caught.value.problems]
    assert fields == ["plan.ep", "plan.tp", "plan.tp", "plan.pp", "plan"]
    assert "accepted: 1, 2, 4, 8, 16, 32" in str(caught.value)


def test_expert_width_must_divide():
    plan = Plan.of(tp=7, moe_tp=7)
    assert "plan.moe_tp" in [p.field for p in plan_problems(plan, load("qwen3_30b_a3b"), 128, 8)]


def test_key_value_heads_divide_or_are_replicated():
    model = load("gpt_oss_120b")  # 64 heads, 8 key/value heads
    refused = [tp for tp in (4, 8, 16, 64, 6) if plan_problems(Plan.of(tp=tp, ep=1), model, 128, 64)]
    assert refused == [6]
    assert plan_problems(Plan.of(tp=5, moe_tp=5), load("llama_4_scout"), 16, 8)[-1].message == (
        "got 5, which does not divide num_kv_heads=8; accepted: 1, 2, 4, 8, 40"
    )


def test_degrees_are_positive():
    with pytest.raises(InputError, match=r"plan.tp: got 0"):
        Plan.of(tp=0)
    with pytest.raises(InputError, match=r"plan.ep: got 0"):
        Plan.of(tp=2, ep=0)


def test_divisors():
    assert divisors(1) == [1]
    assert divisors(36) == [1, 2, 3, 4, 6, 9, 12, 18, 36]
