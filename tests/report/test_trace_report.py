"""The page of routing traces: every picture is there, nothing from outside, names are escaped."""

import re
from dataclasses import replace

import numpy as np
import pytest
from trace_samples import small_trace, trace_of
from typer.testing import CliRunner

from moesim.cli.app import app
from moesim.report.trace_figures import PICTURES, draw_domains, write_trace_page
from moesim.traces import write_trace
from moesim.traces.curves import curves, domain_distance


def test_curves_are_those_of_the_trace():
    trace = small_trace(tokens=2400, requests=2)
    found = curves(trace, np.random.default_rng(0))
    assert set(found) == set(PICTURES)
    assert all(len(curve["x"]) == len(curve["y"]) > 1 for curve in found.values())
    assert found["touched"]["y"][0] == trace.top_k
    assert found["caching"]["y"] == sorted(found["caching"]["y"])
    assert np.mean(found["load"]["y"]) == pytest.approx(1.0)
    # random choices do not drift: windows of one kind of text are alike at any distance
    assert found["drift"]["x"][:2] == [256, 512]
    assert np.ptp(found["drift"]["y"]) < 0.03


def test_page_is_self_contained_and_escaped(tmp_path):
    found = curves(small_trace(tokens=100), np.random.default_rng(0))
    row = {"statistic": "repeat", "reference": "0.5", "cells": [{"text": "+9%", "off": True}]}
    trace = {"label": "<b>x</b>", "source": "<script>", "names": ["twin"], "rows": [row]}
    domains = {"names": ["prose", "<i>"], "distance": [[0.0, 0.3], [0.3, 0.0]]}
    document = {"traces": [trace | {"curves": {"recorded": found, "twin": found}, "domains": domains}] * 2}
    page = write_trace_page(document, tmp_path / "a.html", heading="A & B").read_text()
    again = write_trace_page(document, tmp_path / "b.html", heading="A & B").read_text()
    assert page == again
    assert page.count("<svg") == len(PICTURES) + 1
    assert "<i>" not in page
    assert "<script" not in page
    assert "<b>x" not in page
    assert "A &amp; B" in page
    assert 'class="off"' in page
    assert not re.search(r'(src|href)="https?:', page.replace("http://www.w3.org", ""))


def test_domains_that_never_meet_are_far_apart():
    ids = [[[0]]] * 10 + [[[1]]] * 10
    trace = replace(trace_of(ids, 2), domain_index=np.repeat([0, 1], 10).astype(np.uint8))
    found = domain_distance(replace(trace, info=replace(trace.info, domains=("a", "b"))))
    assert found == {"names": ["a", "b"], "distance": [[0.0, 1.0], [1.0, 0.0]]}


def test_one_domain_has_no_picture_of_distances():
    assert draw_domains({"traces": [{"domains": {"names": ["a"], "distance": [[0.0]]}}]}) is None


def test_command(tmp_path):
    path = write_trace(tmp_path / "t.safetensors", small_trace(tokens=200, requests=10))
    out = tmp_path / "p.html"
    result = CliRunner().invoke(app, ["trace", "report", str(path), "--twin", "uniform", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "uniform" in out.read_text()
