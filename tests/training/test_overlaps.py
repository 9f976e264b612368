"""Overlap of dispatch, experts and combine: bounds and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.evidence import Estimate
from moesim.training.overlaps import Triple, TripleOverlap, span_s, triple_overlaps
from moesim.training.overlaps.base import Curve

SECONDS = st.floats(1e-6, 1e-2)
RANKS = 4


def _curve(per_row_s: np.ndarray | float, fixed_s: float = 0.0) -> Curve:
    return lambda fraction: Estimate(fixed_s + np.asarray(per_row_s) * fraction, "moe", "assumed", 0.1)


def _triple(dispatch: float, experts: np.ndarray | float, combine: float, fixed_s: float = 0.0) -> Triple:
    curves = (_curve(one, fixed_s) for one in (dispatch, experts, combine))
    return Triple(*curves, group=np.zeros(RANKS, np.int64))


def _policy(name: str, **params: object) -> TripleOverlap:
    return triple_overlaps.build(name, params)


@settings(deadline=None, max_examples=10)
@given(SECONDS, st.lists(SECONDS, min_size=RANKS, max_size=RANKS), SECONDS)
def test_no_policy_beats_the_longest_part_or_loses_to_none(
    there: float, each: list[float], back: float
) -> None:
    experts = np.array(each)
    triple = _triple(there, experts, back)
    plain = span_s(_policy("none"), triple)
    assert plain == pytest.approx(there + experts.max() + back, rel=1e-6)
    for name in ("chunked", "fine_grained", "persistent"):
        span = span_s(_policy(name), triple)
        assert span.shape == (RANKS,)
        assert span.max() >= max(experts.max(), there, back) * (1 - 1e-6)
        if name != "fine_grained":
            assert span.max() <= plain.max() * (1 + 1e-6)


@pytest.mark.parametrize("degree", [1, 2, 4, 8])
def test_chunks_reach_the_closed_forms_at_both_ends(degree: int) -> None:
    busy = _triple(1e-3, 80e-3, 1e-3)
    # products miss the multiprocessors of all exchanges but the first and the last
    lent_s = (2e-3 - 2e-3 / degree) * busy.exchange_sms / busy.num_sms
    assert span_s(_policy("chunked", degree=degree), busy) == pytest.approx(80e-3 + 2e-3 / degree + lent_s)
    crowded = _triple(8e-3, 1e-3, 8e-3)
    expected = 16e-3 + (1e-3 if degree == 1 else 0.0)
    assert span_s(_policy("chunked", degree=degree), crowded) == pytest.approx(expected)


def test_the_chosen_degree_falls_as_fixed_costs_grow() -> None:
    spans = {
        fixed: {
            d: span_s(_policy("chunked", degree=d), _triple(1e-3, 2e-3, 1e-3, fixed)).max()
            for d in (1, 2, 4, 8)
        }
        for fixed in (0.0, 1e-4, 1e-2)
    }
    best = [min(by_degree, key=by_degree.__getitem__) for by_degree in spans.values()]
    assert best == sorted(best, reverse=True)
    assert best[0] == 8
    assert best[-1] == 1
    for fixed, by_degree in spans.items():
        chosen = span_s(_policy("chunked"), _triple(1e-3, 2e-3, 1e-3, fixed)).max()
        assert chosen == pytest.approx(min(by_degree.values()))


def test_processors_that_communicate_slow_the_products() -> None:
    triple = _triple(1e-6, 3e-3, 1e-6)
    spans = [span_s(_policy("fine_grained", communicating_sms=sms), triple).max() for sms in (2, 20, 66)]
    assert spans == sorted(spans)
    assert spans[-1] == pytest.approx(3e-3 * 2, rel=0.01)
    chosen = span_s(_policy("fine_grained"), _triple(2e-3, 3e-3, 2e-3)).max()
    every = [
        span_s(_policy("fine_grained", communicating_sms=n), _triple(2e-3, 3e-3, 2e-3)).max()
        for n in (4, 20, 40)
    ]
    assert chosen <= min(every)


def test_bad_parameters_are_one_clear_error() -> None:
    with pytest.raises(InputError, match="degree"):
        _policy("chunked", degree=0)
    with pytest.raises(InputError, match="chunked"):
        _policy("chunkd")
