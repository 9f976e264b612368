"""Traffic of others beside a step: what it costs, where, and what is told of wrong declarations."""

import json

import pytest

from moesim.errors import InputError
from moesim.scenario.resolve import resolve
from moesim.scenario.run import built_of, run

QUICK = [
    *("routing.generator=zipf", "routing.num_batches=1", "bands.samples=2", "model=qwen3_30b_a3b"),
    *("dtypes.experts=bf16", "dtypes.weights=bf16", "model.num_hidden_layers=6"),
]


def scenario(flows, *extra):
    given = [f"network.background={json.dumps(flows)}"]
    return resolve("deepseek_v3_decode_h200x16_beside_kv", [*QUICK, *given, *extra])


def seconds(flows, *extra):
    result = run(scenario(flows, *extra)).result
    return result.metrics["tpot_s"].value, result.views.get("crowd")


KV = {"source": "16-31", "destination": "0-15", "bytes": 1e8}


def test_more_of_others_costs_more_and_none_costs_nothing():
    alone, crowd = seconds({})
    assert crowd is None
    vector, _ = seconds({}, "interpreter=vector")
    assert alone == vector
    slow, _ = seconds({"kv": KV | {"bytes_per_s": 1e6}})
    assert slow == pytest.approx(alone, rel=1e-3)
    fast, crowd = seconds({"kv": KV})
    assert fast > 1.05 * alone
    assert crowd["alone_s"] == pytest.approx(alone, rel=1e-6)
    worst = crowd["held_back"][0]
    assert worst["lost_s"] > 0
    assert worst["own_fraction"] + worst["others_fraction"] <= 1 + 1e-6
    both, _ = seconds({"kv": KV, "offload": {"source": "host", "destination": "0-15"}})
    assert both > fast


def test_traffic_inside_nodes_does_not_slow_what_crosses_them():
    alone, _ = seconds({})
    inside, _ = seconds({"shift": {"kind": "all_reduce", "source": "16-23"}})
    assert inside == pytest.approx(alone, rel=1e-9)


def test_a_result_is_the_same_each_time():
    assert seconds({"kv": KV | {"pause_s": 1e-3, "start_s": 2e-4}}) == seconds(
        {"kv": KV | {"pause_s": 1e-3, "start_s": 2e-4}}
    )


@pytest.mark.parametrize(
    ("flow", "text"),
    [
        ({"source": "16-40", "destination": "0-24"}, "0 to 31"),
        ({"source": "a", "destination": "0"}, "ranks such as"),
        ({"source": "16-17", "destination": "0"}, "as many ranks as source"),
        ({"source": "3", "destination": "3"}, "another rank"),
        ({"source": "host", "destination": "host"}, "both host"),
        ({"kind": "all_reduce", "source": "0-3", "destination": "4"}, "no destination"),
        ({"kind": "all_to_all", "source": "0"}, "two ranks"),
        ({"source": "0"}, "a destination"),
        ({"source": "0", "destination": "1", "bytes": -1.0}, "bytes"),
        ({"source": "0", "destination": "1", "start_s": 1.0}, "at most that"),
    ],
)
def test_wrong_flows_are_told(flow, text):
    with pytest.raises(InputError, match=text):
        built_of(scenario({"wrong": flow}))


def test_all_wrong_flows_are_told_at_once_and_links_are_shared_in_time_only():
    flows = {"a": {"source": "77", "destination": "0"}, "b": {"source": "0", "destination": "x"}}
    with pytest.raises(InputError) as caught:
        built_of(scenario(flows))
    assert {p.field for p in caught.value.problems} == {
        "network.background.a.source",
        "network.background.b.destination",
    }
    with pytest.raises(InputError, match="interpreter: events"):
        scenario({"kv": KV}, "interpreter=vector")
