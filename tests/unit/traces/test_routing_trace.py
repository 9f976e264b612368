from dataclasses import replace

import numpy as np
import pytest
from trace_samples import small_trace, trace_of

from moesim.errors import InputError
from moesim.traces import ExpertCounts, TraceInfo, check_against, count_experts, repeat_layers


def test_counts_by_hand():
    trace = trace_of([[[0, 1]], [[1, 2]], [[1, 255]]], experts=4)
    assert trace.counts().tolist() == [[1, 3, 1, 0]]


def test_counts_against_a_loop():
    trace = small_trace(empty=0.2)
    expected = np.zeros((3, 8), int)
    for token in range(trace.num_tokens):
        for layer in range(3):
            for expert in trace.expert_ids[token, layer]:
                if expert != 255:
                    expected[layer, expert] += 1
    assert np.array_equal(trace.counts(), expected)


def test_transitions_against_a_loop():
    trace = small_trace(empty=0.2, layers=4)
    expected = np.zeros((3, 8, 8), int)
    for row in trace.expert_ids:
        for layer in range(3):
            for a in row[layer]:
                for b in row[layer + 1]:
                    if a != 255 and b != 255:
                        expected[layer, a, b] += 1
    assert np.array_equal(trace.transitions(), expected)


def test_transitions_of_one_layer_are_empty():
    assert small_trace(layers=1).transitions().shape == (0, 8, 8)


def test_split_keeps_requests_whole_and_domains_even():
    trace = small_trace(tokens=240, requests=24)
    fit, heldout = trace.split(0.5)
    assert fit.num_tokens + heldout.num_tokens == trace.num_tokens
    assert not set(fit.request_index.tolist()) & set(heldout.request_index.tolist())
    for part in (fit, heldout):
        assert np.bincount(part.domain_index).tolist() == [60, 60]
    assert np.array_equal(fit.counts() + heldout.counts(), trace.counts())


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_split_refuses_fraction(fraction):
    with pytest.raises(InputError, match="between 0 and 1"):
        small_trace().split(fraction)


def test_split_of_one_request_is_refused():
    with pytest.raises(InputError, match="1 requests cannot be split"):
        small_trace(requests=1, domains=("all",)).split(0.5)


def test_select_and_window():
    trace = small_trace()
    assert set(trace.select(domain="code").domain_index.tolist()) == {1}
    assert set(trace.select(phase="decode").phase.tolist()) == {1}
    assert trace.window(5, 9).num_tokens == 4
    assert np.shares_memory(trace.window(5, 9).expert_ids, trace.expert_ids)
    with pytest.raises(InputError, match="did you mean 'code'"):
        trace.select(domain="cod")
    with pytest.raises(InputError, match="accepted: prefill, decode"):
        trace.select(phase="training")
    with pytest.raises(InputError, match="start < stop"):
        trace.window(5, 61)


@pytest.mark.parametrize("sampling", ["scattered", "contiguous"])
@pytest.mark.parametrize("batch_tokens", [1, 7, 200])
def test_batches_conserve_tokens(sampling, batch_tokens):
    trace = small_trace()
    batches = trace.batches(batch_tokens, 5, np.random.default_rng(1), sampling=sampling)
    assert batches.shape == (5, 3, 8)
    assert (batches.sum(axis=-1) == batch_tokens * trace.top_k).all()
    again = trace.batches(batch_tokens, 5, np.random.default_rng(1), sampling=sampling)
    assert np.array_equal(batches, again)


def test_batch_of_the_whole_trace_is_its_counts():
    trace = small_trace(empty=0.1)
    for sampling in ("scattered", "contiguous"):
        batch = trace.batches(60, 1, np.random.default_rng(0), sampling=sampling)
        assert np.array_equal(batch[0], trace.counts())


def test_batches_refuse_no_tokens():
    with pytest.raises(InputError, match="batch_tokens"):
        small_trace().batches(0, 1, np.random.default_rng(0))


def test_shapes_that_contradict_are_all_told():
    trace = small_trace()
    with pytest.raises(InputError) as caught:
        replace(
            trace,
            position=trace.position[:-1],
            phase=trace.phase.astype(np.int64),
            info=TraceInfo("x", 300, (2, 1)),
        )
    told = str(caught.value)
    for word in ("position", "phase", "num_experts", "layer_indices"):
        assert word in told


def test_empty_trace_is_refused():
    with pytest.raises(InputError, match="none of them 0"):
        replace(small_trace(), expert_ids=np.zeros((0, 3, 2), np.uint8))


def test_check_against_lists_every_mismatch():
    trace = small_trace()
    check_against(trace, model="tiny", num_experts=8, num_layers=3, top_k=2)
    with pytest.raises(InputError) as caught:
        check_against(trace, model="other", num_experts=16, num_layers=4, top_k=8)
    assert len(caught.value.problems) == 4
    assert "got 8; accepted: 16" in str(caught.value)
    counts = ExpertCounts(trace.info, trace.counts()[None])
    check_against(counts, num_experts=8, top_k=5)
    with pytest.raises(InputError, match="num_layers"):
        check_against(counts, num_layers=5)


def test_repeat_layers_tiles_and_says_so():
    trace = small_trace()
    deep = repeat_layers(trace, 7)
    assert deep.num_layers == 7
    assert deep.info.evidence == "assumed"
    assert "repeated to 7" in deep.info.source
    assert np.array_equal(deep.counts(), trace.counts()[[0, 1, 2, 0, 1, 2, 0]])
    assert np.array_equal(deep.gate_weights[:, 4], trace.gate_weights[:, 1])
    assert repeat_layers(trace, 2).num_layers == 2
    with pytest.raises(InputError, match="num_layers"):
        repeat_layers(trace, 0)


def test_wide_ids_use_their_own_empty_mark():
    ids = np.array([[[0, 299]], [[255, 65535]]], np.uint16)
    assert count_experts(ids, 300)[0][[0, 255, 299]].tolist() == [1, 1, 1]
    assert count_experts(ids, 300).sum() == 3


def test_expert_counts_total_and_shape():
    info = TraceInfo("m", 4, (0, 1))
    assert ExpertCounts(info, np.ones((3, 2, 4), np.int64)).total().tolist() == [[3] * 4] * 2
    with pytest.raises(InputError, match="at least one step"):
        ExpertCounts(info, np.ones((3, 4, 2), np.int64))
