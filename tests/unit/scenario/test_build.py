import numpy as np
import pytest

from moesim.errors import InputError
from moesim.model.ops import AttentionPrefill
from moesim.scenario.build import _segments, build, routed_lanes
from moesim.scenario.resolve import resolve
from moesim.scenario.schema import PlacementSection, Scenario

SMALL = [
    "model=qwen3_30b_a3b",
    "plan.attention_dp=8",
    "plan.ep=8",
    "routing.generator=zipf",
    "routing.num_batches=1",
    "batch.tokens_per_rank=16",
    "dtypes.weights=bf16",
    "dtypes.experts=bf16",
]


def pairs(segments):
    return sum(
        AttentionPrefill(
            "a", s.num_sequences, s.query_tokens, s.context_tokens, 1, 1, 1, 1, "bf16", "bf16"
        ).pairs
        for s in segments
    )


def section(**batch):
    scenario = resolve("deepseek_v3_prefill_h200x32").scenario
    return Scenario.model_construct(
        **scenario.model_dump()
        | {"question": "prefill_step", "batch": scenario.batch.model_copy(update=batch)}
    )


@pytest.mark.parametrize("sequences", [1, 2, 4])
def test_halves_of_a_prefill_see_as_many_pairs_as_the_whole(sequences):
    scenario = section(tokens_per_rank=64, context_tokens=10, sequences_per_rank=sequences)
    whole = pairs(_segments(scenario, 0, 64))
    assert pairs(_segments(scenario, 0, 32)) + pairs(_segments(scenario, 32, 64)) == pytest.approx(whole)


def test_tokens_and_their_choices_are_conserved_over_halves_and_ranks():
    built = build(resolve("deepseek_v3_decode_h200x32", [*SMALL, "overlap.policy=two_batch"]))
    (stages,) = routed_lanes(built, built.solution.placement, 1)
    (halves,) = stages
    assert sum(lane.tokens for lane in halves) == 16
    rows = sum(lane.routed.load.rows.sum(axis=1) for lane in halves)
    np.testing.assert_array_equal(rows, np.full(48, 16 * 8 * 8))


def test_a_seed_gives_the_same_tokens_whatever_the_placement():
    built = build(resolve("deepseek_v3_decode_h200x32", SMALL))
    other = built.placed(PlacementSection(method="eplb", redundant_experts=8))
    counts = [routed_lanes(b, b.solution.placement, 1)[0][0][0].routed.expert_counts for b in (built, other)]
    np.testing.assert_array_equal(*counts)
    assert other.num_slots == 136
    assert built.num_slots == 128


def test_placement_sees_the_fit_part_only():
    built = build(resolve("deepseek_v3_decode_h200x32", SMALL))
    np.testing.assert_array_equal(built.problem.loads, built.traffic.fit.counts())
    assert built.traffic.fit.num_tokens + built.traffic.held_out.num_tokens >= 4096


def test_dense_model_has_nothing_to_place():
    built = build(resolve("llama_3_1_70b_decode_h100x4"))
    with pytest.raises(Exception, match="no experts to place"):
        built.placed(PlacementSection())


def test_a_named_engine_brings_its_kernels():
    costs = [
        build(resolve("gpt_oss_20b_decode_h100x8", [*SMALL_BATCH, *named])).machine.cost
        for named in ([], ["engine.name=trtllm"])
    ]
    assert [cost.engine for cost in costs] == ["default", "trtllm"]
    with pytest.raises(InputError, match=r"engine\s+engine: got 'nope'|engine: got 'nope'"):
        build(resolve("gpt_oss_20b_decode_h100x8", [*SMALL_BATCH, "engine.name=nope"]))


def test_attention_and_head_may_have_formats_of_their_own():
    apart = ["dtypes.weights=fp8", "dtypes.attention=bf16", "dtypes.head=fp8", "routing.num_batches=1"]
    dtypes = build(resolve("gpt_oss_20b_decode_h100x8", apart)).dtypes
    assert (dtypes.weights, dtypes.attention, dtypes.head) == ("fp8", "bf16", "fp8")
    with pytest.raises(InputError, match="fp9"):
        build(resolve("gpt_oss_20b_decode_h100x8", ["dtypes.attention=fp9"]))


SMALL_BATCH = ["batch.tokens_per_rank=4", "routing.num_batches=1"]
