import numpy as np
import pytest
from trace_samples import public_trace, small_trace, trace_of

from moesim.errors import InputError
from moesim.traces import fit_skew, summarize, write_trace
from moesim.traces.fit import correlations, load_curve
from moesim.traces.generators import generators
from moesim.traces.generators.fitted_skew import FittedSkew, stretched_curve
from moesim.traces.statistics import gini_fraction, repeat_fraction
from moesim.traces.store import verify_trace
from moesim.traces.synthetic import choose, inclusion_targets, race_weights

SHAPES = [(1, 1, 1, 1), (5, 2, 4, 4), (300, 3, 16, 2), (70, 1, 300, 8)]


@pytest.mark.parametrize("name", generators.names())
@pytest.mark.parametrize("shape", SHAPES)
def test_every_generator_keeps_the_contract(name, shape, monkeypatch):
    monkeypatch.setattr("moesim.traces.fit.FIT_TOKENS", 256)
    tokens, layers, experts, top_k = shape
    made = generators.build(name).generate(*shape, np.random.default_rng(3))
    assert made.expert_ids.shape == (tokens, layers, top_k)
    assert made.num_experts == experts
    assert made.info.evidence == "assumed"
    assert name in made.info.source
    assert made.counts().sum() == tokens * layers * top_k
    verify_trace(made)  # ids in range, distinct within a token, rows in order
    again = generators.build(name).generate(*shape, np.random.default_rng(3))
    assert np.array_equal(again.expert_ids, made.expert_ids)


@pytest.mark.parametrize("name", generators.names())
@pytest.mark.parametrize("shape", [(0, 1, 4, 2), (5, 0, 4, 2), (5, 1, 4, 5), (5, 1, 4, 0), (5, 1, 70_000, 2)])
def test_every_generator_refuses_impossible_shapes(name, shape):
    with pytest.raises(InputError, match="accepted"):
        generators.build(name).generate(*shape, np.random.default_rng(0))


def test_inclusion_targets_sum_to_top_k_and_respect_the_ceiling():
    popularity = np.array([[1000.0, 1, 1, 1], [1, 1, 1, 1], [8, 4, 2, 1]])
    targets = inclusion_targets(popularity, 2)
    assert targets.sum(axis=1) == pytest.approx([2, 2, 2])
    assert targets.max() <= 0.98 + 1e-12
    assert targets[1] == pytest.approx([0.5] * 4)
    assert targets[0, 1:] == pytest.approx([1.02 / 3] * 3)


def test_race_reaches_its_inclusion_targets():
    popularity = np.arange(1, 65) ** -0.7
    targets = inclusion_targets(popularity, 6)
    rates = np.broadcast_to(race_weights(targets).astype(np.float32), (40_000, 64))
    chosen = np.bincount(choose(rates, 6, np.random.default_rng(0)).ravel(), minlength=64) / 40_000
    assert chosen == pytest.approx(targets, rel=0.08)


def test_zipf_and_uniform_have_their_load():
    rng = np.random.default_rng(0)
    zipf = generators.build("zipf", {"exponent": 0.6}).generate(20_000, 2, 64, 6, rng)
    share = np.sort(zipf.counts()[0])[::-1] / (20_000 * 6)
    power = np.arange(1, 65) ** -0.6
    assert share == pytest.approx(power / power.sum(), rel=0.12)
    uniform = generators.build("uniform").generate(20_000, 2, 64, 6, rng)
    assert gini_fraction(uniform.counts()).max() < 0.03


def test_more_skew_gives_more_gini():
    def gini(name, **params):
        made = generators.build(name, params).generate(4000, 4, 32, 4, np.random.default_rng(0))
        return gini_fraction(made.counts()).mean()

    assert gini("zipf", exponent=0.2) < gini("zipf", exponent=0.8) < gini("zipf", exponent=1.5)
    assert gini("lognormal", popularity_sigma=0.3) < gini("lognormal", popularity_sigma=1.2)


def test_fitted_skew_knobs_do_what_they_say():
    def measured(**knobs):
        made = FittedSkew(load_curve=(2.0, 1.0, 0.5), **knobs).generate(
            4000, 4, 32, 4, np.random.default_rng(0)
        )
        return *correlations(made), gini_fraction(made.counts()).mean()

    none = measured(context_strength=0.0)
    tied = measured(context_strength=4.0, persistence=0.0)
    lasting = measured(context_strength=4.0, persistence=0.9)
    apart = measured(context_strength=4.0, persistence=0.9, layer_sharing=0.0)
    assert none[0] < 0.05
    assert abs(none[1]) < 0.02
    assert tied[0] > 0.25
    assert abs(tied[1]) < 0.03
    assert lasting[1] > 0.15
    assert apart[0] < lasting[0] / 2
    assert apart[1] > 0.15
    # correlations leave the load as it was
    assert [tied[2], lasting[2]] == pytest.approx([none[2]] * 2, abs=0.04)


def test_stretched_curve_keeps_the_mean_and_order():
    for experts in (3, 32, 256):
        curve = stretched_curve((4.0, 2.0, 1.0, 0.2), experts)
        assert curve.mean() == pytest.approx(1.0)
        assert (np.diff(curve) <= 0).all()


@pytest.mark.parametrize(
    ("params", "word"),
    [({"persistence": 1.0}, "< 1"), ({"load_curve": [1.0, -1.0]}, "> 0"), ({"sigma": 1}, "unknown field")],
)
def test_wrong_parameters_are_told(params, word):
    with pytest.raises(InputError, match=word):
        generators.build("fitted_skew", params)


def test_fit_recovers_a_generated_trace():
    true = FittedSkew(load_curve=(3.0, 1.5, 1.0, 0.6, 0.3), context_strength=3.0, persistence=0.6)
    trace = true.generate(4096, 4, 32, 4, np.random.default_rng(0))
    fitted = fit_skew(trace, np.random.default_rng(1))
    again = fitted.generate(4096, 4, 32, 4, np.random.default_rng(2))
    assert correlations(again) == pytest.approx(correlations(trace), rel=0.25)
    assert gini_fraction(again.counts()).mean() == pytest.approx(
        gini_fraction(trace.counts()).mean(), abs=0.04
    )


def test_fit_of_a_dead_layer_and_of_few_tokens_is_finite():
    dead = trace_of(np.zeros((40, 2, 1)), experts=4)
    assert min(load_curve(dead)) > 0
    made = fit_skew(dead, np.random.default_rng(0)).generate(50, 2, 4, 1, np.random.default_rng(0))
    assert repeat_fraction(made).mean() > 0.9
    fit_skew(small_trace(tokens=2, requests=1, domains=("all",)), np.random.default_rng(0))


def test_fit_of_a_public_trace_reproduces_its_statistics():
    data = public_trace("esft_dsv2lite_law")
    trace = trace_of(data["expert_ids"], 64, lengths=data["seq_lens"].astype(int))
    fitted = fit_skew(trace, np.random.default_rng(0))
    made = fitted.generate(trace.num_tokens, trace.num_layers, 64, 6, np.random.default_rng(5))
    want, got = (
        summarize(t, np.random.default_rng(0), batch_sizes=(16,), lru_tokens=4000).means()
        for t in (trace, made)
    )
    for name in ("gini_fraction", "repeat_fraction", "mutual_information_nats", "touched_experts_16"):
        assert got[name] == pytest.approx(want[name], rel=0.1), name
    for name in ("imbalance_ratio", "rank_imbalance_ratio_8", "lru_hit_fraction_24"):
        assert got[name] == pytest.approx(want[name], rel=0.15), name


def test_like_trace_carries_the_skew_of_its_source_to_another_shape(tmp_path):
    true = FittedSkew(load_curve=(4.0, 1.5, 0.6, 0.2), context_strength=3.0, persistence=0.5)
    source = true.generate(4096, 4, 32, 4, np.random.default_rng(0))
    path = write_trace(tmp_path / "source.safetensors", source)
    like = generators.build("like_trace", {"source": str(path)})
    made = like.generate(4096, 6, 128, 8, np.random.default_rng(1))
    assert made.expert_ids.shape == (4096, 6, 8)
    assert "fitted to synthetic" in made.info.source
    got, want = (gini_fraction(t.counts()).mean() for t in (made, source))
    assert got == pytest.approx(want, abs=0.05)
    assert correlations(made)[1] > 0.05
    with pytest.raises(InputError, match="no file 'nowhere'"):
        generators.build("like_trace", {"source": "nowhere"}).generate(10, 1, 4, 2, np.random.default_rng(0))
