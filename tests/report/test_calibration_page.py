"""The calibration page: what it shows is what was counted, and the same input gives the same bytes."""

import re

import numpy as np
import pytest

from moesim.report.calibration_figures import MOST_SHOWN, errors, points
from moesim.report.plain_page import Section, write_plain_page

ROWS = [
    {"device": device, "family": "gemm", "median_ape": ape}
    for device, ape in (("a", 0.05), ("a", 0.07), ("b", 0.06), ("b", 0.9))
]


def test_errors_show_every_kernel_and_the_median():
    (axes,) = errors(ROWS).axes
    dots = [line for line in axes.lines if line.get_label() in {"a", "b"}]
    shown = sorted(float(x) for line in dots for x in line.get_xdata())
    assert shown == [0.05, 0.06, 0.07, MOST_SHOWN]
    assert [text.get_text() for text in axes.texts] == ["6.5 %"]
    assert errors([]) is None


def test_points_lie_on_the_line_where_predictions_hold():
    measured = np.geomspace(1e-5, 1e-2, 50)
    part = {
        "device": "a",
        "measured_s": measured,
        "predicted_s": measured * 1.1,
        "memory_over_compute": np.geomspace(0.1, 10, 50),
    }
    left, right = points("moe", [part]).axes
    assert left.lines[0].get_ydata() == pytest.approx(measured * 1.1)
    assert right.lines[0].get_ydata() == pytest.approx(np.log(1.1))
    assert points("moe", []) is None


def test_page_escapes_and_repeats(tmp_path):
    texts = []
    for name in ("1.html", "2.html"):
        sections = [
            Section("<b>head", "text & more", errors(ROWS)),
            Section(columns=("name", "n"), rows=[("<i>x", "1")], right=(1,)),
        ]
        texts.append(write_plain_page(tmp_path / name, "A <page>", sections).read_text())
    assert texts[0] == texts[1]
    assert "<i>x" not in texts[0]
    assert "&lt;b&gt;head" in texts[0]
    assert "A &lt;page&gt;" in texts[0]
    assert not re.search(r'(src|href)="(?!#)', texts[0])
