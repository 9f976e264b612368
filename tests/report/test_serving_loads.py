"""Services under growing load on one page."""

from copy import deepcopy

import pytest

from moesim.report.page import page_text
from moesim.report.serving_figures import service_over_time
from moesim.report.serving_loads import service_loads, services
from moesim.report.style import svg_text
from moesim.scenario.resolve import resolve
from moesim.scenario.serve import run_serving

CHANGES = "serving.changes=[{at_s: 0.5, kind: slow, instance: 0, factor: 3}]"


@pytest.fixture(scope="module")
def run():
    quick = ["workload.num_requests=12", "serving.band_runs=2", CHANGES]
    return run_serving(resolve("qwen3_30b_serve_h200x2", quick), with_changes=False).result.document()


def loaded(run, name, rate, good, instances=1):
    made = deepcopy(run)
    made["scenario"]["name"] = name
    made["scenario"]["workload"]["rate_per_s"] = rate
    made["scenario"]["serving"]["instances"] = instances
    made["metrics"]["good_fraction"]["value"] = good
    return made


def test_a_service_is_followed_up_to_where_it_misses_its_objectives(run):
    runs = [loaded(run, "a_4", 4, 0.5), loaded(run, "a_2", 2, 0.95), loaded(run, "a_8", 8, 0.99)]
    alone = loaded(run, "b", 2, 1.0, instances=2)
    found = services([*runs, alone], "rate_per_s")
    assert [(s.name, s.loads, s.num_devices, s.highest_good) for s in found] == [("a", (2, 4, 8), 2, 2)]
    assert services(runs, "concurrency") == []
    assert "meet the objectives: a up to 2/s" in svg_text(service_loads([*runs, alone]), "loads")
    assert service_loads([alone]) is None
    text = page_text(runs[:2], [{}, {}], title="loads")
    assert "meet the objectives: a up to 2/s" in text
    assert "a_4: Qwen3-30B" in text


def test_what_happens_to_instances_stands_on_the_figure(run):
    assert run["views"]["serving"]["changes"] == [{"at_s": 0.5, "label": "0 takes 3x as long"}]
    assert "0 takes 3x as long" in svg_text(service_over_time(run), "over_time")
