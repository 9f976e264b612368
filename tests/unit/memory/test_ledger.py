"""Ledger by hand, and remedies that are checked by applying them."""

import re
from dataclasses import replace

import numpy as np
import pytest

from moesim.errors import InfeasibleError
from moesim.memory import Occupancy, Question, check, ledger, remedies, sequences_that_fit
from moesim.model import Dtypes, load
from moesim.model.parameters import kv_bytes_per_token, weight_bytes
from moesim.parallel import Plan
from moesim.units import GIB

SMALL = Occupancy(num_sequences=4, context_tokens=100, step_tokens=4)


def parts(name, plan, occupancy=SMALL, dtypes=None, capacity_bytes=80 * GIB):
    return ledger(load(name), plan, dtypes or Dtypes(), occupancy, capacity_bytes=capacity_bytes).parts


def test_one_device_holds_the_whole_model():
    model = load("mixtral_8x7b")
    held = parts("mixtral_8x7b", Plan())
    weights = held["attention and dense weights"] + held["embedding and head"] + held["routed experts"]
    assert weights[0] == pytest.approx(weight_bytes(model, Dtypes()), rel=1e-6)
    assert held["kv cache"][0] == 4 * 100 * kv_bytes_per_token(model, "bf16")


def test_experts_by_hand():
    held = parts("mixtral_8x7b", Plan.of(tp=2, attention_dp=2, ep=2), Occupancy(0, 0, 1, redundant_experts=2))
    # 10 slots over 2 expert ranks, each expert split over 2: 32 layers x 5 x 3 x 4096 x 14336 / 2 x 2 bytes
    assert held["routed experts"][0] == 32 * 5 * 3 * 4096 * 14336


def test_latent_cache_is_replicated_and_heads_are_not():
    occupancy = Occupancy(1, 1000, 1)
    one, eight = (parts("deepseek_v3", Plan.of(tp=tp, ep=1), occupancy)["kv cache"][0] for tp in (1, 8))
    assert one == eight == 1000 * 61 * 576 * 2
    one, two = (parts("mixtral_8x7b", Plan.of(tp=tp, ep=1), occupancy)["kv cache"][0] for tp in (1, 2))
    assert one == 2 * two


def test_window_layers_keep_no_more_than_their_window():
    held = parts("gpt_oss_20b", Plan(), Occupancy(1, 10_000, 1))["kv cache"][0]
    assert held == (12 * 10_000 + 12 * 128) * 2 * 8 * 64 * 2


def test_recurrent_state_does_not_grow_with_context():
    short, long = (parts("qwen3_next_80b_a3b", Plan(), Occupancy(1, c, 1))["kv cache"][0] for c in (0, 1000))
    state = 36 * (32 * 128 * 128 * 4 + 3 * (2 * 16 * 128 + 32 * 128) * 2)
    assert short == state
    assert long - short == 1000 * 12 * 2 * 2 * 256 * 2


def test_stages_hold_their_layers_and_the_ends_hold_the_tables():
    held = parts("qwen3_32b", Plan.of(pp=3))
    table = 151936 * 5120 * 2
    np.testing.assert_array_equal(held["embedding and head"], [table, 0, table])
    weights = held["attention and dense weights"]
    assert weights[0] / weights[2] == pytest.approx(22 / 21)


def question(**changed):
    base = Question(
        load("qwen3_30b_a3b"), Plan(), Dtypes(), Occupancy(64, 4096, 2048, redundant_experts=0), 80e9
    )
    return replace(base, **changed)


def test_what_fits_gives_the_ledger():
    assert check(question(capacity_bytes=200e9)).fits


def test_what_does_not_fit_says_need_have_and_remedies():
    with pytest.raises(InfeasibleError) as caught:
        check(question())
    text = str(caught.value)
    assert "rank 0 needs 87.1 GiB, has 74.5 GiB" in text
    assert re.search(r"routed experts +54\.0 GiB", text)
    assert "plan.attention_dp=2 (ep=2, 2 devices)" in text
    assert "dtypes.experts=fp8_block" in text
    assert caught.value.exit_code == 4


def test_remedies_fit_when_applied_and_the_next_smaller_change_does_not():
    found = remedies(question())
    assert "at most 30 sequences in a group" in found
    assert question(occupancy=Occupancy(30, 4096, 2048)).fits()
    assert not question(occupancy=Occupancy(31, 4096, 2048)).fits()
    assert question(plan=Plan.of(attention_dp=2)).fits()
    assert question(dtypes=Dtypes(experts="fp8_block")).fits()
    assert not question(dtypes=Dtypes(kv="fp8")).fits() or "dtypes.kv=fp8" in found


def test_hopeless_cases_say_so():
    with pytest.raises(InfeasibleError, match="no single change that was tried would fit"):
        check(question(capacity_bytes=1e6, model=load("qwen3_32b")))


def test_no_sequence_fits_when_the_weights_do_not():
    assert sequences_that_fit(question(capacity_bytes=40e9)) == 0


def test_replicas_are_given_up_when_that_is_enough():
    occupancy = Occupancy(1, 10, 1, redundant_experts=64)
    found = remedies(question(occupancy=occupancy, plan=Plan.of(attention_dp=2), capacity_bytes=46e9))
    number = int(next(text for text in found if "redundant" in text).split()[0])
    assert 0 < number < 64
    fitting = replace(occupancy, redundant_experts=number)
    assert question(occupancy=fitting, plan=Plan.of(attention_dp=2), capacity_bytes=46e9).fits()
