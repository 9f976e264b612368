"""Laws of routing traces over random traces and random damage to files."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.traces import RoutingTrace, TraceInfo, read_trace, repeat_layers, write_trace
from moesim.traces.generators.fitted_skew import FittedSkew
from moesim.traces.statistics import (
    entropy_fraction,
    gini_fraction,
    imbalance_ratio,
    lru_hit_fraction,
    mutual_information_nats,
    repeat_fraction,
)
from moesim.traces.store import verify_trace


@st.composite
def traces(draw):
    """Valid traces of any small shape, with empty slots, several requests and domains."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tokens, layers = draw(st.integers(1, 40)), draw(st.integers(1, 4))
    experts = draw(st.sampled_from([1, 2, 5, 8, 255, 256, 300]))
    top_k = draw(st.integers(1, min(experts, 5)))
    dtype = np.uint8 if experts <= 255 and draw(st.booleans()) else np.uint16
    ids = rng.permuted(np.tile(np.arange(experts, dtype=dtype), (tokens, layers, 1)), axis=2)[..., :top_k]
    ids = np.where(rng.random(ids.shape) < draw(st.sampled_from([0.0, 0.3, 1.0])), np.iinfo(dtype).max, ids)
    starts = np.sort(rng.integers(0, tokens, draw(st.integers(0, 5))))
    request = np.searchsorted(starts, np.arange(tokens), side="right")
    position = np.concatenate([np.arange(n) for n in np.unique(request, return_counts=True)[1]])
    domains = tuple(f"kind {i}" for i in range(draw(st.integers(1, 3))))
    return RoutingTrace(
        info=TraceInfo("any", experts, tuple(range(2, 2 + 3 * layers, 3)), "", domains),
        expert_ids=ids.astype(dtype),
        request_index=request.astype(np.int32),
        position=position.astype(np.int32),
        step_index=position.astype(np.int32),
        phase=(position > 3).astype(np.uint8),
        domain_index=(request % len(domains)).astype(np.uint8),
        gate_weights=rng.random(ids.shape).astype(np.float16) if draw(st.booleans()) else None,
    )


@given(traces())
def test_routed_tokens_are_conserved(trace):
    verify_trace(trace)
    real = int((trace.expert_ids < trace.num_experts).sum())
    assert trace.counts().sum() == real
    layer_real = (trace.expert_ids < trace.num_experts).sum(axis=2)
    assert trace.transitions().sum() == (layer_real[:, :-1] * layer_real[:, 1:]).sum()


@given(traces(), st.floats(0.05, 0.95))
def test_split_parts_add_up(trace, fraction):
    try:
        fit, heldout = trace.split(fraction)
    except InputError:
        return
    assert np.array_equal(fit.counts() + heldout.counts(), trace.counts())
    assert not set(fit.request_index.tolist()) & set(heldout.request_index.tolist())
    verify_trace(fit)
    verify_trace(heldout)


@given(traces())
def test_files_give_back_what_was_written(trace):
    with tempfile.TemporaryDirectory() as folder:
        path = write_trace(Path(folder) / "t.safetensors", trace)
        back = read_trace(path)
        assert back.info == trace.info
        assert back.expert_ids.dtype == trace.expert_ids.dtype
        assert np.array_equal(back.expert_ids, trace.expert_ids)
        assert np.array_equal(back.request_index, trace.request_index)
        assert write_trace(Path(folder) / "again", back).read_bytes() == path.read_bytes()


@settings(max_examples=150)
@given(traces(), st.integers(0, 2**32 - 1), st.sampled_from(["flip", "cut", "insert", "zero"]))
def test_damaged_files_give_a_trace_or_an_input_error(trace, seed, damage):
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = write_trace(Path(folder) / "t.safetensors", trace)
        raw = bytearray(path.read_bytes())
        # mostly the header, where damage is interesting
        at = int(rng.integers(len(raw) if rng.random() < 0.3 else min(len(raw), 900)))
        if damage == "flip":
            raw[at] ^= int(rng.integers(1, 256))
        elif damage == "cut":
            del raw[at : at + int(rng.integers(1, 20))]
        elif damage == "insert":
            raw[at:at] = rng.bytes(int(rng.integers(1, 20)))
        else:
            raw[at : at + 8] = bytes(len(raw[at : at + 8]))
        path.write_bytes(raw)
        try:
            back = read_trace(path)
        except InputError as error:
            assert str(error)  # noqa: PT017 - any other exception fails the test
            return
        verify_trace(back)
        assert back.counts().shape == (back.num_layers, back.num_experts)


@given(traces())
def test_renaming_experts_changes_no_statistic(trace):
    names = np.random.default_rng(0).permutation(trace.num_experts)
    table = np.concatenate([names, np.full(65_536 - trace.num_experts, trace.empty_slot)])
    renamed = RoutingTrace(
        trace.info,
        table[trace.expert_ids].astype(trace.expert_ids.dtype),
        trace.request_index,
        trace.position,
        trace.step_index,
        trace.phase,
        trace.domain_index,
    )
    for statistic in (gini_fraction, entropy_fraction, imbalance_ratio):
        assert np.allclose(statistic(trace.counts()), statistic(renamed.counts()))
    assert np.allclose(repeat_fraction(trace), repeat_fraction(renamed))
    assert np.allclose(
        mutual_information_nats(trace.transitions()),
        mutual_information_nats(renamed.transitions()),
        atol=1e-9,
    )
    sizes = [1, 2, trace.num_experts]
    assert np.allclose(
        lru_hit_fraction(trace.expert_ids, trace.num_experts, sizes),
        lru_hit_fraction(renamed.expert_ids, trace.num_experts, sizes),
    )


@given(traces())
def test_statistics_stay_in_their_ranges(trace):
    counts = trace.counts()
    experts = trace.num_experts
    assert ((gini_fraction(counts) > -1e-12) & (gini_fraction(counts) < 1)).all()
    assert ((entropy_fraction(counts) > -1e-12) & (entropy_fraction(counts) < 1 + 1e-12)).all()
    assert (imbalance_ratio(counts) <= experts + 1e-9).all()
    information = mutual_information_nats(trace.transitions())
    assert ((information > -1e-9) & (information <= np.log(experts) + 1e-9)).all()
    hits = lru_hit_fraction(trace.expert_ids, experts, sorted({1, min(2, experts), experts}))
    assert (np.diff(hits, axis=0) >= 0).all()


@given(traces(), st.integers(1, 9))
def test_repeated_layers_are_the_same_layers(trace, num_layers):
    deep = repeat_layers(trace, num_layers)
    assert np.array_equal(deep.counts(), trace.counts()[np.arange(num_layers) % trace.num_layers])


@settings(max_examples=25)
@given(
    st.integers(1, 300),
    st.integers(1, 3),
    st.sampled_from([1, 2, 7, 32, 300]),
    st.integers(1, 6),
    st.floats(0, 8),
    st.floats(0, 0.99),
    st.floats(0, 1),
    st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=20),
)
def test_fitted_skew_is_valid_for_any_knobs(
    tokens, layers, experts, top_k, strength, persistence, sharing, curve
):
    maker = FittedSkew(tuple(curve), strength, persistence, sharing)
    made = maker.generate(tokens, layers, experts, min(top_k, experts), np.random.default_rng(0))
    verify_trace(made)
    assert made.counts().sum() == tokens * layers * min(top_k, experts)
