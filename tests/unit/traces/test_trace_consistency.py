"""Routing from a published skew and consistency: what is asked for is what comes out."""

import numpy as np
import pytest
from trace_samples import trace_of as given_trace

from moesim.errors import InputError
from moesim.files import find
from moesim.traces.consistency import load_of_deviation, trace_of, with_consistency, with_skew
from moesim.traces.generators import generators
from moesim.traces.locality import segment_cover_fraction, segment_routing_performance
from moesim.traces.matched import read_parameters


@pytest.fixture(scope="module")
def base():
    assert "matched" in generators.names()
    return read_parameters(find("deepseek_v2_lite", "traces", field="like", suffixes=(".json",)))


@pytest.mark.parametrize(
    ("experts", "top_k", "deviation"), [(8, 2, 0.2904), (64, 6, 0.0234), (128, 1, 0.0058)]
)
def test_load_has_the_asked_deviation(experts, top_k, deviation):
    load = load_of_deviation(experts, top_k, deviation)
    assert load.mean() == pytest.approx(1.0)
    assert load.std() * top_k / experts == pytest.approx(deviation, rel=1e-3)
    assert load.max() <= experts / top_k


def test_impossible_deviation_is_refused():
    with pytest.raises(InputError, match=r"0 to 0\.433"):
        load_of_deviation(8, 2, 0.5)


def test_generated_traces_have_the_asked_skew_and_consistency(base):
    skewed = with_skew(base, (3, 32, 4), 0.06, np.random.default_rng(0))
    shares = trace_of(skewed, 4096, 1).counts() / 4096
    assert shares.std(axis=1).mean() == pytest.approx(0.06, rel=0.1)
    for target in (0.4, 0.5, 0.6):
        asked = with_consistency(skewed, target, 2048, 1)
        reached = segment_routing_performance(trace_of(asked, 4096, 2), 16)[1]
        assert reached == pytest.approx(target, abs=0.03)


def test_cover_by_hand():
    # segments of two: {0, 0} and {1, 2}; the fifth token is left out
    trace = given_trace([[[0]], [[0]], [[1]], [[2]], [[2]]], 3)
    assert segment_cover_fraction(trace, 2, (1, 2)).tolist() == [[0.75], [1.0]]
