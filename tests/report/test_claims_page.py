"""The page of published claims: every claim is on it, missed ones first, in units of its tolerance."""

import numpy as np
import pytest

from moesim.report.claims_page import FAR, by_source, distances, headline, strips, write_claims_page
from moesim.validate.claims import Claim, plain, summary

CLAIMS = [
    Claim("near", "Paper One (arXiv 1), table 2", "s", 2.0, 2.1, 0.1),
    Claim("far", "Paper One, figure 3", "s", 2.0, 1.0, 0.1, note="<why>"),
    Claim("exact", "Another", "experts", 7.0, 7.0, 0.0, absolute=True),
    Claim("unknown", "Another", "points", 7.0, float("nan"), 1.0, absolute=True),
]


def document() -> dict:
    return {"set": "some", "rows": plain(CLAIMS), "summary": summary(CLAIMS)}


def test_distances_are_in_units_of_the_tolerance():
    assert distances(document()["rows"]) == pytest.approx([0.5, -5.0, 0.0, FAR])
    off = [row | {"error": -1e-9} for row in document()["rows"][2:3]]
    assert np.array_equal(distances(off), [-FAR])  # nothing is allowed: any distance is far


def test_sources_are_named_by_their_first_words():
    assert {name: len(rows) for name, rows in by_source(document()["rows"]).items()} == {
        "Paper One": 2,
        "Another": 2,
    }


def test_every_claim_has_a_dot_and_its_line_counts_those_met():
    axes = strips(document()).axes[0]
    assert sum(len(dots.get_offsets()) for dots in axes.collections) == len(CLAIMS)
    assert [text.get_text() for text in axes.texts] == ["1 of 2", "1 of 2"]
    assert headline(document()) == "2 of 4 published figures are met; half are within 27.5 %"


def test_page_has_missed_claims_first_and_escapes_texts(tmp_path):
    cells = [[claim.name, "", "", claim.unit, "", "", claim.source, claim.note] for claim in CLAIMS]
    one, two = (write_claims_page(document(), tmp_path / name, cells) for name in "ab")
    text = one.read_text()
    assert one.read_bytes() == two.read_bytes()
    assert text.index("<h2>Missed</h2>") < text.index("<td>far</td>") < text.index("<h2>Met</h2>")
    assert text.index("<h2>Met</h2>") < text.index("<td>near</td>")
    assert "&lt;why&gt;" in text
