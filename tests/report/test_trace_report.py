"""The page of routing traces: every picture is there, nothing from outside, names are escaped."""

import re

import numpy as np
from trace_samples import small_trace
from typer.testing import CliRunner

from moesim.cli.app import app
from moesim.report.trace_figures import PICTURES, write_trace_page
from moesim.traces import write_trace
from moesim.traces.curves import curves


def test_curves_are_those_of_the_trace():
    trace = small_trace(tokens=400, requests=8)
    found = curves(trace, np.random.default_rng(0))
    assert set(found) == set(PICTURES)
    assert all(len(curve["x"]) == len(curve["y"]) > 1 for curve in found.values())
    assert found["touched"]["y"][0] == trace.top_k
    assert found["caching"]["y"] == sorted(found["caching"]["y"])
    assert np.mean(found["load"]["y"]) == 1.0


def test_page_is_self_contained_and_escaped(tmp_path):
    found = curves(small_trace(tokens=100), np.random.default_rng(0))
    row = {"statistic": "repeat", "reference": "0.5", "cells": [{"text": "+9%", "off": True}]}
    trace = {"label": "<b>x</b>", "source": "<script>", "names": ["twin"], "rows": [row]}
    document = {"traces": [trace | {"curves": {"recorded": found, "twin": found}}] * 2}
    page = write_trace_page(document, tmp_path / "a.html", heading="A & B").read_text()
    again = write_trace_page(document, tmp_path / "b.html", heading="A & B").read_text()
    assert page == again
    assert page.count("<svg") == len(PICTURES)
    assert "<script" not in page
    assert "<b>x" not in page
    assert "A &amp; B" in page
    assert 'class="off"' in page
    assert not re.search(r'(src|href)="https?:', page.replace("http://www.w3.org", ""))


def test_command(tmp_path):
    path = write_trace(tmp_path / "t.safetensors", small_trace(tokens=200, requests=10))
    out = tmp_path / "p.html"
    result = CliRunner().invoke(app, ["trace", "report", str(path), "--twin", "uniform", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "uniform" in out.read_text()
