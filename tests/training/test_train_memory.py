"""Ledger of a training step: by hand, as properties, and its remedies."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.model import Dtypes, load
from moesim.model.parameters import total_parameters
from moesim.parallel.train_plan import TrainPlan
from moesim.training.memory import (
    HELPED,
    RESERVE,
    Demand,
    allocated_bytes,
    demand_of,
    layer_parameters,
    train_ledger,
)
from moesim.training.recompute import MODULES, Recompute
from moesim.training.schedules.base import schedules
from moesim.training.states import States
from moesim.units import GIB

ONE, KEPT, ALL = TrainPlan(), States(), Recompute()


def demand(name="qwen3_30b_a3b", plan=ONE, states=KEPT, recompute=ALL, **changed):
    model = load(name)
    size, extra = divmod(model.num_layers, plan.pp * plan.vpp)
    sizes = [size + (part < extra) for part in range(plan.pp * plan.vpp)]
    ends = np.cumsum(sizes)
    layout = tuple(tuple(range(end - size, end)) for size, end in zip(sizes, ends, strict=True))
    part_of = np.arange(len(layout)).reshape(plan.vpp, plan.pp).T
    base = Demand(model, plan, Dtypes(), states, recompute, layout, part_of, np.ones(part_of.shape), 1, 4096)
    return replace(base, **changed)


def ledger(*args, capacity_bytes=80 * GIB, **changed):
    return train_ledger(demand(*args, **changed), capacity_bytes=capacity_bytes)


@pytest.mark.parametrize("name", ["mixtral_8x7b", "deepseek_v3", "llama_3_1_8b", "qwen3_next_80b_a3b"])
def test_one_rank_keeps_every_parameter(name):
    held = ledger(name, states=States("none")).parts
    count = total_parameters(load(name))
    assert held["weights"][0] == pytest.approx(2 * count, rel=1e-6)
    assert held["gradients"][0] == pytest.approx(4 * count, rel=1e-6)
    assert held["optimizer"][0] == pytest.approx(12 * count, rel=1e-6)


def test_prediction_modules_lie_on_the_last_stage():
    plan = TrainPlan(pp=4)
    without, having = (ledger("deepseek_v3", plan, mtp=mtp).parts["weights"] for mtp in (False, True))
    np.testing.assert_array_equal(without[:3], having[:3])
    full = 2 * (total_parameters(load("deepseek_v3"), with_mtp=True) - total_parameters(load("deepseek_v3")))
    assert having[3] - without[3] == pytest.approx(full, rel=1e-6)


def test_experts_and_the_rest_have_replicas_of_their_own():
    # experts: 1 replica, 18 bytes; the rest: 16 replicas, 6 + 12 / 16
    held = ledger(plan=TrainPlan(dp=16, ep=16)).parts
    model = load("qwen3_30b_a3b")
    experts = 48 * 128 * 3 * 2048 * 768
    rest = total_parameters(model) - experts
    assert held["optimizer"][0] == pytest.approx(12 * experts / 16 + 12 * rest / 16)
    assert held["gradients"][0] == pytest.approx(4 * (experts / 16 + rest))


def test_shared_experts_are_divided_like_dense_parts():
    model = load("deepseek_v3")
    one, eight = (
        layer_parameters(model.layers[5], model.hidden_size, TrainPlan(tp=t, dp=8 // t)) for t in (1, 8)
    )
    shared = 3 * 7168 * 2048
    router = 256 * 7168 + 256
    assert eight[0] < one[0] / 2
    assert eight[0] > shared / 8 + router


def test_activations_of_qwen_by_hand():
    held = ledger(plan=TrainPlan(dp=16, ep=16)).parts
    tokens, copies = 4096, 4096 * 8
    assert held["expert activations"][0] == 48 * copies * (2048 + 3 * 768) * 2
    norms = 4 * 2048 * 2
    # q and k before and after their norms, v, result, one fp32 sum a head
    mixer = (2 * (4096 + 512) + 512 + 4096) * 2 + 32 * 4
    router = 128 * 9
    final = 2 * 2048 * 2
    assert held["activations"][0] == tokens * (48 * (norms + mixer + router) + final)
    assert held["logits and loss"][0] == tokens * 151936 * 6


def test_overloaded_ranks_need_more():
    even, skewed = (ledger(plan=TrainPlan(dp=16, ep=16), expert_overload=o).parts for o in (1.0, 2.5))
    assert skewed["expert activations"][0] == pytest.approx(2.5 * even["expert activations"][0])
    assert skewed["activations"][0] == even["activations"][0]


def test_microbatches_in_flight_multiply_activations():
    plan = TrainPlan(pp=2)
    one, some = (
        ledger("llama_3_1_8b", plan, in_flight=np.array([[first], [1.0]])).parts["activations"]
        for first in (1.0, 2.0)
    )
    assert some[0] == 2 * one[0]
    assert some[1] == one[1]


def test_first_step_has_no_states_beside_activations():
    plan = TrainPlan(dp=16, ep=16)
    first, later = (allocated_bytes(ledger(plan=plan, first_step=f))[0] for f in (True, False))
    assert first < later


def test_first_update_makes_the_states():
    # with one token the update is the fullest moment, of the first step too
    first, later = (ledger("llama_3_1_8b", sequence_length=1, first_step=f).parts for f in (True, False))
    assert first["optimizer"][0] == later["optimizer"][0] > 0


def test_narrow_moments_are_cast_for_the_update():
    # nothing but the update is large here: one token
    states = States("none", gradients="bf16", master="remainder", moments="bf16")
    held = ledger("llama_3_1_8b", states=states, sequence_length=1).parts
    count = total_parameters(load("llama_3_1_8b"))
    assert held["working buffers"][0] == pytest.approx(8 * count)
    assert held["activations"][0] == 0


def test_gathered_weights_replace_kept_ones():
    plan = TrainPlan(dp=64)
    model = load("llama_3_1_70b")
    held = ledger("llama_3_1_70b", plan, States("fsdp")).parts
    layer = model.layers[0].parameters(model.hidden_size)
    assert held["gathered weights"][0] == layer * (2 * 2 + 4)
    assert held["weights"][0] == pytest.approx(2 * total_parameters(model) / 64)


def test_materialised_experts_are_kept_for_one_pass_or_two_layers():
    plan = TrainPlan(dp=16, ep=16)
    kept, again = (
        ledger(plan=plan, states=States("fssdp", materialised_experts=4, rematerialise=r)).parts
        for r in (False, True)
    )
    expert = 3 * 2048 * 768 * 2
    assert kept["gathered weights"][0] - again["gathered weights"][0] == pytest.approx(4 * expert * 46)


plans = st.sampled_from(
    [TrainPlan(dp=16, ep=8), TrainPlan(tp=2, dp=8, ep=16), TrainPlan(tp=2, cp=2, dp=4, ep=8, pp=2, vpp=2)]
)
policies = st.one_of(
    st.builds(
        lambda names: Recompute("selective", tuple(sorted(names))),
        st.sets(st.sampled_from(sorted(MODULES))),
    ),
    st.just(Recompute("full")),
)


@settings(max_examples=10, deadline=None)
@given(plans, policies, st.floats(1.0, 4.0))
def test_ledger_sums_and_grows_with_load(plan, recompute, overload):
    low, high = (ledger(plan=plan, recompute=recompute, expert_overload=o) for o in (1.0, overload))
    assert (high.need_bytes >= low.need_bytes - 1).all()
    total = sum(high.parts.values())
    np.testing.assert_allclose(high.need_bytes, total)
    np.testing.assert_allclose(allocated_bytes(high), total - high.parts[RESERVE])
    assert all((part >= 0).all() for part in high.parts.values())


@settings(max_examples=10, deadline=None)
@given(plans, policies)
def test_more_sharding_never_needs_more_states(plan, recompute):
    names = ("none", "zero1", "zero2", "zero3")
    sizes = [
        sum(
            ledger(plan=plan, states=States(n), recompute=recompute).parts[part]
            for part in ("weights", "gradients", "optimizer")
        )
        for n in names
    ]
    assert all((more <= less + 1).all() for less, more in zip(sizes, sizes[1:], strict=False))


@settings(max_examples=10, deadline=None)
@given(plans, policies)
def test_recomputing_never_keeps_more(plan, recompute):
    plain, less = (ledger(plan=plan, recompute=r).parts for r in (Recompute(), recompute))
    for part in ("activations", "expert activations"):
        assert (less[part] <= plain[part] + 1).all()


@pytest.mark.parametrize("name", ["1f1b", "gpipe", "zb1p", "dualpipe"])
def test_schedules_say_what_is_in_flight(name):
    schedule = schedules.build(name)
    plan = TrainPlan(pp=4, vpp=2 if name == "dualpipe" else 1)
    num_parts = 4
    model = load("llama_3_1_8b")
    layout = [tuple(part.tolist()) for part in np.array_split(np.arange(model.num_layers), num_parts)]
    made = demand_of(
        schedule,
        16,
        plan,
        model=model,
        dtypes=Dtypes(),
        states=States(),
        recompute=Recompute(),
        layout=layout,
        micro_batch_size=1,
        sequence_length=4096,
    )
    expected = {
        "1f1b": [[4], [3], [2], [1]],
        "gpipe": [[16]] * 4,
        "zb1p": [[4]] * 4,
        # one more than stages, over both directions
        "dualpipe": None,
    }[name]
    if expected:
        np.testing.assert_array_equal(made.in_flight, expected)
    else:
        np.testing.assert_array_equal(made.in_flight.sum(axis=1), [5] * 4)
        held = train_ledger(made, capacity_bytes=1.0).parts["weights"]
        whole = train_ledger(demand("llama_3_1_8b", TrainPlan(pp=4)), capacity_bytes=1.0).parts["weights"]
        np.testing.assert_allclose(held, whole + whole[::-1])


def test_layers_that_are_run_again_together_are_there_together():
    # the first of two stages has no loss, which would hide a layer's buffers
    one, four = (
        ledger("llama_3_1_8b", TrainPlan(pp=2), recompute=Recompute("full", num_layers=n)).parts
        for n in (1, 4)
    )
    assert four["activations"][0] == pytest.approx(one["activations"][0] / 4)
    layer = one["working buffers"][0]
    assert 2 * layer < four["working buffers"][0] < 4 * layer


HELPS = np.array([2.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])


def test_weights_of_helped_experts_stay_until_the_backward_pass():
    plan = TrainPlan(dp=8, ep=8, pp=2)
    plain, helped = (train_ledger(demand(plan=plan, helped=h), capacity_bytes=0.0) for h in ({}, {3: HELPS}))
    expert = 3 * 2048 * 768
    assert helped.parts[HELPED] == pytest.approx([2 * expert * 2, 0.0])
    gradients = (helped.parts["working buffers"] - plain.parts["working buffers"])[0]
    assert gradients == pytest.approx(2 * expert * 4)
    assert HELPED not in plain.parts
    again = demand(plan=plan, helped={3: HELPS}, recompute=Recompute("selective", ("moe",)))
    assert HELPED not in train_ledger(again, capacity_bytes=0.0).parts
