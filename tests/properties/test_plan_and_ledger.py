"""Plans partition their ranks; ledgers conserve bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.memory import Occupancy, ledger
from moesim.model import Dtypes, load
from moesim.model.parameters import embedding_parameters, expert_bytes, head_parameters
from moesim.parallel import Plan
from moesim.parallel.plan import divisors, plan_problems

MODELS = {name: load(name) for name in ("qwen3_30b_a3b", "deepseek_v3", "gpt_oss_20b", "qwen3_next_80b_a3b")}
powers = st.sampled_from([1, 2, 4])


@st.composite
def plans(draw):
    tp, attention_dp = draw(powers), draw(powers)
    ep = draw(st.sampled_from(divisors(tp * attention_dp)))
    return Plan.of(tp, draw(st.integers(1, 5)), attention_dp, ep=ep)


occupancies = st.builds(
    Occupancy,
    st.integers(0, 100),
    st.integers(0, 9000),
    st.integers(1, 4096),
    st.integers(0, 4).map(lambda n: n * 16),
)


@given(plans())
def test_groups_partition_the_world(plan):
    ranks = np.arange(plan.num_devices)
    for groups, size in (
        (plan.tp_group(ranks), plan.tp),
        (plan.moe_tp_group(ranks), plan.moe_tp),
        (plan.ep_group(ranks), plan.ep),
        (plan.stage_of(ranks), plan.stage_size),
    ):
        members = np.bincount(groups)
        assert (members == size).all()
        assert len(members) * size == plan.num_devices
    # a group lies inside one stage
    for groups in (plan.tp_group(ranks), plan.ep_group(ranks)):
        assert len(set(zip(groups.tolist(), plan.stage_of(ranks).tolist(), strict=True))) == len(
            set(groups.tolist())
        )


@given(plans())
def test_an_expert_group_meets_each_expert_rank_once(plan):
    ranks = np.arange(plan.num_devices)
    index = np.tile(plan.ep_rank(), plan.pp)
    pairs = set(zip(plan.ep_group(ranks).tolist(), index.tolist(), strict=True))
    assert len(pairs) == plan.num_devices


@given(plans(), st.integers(5, 100))
def test_stages_hold_every_layer_once_and_nearly_equally(plan, num_layers):
    stages = plan.stage_layers(num_layers)
    assert [layer for stage in stages for layer in stage] == list(range(num_layers))
    assert max(map(len, stages)) - min(map(len, stages)) <= 1


@given(plans())
def test_the_next_stage_points_back(plan):
    ranks = np.arange(plan.num_devices)
    peer = plan.pipeline_peer(ranks)
    inside = peer >= 0
    np.testing.assert_array_equal(plan.pipeline_peer(peer[inside], -1), ranks[inside])


@given(st.sampled_from(sorted(MODELS)), plans(), occupancies)
def test_experts_and_tables_are_neither_lost_nor_doubled(name, plan, occupancy):
    model, dtypes = MODELS[name], Dtypes()
    if plan_problems(plan, model, model.num_experts + occupancy.redundant_experts, plan.num_devices):
        return
    parts = ledger(model, plan, dtypes, occupancy, capacity_bytes=80e9).parts
    slots = model.num_experts + occupancy.redundant_experts
    one = sum(expert_bytes(model.layers[i], model.hidden_size, dtypes) for i in model.moe_layers)
    assert parts["routed experts"].sum() == pytest.approx(slots * one)
    tables = (embedding_parameters(model) + head_parameters(model)) * 2 * plan.attention_dp
    assert parts["embedding and head"].sum() == pytest.approx(tables)


@given(st.sampled_from(sorted(MODELS)), plans(), occupancies, st.integers(1, 50))
def test_more_sequences_or_tokens_never_need_less(name, plan, occupancy, more):
    model = MODELS[name]
    if plan_problems(plan, model, model.num_experts + occupancy.redundant_experts, plan.num_devices):
        return

    def need(sequences, step_tokens):
        changed = Occupancy(sequences, occupancy.context_tokens, step_tokens, occupancy.redundant_experts)
        return ledger(model, plan, Dtypes(), changed, capacity_bytes=80e9).need_bytes

    base = need(occupancy.num_sequences, occupancy.step_tokens)
    assert (need(occupancy.num_sequences + more, occupancy.step_tokens) >= base).all()
    assert (need(occupancy.num_sequences, occupancy.step_tokens + more) >= base).all()
