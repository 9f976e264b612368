"""The matched generator, its fit and its parameter files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trace_samples import public_trace, small_trace, trace_of

from moesim.errors import InputError
from moesim.traces.compare import BARS, behaviour, errors, missed
from moesim.traces.fit_matched import LAGS, _mixture, fit_matched, lag_repetition
from moesim.traces.generators import generators
from moesim.traces.matched import (
    PERSISTENCES,
    MatchedParameters,
    context,
    matched_trace,
    read_parameters,
    write_parameters,
)
from moesim.traces.statistics import gini_fraction
from moesim.traces.store import verify_trace

MATCHED = Path(__file__).resolve().parents[3] / "traces" / "matched"
SHIPPED = sorted(MATCHED.glob("*.json"))


def parameters(**changed):
    load = np.random.default_rng(0).gamma(2.0, 0.5, (6, 32))
    load = np.round(load / load.mean(axis=1, keepdims=True), 3)
    base = MatchedParameters(
        model="made",
        source="test",
        top_k=4,
        layer_indices=tuple(range(1, 7)),
        relative_load=tuple(map(tuple, load.tolist())),
        context_size=5,
        context_strength=4.0,
        layer_sharing=1.0,
        variance_shares=(0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1),
        num_domains=2,
        request_tokens=100,
    )
    return replace(base, **changed)


def made(given, tokens=3000, seed=0):
    return matched_trace(given, tokens, *given.load.shape, given.top_k, np.random.default_rng(seed))


def test_load_of_every_expert_is_the_measured_one():
    given = parameters()
    trace = made(given, tokens=6000)
    verify_trace(trace)
    share = trace.counts() / trace.num_tokens / given.top_k * 32
    assert np.abs(share - given.load).mean() < 0.06
    assert trace.info.layer_indices == given.layer_indices
    assert trace.info.evidence == "assumed"
    assert np.bincount(trace.request_index).tolist() == [100] * 60


def test_one_of_eight_experts_is_not_busier_than_recorded():
    four = read_parameters(MATCHED / "mixtral_8x7b.json")
    four = replace(four, layer_indices=four.layer_indices[:4], relative_load=four.relative_load[:4])
    trace = made(four, tokens=32768)
    share = trace.counts() / trace.num_tokens / four.top_k * 8
    assert np.sqrt(((share - four.load) ** 2).mean()) < 0.025


@pytest.mark.parametrize(("name", "overload"), [("qwen3_30b_a3b", 1.56), ("mixtral_8x7b", 1.10)])
def test_recorded_loads_of_eight_ranks(name, overload):
    load = read_parameters(MATCHED / f"{name}.json").load
    ranks = load.reshape(len(load), 8, -1).mean(axis=-1)
    assert (ranks.max(axis=1) / ranks.mean(axis=1)).mean() == pytest.approx(overload, abs=0.01)


def test_contexts_have_the_asked_autocorrelation():
    shares = (0.2, 0.0, 0.3, 0.0, 0.0, 0.2, 0.3)
    given = parameters(variance_shares=shares, request_tokens=64)
    seen = context(given, 64 * 600, np.arange(600) % 2, np.random.default_rng(0))
    seen = seen.reshape(600, 64, -1)
    for lag in (1, 4, 16):
        want = sum(s * p**lag for s, p in zip(shares, PERSISTENCES, strict=True))
        assert (seen[:, lag:] * seen[:, :-lag]).mean() == pytest.approx(want, abs=0.06)


def test_mixture_recovers_a_mixture():
    true = np.array([0.25, 0.35, 0.0, 0.2, 0.0, 0.0, 0.2])
    correlations = sum(s * p ** np.array(LAGS, float) for s, p in zip(true, PERSISTENCES, strict=True))
    found = _mixture(correlations)
    again = sum(s * p ** np.array(LAGS, float) for s, p in zip(found, PERSISTENCES, strict=True))
    assert again == pytest.approx(correlations, abs=0.02)
    assert (found >= 0).all()
    assert found.sum() == pytest.approx(1.0, abs=0.01)


def test_repetition_by_hand():
    trace = trace_of([[[0, 1]], [[1, 2]], [[0, 3]], [[2, 3]]], 4, lengths=[3, 1])
    assert lag_repetition(trace, (1, 2)).tolist() == [0.25, 0.5]


def test_fit_of_a_generated_trace_behaves_like_it():
    trace = made(parameters(), tokens=4000, seed=3)
    fit_on, held_out = trace.split()
    found = fit_matched(fit_on, np.random.default_rng(0))
    again = made(found, tokens=held_out.num_tokens, seed=9)
    off = errors(*(behaviour(t, np.random.default_rng(1)) for t in (held_out, again)))
    assert missed(off) == []
    assert found.num_domains == 2


def test_other_shapes_keep_the_skew():
    given = parameters()
    for layers, experts, top_k in ((3, 32, 4), (12, 128, 8), (6, 32, 6)):
        trace = matched_trace(given, 2000, layers, experts, top_k, np.random.default_rng(0))
        verify_trace(trace)
        assert trace.expert_ids.shape == (2000, layers, top_k)
        assert gini_fraction(trace.counts()).mean() == pytest.approx(
            gini_fraction(given.load).mean(), abs=0.08
        )
        assert "re-targeted" in trace.info.source


def test_fits_of_tiny_and_degenerate_traces_are_finite():
    dead = trace_of(np.zeros((40, 2, 1)), experts=4)
    made(fit_matched(dead, np.random.default_rng(0)), tokens=30)
    one_layer = small_trace(tokens=40, layers=1, experts=4, top_k=4, requests=2)
    made(fit_matched(one_layer, np.random.default_rng(0)), tokens=30)
    with pytest.raises(InputError, match="at least 16 tokens"):
        fit_matched(small_trace(tokens=6, requests=2), np.random.default_rng(0))


def test_parameters_round_trip_and_faults(tmp_path):
    given = parameters()
    path = write_parameters(tmp_path / "p.json", given)
    assert read_parameters(path) == given
    text = path.read_text()
    for old, new, word in (
        ('"top_k": 4', '"top_k": 99', "at least top_k experts"),
        ('"top_k": 4', '"topk": 4', "unknown field"),
        ('"context_strength": 4.0', '"context_strength": "much"', "context_strength"),
        ('"layer_sharing": 1.0', '"layer_sharing": 1.5', "layer_sharing"),
        ("[0.3, 0.2", "[0.9, 0.2", "sum to 1"),
        ("{", "[", "JSON"),
    ):
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(InputError, match=word):
            read_parameters(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_parameters_generate(path):
    found = read_parameters(path)
    assert len(found.source) > 20
    made = generators.build("matched", {"like": path.stem})
    trace = made.generate(300, *found.load.shape, found.top_k, np.random.default_rng(0))
    verify_trace(trace)


def test_unknown_name_lists_those_that_begin_alike():
    with pytest.raises(InputError, match=r"known: .*gpt_oss_20b"):
        generators.build("matched", {"like": "gpt_oss_1b"}).generate(9, 1, 4, 2, np.random.default_rng(0))


def test_bars_on_numbers_by_hand():
    reference = dict.fromkeys(BARS, 0.5)
    other = reference | {"repeat_fraction": 0.56, "lru_hit_fraction_2k": 0.46, "touched_experts_8": 0.52}
    off = errors(reference, other)
    assert off["repeat_fraction"] == pytest.approx(0.12)
    assert off["lru_hit_fraction_2k"] == pytest.approx(-0.04)
    assert missed(off) == ["repeat_fraction", "lru_hit_fraction_2k"]


def test_held_out_half_of_a_public_trace_is_met():
    data = public_trace("gptoss20b_gpqa_main")
    ids = data["expert_ids"]
    trace = trace_of(ids, int(ids.max()) + 1, lengths=data["seq_lens"].astype(int))
    fit_on, held_out = trace.split()
    found = fit_matched(fit_on, np.random.default_rng(3))
    again = made(found, tokens=held_out.num_tokens, seed=5)
    off = errors(*(behaviour(t, np.random.default_rng(0)) for t in (held_out, again)))
    assert missed(off) == []
