"""The page of a placement: all pictures, nothing from outside, the same bytes for the same document."""

import json

import pytest
from typer.testing import CliRunner

from moesim.cli.app import app
from moesim.evidence import rng_for
from moesim.report.placement_figures import PICTURES
from moesim.report.placement_page import write_placement_page
from moesim.traces import write_trace
from moesim.traces.generators import generators


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    made = generators.build("fitted_skew").generate(1200, 3, 16, 2, rng_for(0, "test"))
    trace = write_trace(tmp_path_factory.mktemp("traces") / "t.safetensors", made)
    names = ("eplb", "affinity", "robust_ilp")
    options = [part for name in names for part in ("--method", name)]
    done = CliRunner().invoke(
        app,
        ["place", str(trace), "--ranks", "4", "--judge-on", str(trace), *options, "--json", "--no-timing"],
    )
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_is_drawn(document, name):
    figure = PICTURES[name][0](document)
    assert figure is not None
    assert figure.get_suptitle()


def test_page_is_whole_and_repeatable(document, tmp_path):
    document = {**document, "method": "<eplb>"}
    one, two = (write_placement_page(document, tmp_path / name).read_bytes() for name in "ab")
    assert one == two
    text = one.decode()
    assert text.count("<svg") == len(PICTURES)
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "<eplb>" not in text
    assert "robust_ilp" in text


def test_a_lone_method_that_moves_nothing(document):
    still = {**document, "methods": document["methods"][:1]}
    still["views"] = {**document["views"], "moved": [[0, 0, 0, 0]] * 3}
    assert PICTURES["moved"][0](still) is None
    assert PICTURES["trade"][0](still) is None
    assert PICTURES["against_bound"][0](still) is not None
