import math

import pytest

from moesim.errors import InputError
from moesim.validate.claims import Claim, claim_sets, claims_of, plain, published, summary


def claim(simulated: float, *, absolute: bool = False) -> Claim:
    return Claim("c", "s", "x", 2.0, simulated, 0.5, absolute)


def test_tolerance_is_relative_unless_the_claim_says_otherwise():
    assert claim(3.0).within
    assert not claim(3.1).within
    assert claim(2.5, absolute=True).within
    assert not claim(2.6, absolute=True).within
    assert not claim(math.nan).within


def test_summary_counts_what_is_within():
    assert summary([claim(3.0), claim(9.0)]) == {"n": 2, "n_within": 1, "median_ape": 2.0}
    assert summary([])["median_ape"] is None


def test_unknown_set_names_the_known_ones():
    with pytest.raises(InputError, match="SET"):
        claims_of("nowhere")


@pytest.mark.parametrize("name", claim_sets())
def test_published_numbers_carry_a_source(name):
    assert "source" in str(published(name).data)


def test_groups_show_what_is_left_without_each():
    one, other = (
        Claim("c", "s", "x", 2.0, value, 0.5, group=name)
        for value, name in ((3.0, "step a"), (4.0, "step b"))
    )
    groups = summary([one, other, claim(9.0)])["groups"]
    assert [group["name"] for group in groups] == ["step a", "step b"]
    assert [group["median_ape"] for group in groups] == [0.5, 1.0]
    assert [group["median_ape_without"] for group in groups] == [1.0, 0.5]


def test_what_did_not_run_is_null_and_counts_as_missed():
    rows = plain([claim(math.nan)])
    assert rows[0]["simulated"] is None
    assert rows[0]["within"] is False
    assert summary([claim(math.nan)]) == {"n": 1, "n_within": 0, "median_ape": None}
