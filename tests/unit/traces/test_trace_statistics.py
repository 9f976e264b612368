import numpy as np
import pytest
from trace_samples import public_trace, small_trace, trace_of

from moesim.errors import InputError
from moesim.traces import summarize
from moesim.traces.statistics import (
    dead_experts,
    entropy_fraction,
    gini_fraction,
    imbalance_ratio,
    independent_repeat_fraction,
    lru_hit_fraction,
    mutual_information_nats,
    rank_imbalance_ratio,
    repeat_fraction,
    touched_experts,
    variation_ratio,
)


def test_skew_by_hand():
    counts = np.array([[1, 1, 1, 1], [0, 0, 0, 8], [0, 2, 2, 4]])
    assert imbalance_ratio(counts).tolist() == [1.0, 4.0, 2.0]
    assert gini_fraction(counts) == pytest.approx([0.0, 0.75, 0.375])
    assert entropy_fraction(counts) == pytest.approx([1.0, 0.0, 1.5 * np.log(2) / np.log(4)])
    assert variation_ratio(counts) == pytest.approx([0.0, np.sqrt(3), np.sqrt(0.5)])
    assert dead_experts(counts).tolist() == [0, 3, 1]
    assert rank_imbalance_ratio(counts, 2) == pytest.approx([1.0, 2.0, 1.5])


def test_nothing_routed_is_no_division_error():
    none = np.zeros((2, 4), np.int64)
    for statistic in (imbalance_ratio, gini_fraction, entropy_fraction, variation_ratio):
        assert statistic(none).tolist() == [0.0, 0.0]
    assert mutual_information_nats(np.zeros((1, 4, 4))).tolist() == [0.0]


def test_one_expert_is_balanced():
    assert entropy_fraction(np.array([[7]])).tolist() == [1.0]
    assert gini_fraction(np.array([[7]])).tolist() == [0.0]


def test_ranks_must_divide():
    with pytest.raises(InputError, match="divisor of num_experts=4"):
        rank_imbalance_ratio(np.ones(4), 3)


def test_mutual_information_of_copies_and_of_independence():
    assert mutual_information_nats(np.eye(8)) == pytest.approx(np.log(8))
    assert mutual_information_nats(np.outer([1, 2, 3], [4, 5, 6])) == pytest.approx(0.0, abs=1e-12)


def test_repeat_by_hand():
    ids = [[[0, 1]], [[1, 2]], [[1, 2]], [[5, 6]]]
    assert repeat_fraction(trace_of(ids, 8)).tolist() == [0.5]
    # the last two tokens belong to another request: only 1 of the 2+2 comparisons repeats
    assert repeat_fraction(trace_of(ids, 8, lengths=[2, 2])).tolist() == [0.25]


def test_independent_repeat_is_what_independent_tokens_do():
    rng = np.random.default_rng(0)
    rows = rng.permuted(np.tile(np.arange(16, dtype=np.uint8), (40_000, 1, 1)), axis=2)[..., :4]
    trace = trace_of(rows, 16)
    expected = independent_repeat_fraction(trace.counts(), trace.num_tokens)
    assert expected == pytest.approx([4 / 16], rel=1e-3)
    assert repeat_fraction(trace) == pytest.approx(expected, rel=0.02)


def plain_lru(ids, size, together):
    """Hits of an ordered list with the oldest use first, one layer."""
    held, hits, lookups = [], 0, 0
    for row in ids:
        groups = [list(row)] if together else [[e] for e in row]
        for group in groups:
            hits += sum(e in held for e in group)
            lookups += len(group)
            for expert in group:
                if expert in held:
                    held.remove(expert)
                held.append(expert)
            held = held[-size:]
    return hits / lookups


@pytest.mark.parametrize("one_by_one", [False, True])
def test_lru_against_a_plain_list(one_by_one):
    trace = small_trace(tokens=300, experts=12, top_k=3, layers=2)
    sizes = [3, 5, 8, 12]
    got = lru_hit_fraction(trace.expert_ids, 12, sizes, one_by_one=one_by_one)
    for s, size in enumerate(sizes):
        for layer in range(2):
            expected = plain_lru(trace.expert_ids[:, layer].tolist(), size, not one_by_one)
            assert got[s, layer] == pytest.approx(expected)


def test_lru_does_not_count_empty_slots():
    ids = np.array([[[0, 255]], [[0, 255]]], np.uint8)
    assert lru_hit_fraction(ids, 4, [2]).tolist() == [[0.5]]


def test_touched_experts_grow_with_the_batch_and_start_at_top_k():
    trace = small_trace(tokens=600, experts=32, top_k=4)
    curve = touched_experts(trace, (1, 4, 16, 64), np.random.default_rng(0))
    assert curve[0].tolist() == [4.0] * 3
    assert (np.diff(curve, axis=0) > 0).all()
    assert curve.max() <= 32


def test_summary_of_a_small_trace_is_complete():
    means = summarize(small_trace(), np.random.default_rng(0), batch_sizes=(1, 8)).means()
    assert {"gini_fraction", "rank_imbalance_ratio_4", "touched_experts_8", "lru_hit_fraction_4"} <= set(
        means
    )
    assert "rank_imbalance_ratio_16" not in means
    assert (
        "mutual_information_nats"
        not in summarize(small_trace(layers=1), np.random.default_rng(0), batch_sizes=(1,)).means()
    )


# Published-trace values: max/mean, entropy, Gini, rank imbalance on 4, 8, 16 ranks, mutual
# information, repeat, independent repeat, LRU at 2k and 4k; computed before this code existed.
PUBLISHED = {
    "esft_dsv2lite_law": (64, (3.5, 0.96, 0.30, 1.18, 1.39, 1.70, 0.48, 0.29, 0.13, 0.38, 0.59)),
    "esft_dsv2lite_translation": (64, (5.6, 0.88, 0.54, 1.33, 1.69, 2.36, 0.44, 0.27, 0.23, 0.41, 0.73)),
    "gptoss20b_gpqa_diamond": (32, (3.1, 0.89, 0.46, 1.21, 1.56, 2.23, 0.36, 0.46, 0.22, 0.63, 0.87)),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_statistics_of_public_traces(name):
    experts, expected = PUBLISHED[name]
    data = public_trace(name)
    lengths = data["seq_lens"].astype(int)
    trace = trace_of(data["expert_ids"], experts, lengths=lengths)
    means = summarize(trace, np.random.default_rng(0), batch_sizes=(1,), num_batches=2, lru_tokens=1).means()
    names = ["imbalance_ratio", "entropy_fraction", "gini_fraction"]
    names += [f"rank_imbalance_ratio_{g}" for g in (4, 8, 16)]
    names += ["mutual_information_nats", "repeat_fraction", "independent_repeat_fraction"]
    for field, value in zip(names, expected, strict=False):
        # half a unit of the last printed digit, and as much again for rounding of the inputs
        assert means[field] == pytest.approx(value, abs=0.06 if field == "imbalance_ratio" else 0.011), field
    sizes = [2 * trace.top_k, 4 * trace.top_k]
    hits = lru_hit_fraction(trace.expert_ids[:4096], experts, sizes, one_by_one=True).mean(axis=1)
    assert hits == pytest.approx(expected[-2:], abs=0.04)
