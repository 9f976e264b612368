"""A whole step: what unequal experts, sharded weights, slow devices and layouts do to it."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.errors import InfeasibleError, InputError
from moesim.files import Tree
from moesim.scenario.resolve import resolve, resolve_tree
from moesim.scenario.train import run_training
from moesim.scenario.training import build_training
from moesim.training.items import Piece
from moesim.training.states import States
from moesim.training.step import TrainStep, balanced_setup


def scenario(**changes):
    tree = {
        "schema_version": 1,
        "name": "small",
        "question": "train_step",
        "model": "qwen3_30b_a3b",
        "cluster": "h100_x16",
        "plan": {"ep": 8, "pp": 2, "vpp": 2},
        "routing": {"generator": "balanced"},
        "training": {"global_batch_size": 64, "schedule": {"policy": "interleaved"}},
        "bands": {"samples": 8},
    }
    for path, value in changes.items():
        section, _, field = path.partition("__")
        if field:
            tree[section] = dict(tree[section]) | {field: value}
        else:
            tree[section] = value
    return resolve_tree(Tree(tree, source="test"))


def seconds(resolved):
    return float(TrainStep(build_training(resolved).setup).run().makespan_s[0])


def test_result_adds_up_and_is_the_same_twice():
    first, second = (run_training(scenario(), with_changes=False).result.document() for _ in range(2))
    assert first == second
    metrics = first["metrics"]
    step_s = metrics["step_s"]
    assert step_s["low"] < step_s["value"] < step_s["high"]
    assert sum(row["seconds"] for row in first["breakdown"]) == pytest.approx(step_s["value"], rel=1e-6)
    assert metrics["tokens_per_s"]["value"] == pytest.approx(64 * 4096 / step_s["value"])
    assert len(first["memory"]["per_rank"]) == 2


def test_uneven_experts_cost_time_and_balanced_ones_nothing():
    captured = {"training__graphs": "full"}  # else the host hides what the device waits for
    setup = build_training(scenario(routing={"generator": "fitted_skew", "num_batches": 2}, **captured)).setup
    uneven = float(TrainStep(setup).run().makespan_s[0])
    even = float(TrainStep(balanced_setup(setup)).run().makespan_s[0])
    assert uneven > 1.02 * even
    assert even == pytest.approx(seconds(scenario(**captured)), rel=1e-9)


def test_a_slow_device_holds_everybody_up():
    slow = seconds(scenario(faults={"device_speed": {"3": 0.5}}, training__graphs="full"))
    assert slow > 1.2 * seconds(scenario(training__graphs="full"))


def test_a_full_graph_needs_no_host():
    assert seconds(scenario(training__graphs="full")) <= seconds(scenario())


def test_sharded_weights_are_gathered_beside_every_pass():
    setup = build_training(scenario()).setup
    whole = TrainStep(setup).run()
    sharded = TrainStep(replace(setup, states=States(sharding="zero3"))).run()
    bare = TrainStep(replace(setup, states=States(sharding="zero3"), overlap_gather=False)).run()
    assert np.all(sharded.busy_s >= whole.busy_s - 1e-12)
    assert bare.makespan_s[0] > sharded.makespan_s[0]


def test_attention_with_sinks_is_slower_in_pieces():
    changes = {"model": "gpt_oss_20b", "plan": {"ep": 8}, "training__schedule": {"policy": "1f1b"}}
    pieces, fused = (seconds(scenario(**changes, training__fused_sinks=f)) for f in (False, True))
    assert pieces > 1.2 * fused


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"plan": {"ep": 256}}, "plan.ep"),
        ({"plan": {"pp": 3, "ep": 4}}, "plan.num_devices"),
        ({"plan": {"ep": 8, "attention_dp": 2}}, "plan.attention_dp"),
        ({"training__global_batch_size": 65}, "training.global_batch_size"),
        ({"plan": {"ep": 4, "pp": 4, "vpp": 2}, "training__global_batch_size": 12}, "training.schedule"),
        ({"plan": {"ep": 8, "layers": [24, 23]}, "training__schedule": {"policy": "1f1b"}}, "plan.layers"),
        ({"training__recompute": ["moe_akt"]}, "training.recompute"),
        ({"routing": None}, "routing"),
    ],
)
def test_contradictions_are_named(changes, field):
    with pytest.raises(InputError) as error:
        build_training(scenario(**changes))
    assert field in str(error.value)
    assert "accepted" in str(error.value) or "missing" in str(error.value)


def test_what_does_not_fit_says_what_would():
    with pytest.raises(InfeasibleError) as error:
        build_training(scenario(plan={"ep": 1}, training__schedule={"policy": "1f1b"}))
    assert "fits with one of" in str(error.value)


@pytest.mark.parametrize(
    ("overlap", "schedule"),
    [
        ({"policy": "chunked"}, {"policy": "interleaved"}),
        ({"policy": "fine_grained"}, {"policy": "interleaved"}),
        ({"policy": "persistent"}, {"policy": "interleaved"}),
        ({"policy": "chunked"}, {"policy": "zb_v"}),
    ],
)
def test_an_overlapped_expert_layer_hides_exchanges_under_any_schedule(overlap, schedule):
    """Without a host nothing else changes: at most the exchanges of both stages are hidden.

    Chunks inside one node can cost what they hide: then one chunk is chosen.
    """
    changes = {
        "model": {"name": "qwen3_30b_a3b", "num_hidden_layers": 8},
        "training__graphs": "full",
        "training__schedule": schedule,
    }
    plain = run_training(scenario(**changes), with_changes=False).result
    hidden = run_training(scenario(**changes, training__overlap=overlap), with_changes=False).result
    before, after = (r.metrics["step_s"].value for r in (plain, hidden))
    exchanges = sum(row.seconds for row in plain.breakdown if row.kind == "all_to_all")
    assert before - 2 * exchanges < after <= before * (1 + 1e-9)
    assert after < before or overlap["policy"] == "chunked"
    assert sum(row.seconds for row in hidden.breakdown) == pytest.approx(after, rel=1e-6)


@pytest.mark.parametrize("plan", [{"ep": 8, "pp": 2, "vpp": 2}, {"ep": 4, "etp": 2, "pp": 2, "vpp": 2}])
def test_one_chunk_is_no_overlap(plan):
    changes = {"training__graphs": "full", "plan": plan}
    plain = seconds(scenario(**changes))
    assert seconds(
        scenario(**changes, training__overlap={"policy": "chunked", "degree": 1})
    ) == pytest.approx(plain, rel=1e-8)


def test_overlap_runs_again_where_everything_does():
    changes = {"training__recompute": ["full"], "training__graphs": "full"}
    kept = seconds(scenario(training__graphs="full", training__overlap={"policy": "fine_grained"}))
    again = seconds(scenario(**changes, training__overlap={"policy": "fine_grained"}))
    assert kept < again < seconds(scenario(**changes))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"training__schedule": {"policy": "interleaved_pairs"}}, "training.schedule"),
        ({"plan": {"ep": 1, "pp": 2, "vpp": 2}}, "plan.ep"),
        ({"training__delayed_weight_gradient": True}, "training.delayed_weight_gradient"),
        ({"training__overlap": {"policy": "chunkd"}}, "chunked"),
        ({"training__overlap": {"policy": "chunked", "degre": 2}}, "training.overlap"),
    ],
)
def test_an_overlap_without_exchanges_of_its_own_is_refused(changes, field):
    with pytest.raises(InputError) as error:
        build_training(scenario(**({"training__overlap": {"policy": "chunked"}} | changes)))
    assert field in str(error.value)
    assert any(word in str(error.value) for word in ("accepted", "unknown"))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("plan: {pp: 3, ep: 4}", "bad.yaml:6  plan.num_devices"),
        ("plan:\n  pp: 2\n  ep: 256", "bad.yaml:8  plan.ep: got 256; accepted: a divisor of 128"),
        (
            "plan: {ep: 8, pp: 2, vpp: 2}\n"
            "training:\n  global_batch_size: 24\n  schedule: {policy: interleaved}",
            "bad.yaml:9  training.schedule: got 3 microbatches; accepted: a multiple of 2",
        ),
        ("training:\n  sharding: zero9", "bad.yaml:7  training.sharding: got 'zero9'"),
        ("training: {recompute: [moe_akt]}", "bad.yaml:6  training.recompute: got 'moe_akt'"),
        ("training: {kept_inner_dtype: fp9}", "bad.yaml:6  training.kept_inner_dtype: got 'fp9'"),
        ("training: {}\ninterpreter: events", "bad.yaml:7  interpreter: got 'events'; accepted: vector"),
        ("training: {}\noverlap: {policy: two_batch}", "bad.yaml:7  overlap: is not read"),
        ("training: {}\nbatch: {tokens_per_rank: 8}", "bad.yaml:7  batch: is not read"),
    ],
)
def test_contradictions_are_told_with_their_line(tmp_path, lines, told):
    head = "schema_version: 1\nname: bad\nquestion: train_step\nmodel: qwen3_30b_a3b\ncluster: h100_x16\n"
    text = f"{head}{lines}\n" + ("" if "training:" in lines else "training: {}\n")
    file = tmp_path / "bad.yaml"
    file.write_text(text + "routing: {generator: balanced}\n")
    with pytest.raises(InputError) as error:
        build_training(resolve(str(file)))
    assert told in str(error.value)


def test_an_exchange_of_messages_costs_a_copy_of_the_rows_on_each_side():
    changes = {"plan": {"ep": 8}, "training__schedule": {"policy": "1f1b"}}
    moved = {}
    for exchange in ("pairwise", "deepep_normal"):
        work = build_training(scenario(**changes, network={"exchange": exchange})).setup.work
        pieces = [item for item in work.layer(0) if isinstance(item, Piece)]
        moved[exchange] = [w for piece in pieces for w in piece.work if w.tag in {"permute", "unpermute"}]
    assert len(moved["pairwise"]) == len(moved["deepep_normal"]) + 2
    # these launches are among the small ones of the router
    assert all(w.launches == 0 for w in moved["pairwise"])
