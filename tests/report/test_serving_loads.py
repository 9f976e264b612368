"""Services under growing load on one page."""

from copy import deepcopy

from moesim.report.page import page_text
from moesim.report.serving_loads import service_loads, services
from moesim.scenario.resolve import resolve
from moesim.scenario.serve import run_serving

QUICK = ["workload.num_requests=12", "serving.band_runs=2"]


def document(name, rate, good, change=()):
    overrides = [*QUICK, f"name={name}", f"workload.rate_per_s={rate}", *change]
    result = run_serving(resolve("qwen3_30b_serve_h200x2", overrides), with_changes=False).result
    made = deepcopy(result.document())
    made["metrics"]["good_fraction"]["value"] = good
    return made


def test_a_service_is_followed_up_to_where_it_misses_its_objectives():
    runs = [document("a_4", 4, 0.5), document("a_2", 2, 0.95), document("a_8", 8, 0.99)]
    alone = document("b", 2, 1.0, ["serving.instances=2"])
    found = services([*runs, alone], "rate_per_s")
    assert [(s.name, s.loads, s.num_devices, s.highest_good) for s in found] == [("a", (2, 4, 8), 2, 2)]
    assert services(runs, "concurrency") == []
    text = page_text([*runs, alone], title="loads")
    assert "90 % of requests meet the objectives: a up to 2/s" in text.replace("<!--", "").replace("-->", "")
    assert "a_4: Qwen3-30B" in text
    assert service_loads([alone]) is None


def test_what_happens_to_instances_stands_on_the_figure():
    changes = "serving.changes=[{at_s: 0.5, kind: slow, instance: 0, factor: 3}]"
    run = document("slow", 10, 1.0, [changes])
    assert run["views"]["serving"]["changes"] == [{"at_s": 0.5, "label": "0 takes 3x as long"}]
    assert "0 takes 3x as long" in page_text([run], title="slow")
