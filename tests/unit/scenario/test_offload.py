"""Offload scenarios: bad input, what fits where, and one run to the end."""

import json

import pytest
from typer.testing import CliRunner

from moesim.cli.app import app
from moesim.errors import InfeasibleError, InputError
from moesim.files import Tree
from moesim.scenario.offload import run_offload
from moesim.scenario.offloading import build_offload, laid_out
from moesim.scenario.resolve import resolve_tree

SMALL = {
    "schema_version": 1,
    "name": "small_offload",
    "question": "offload",
    "model": "mixtral_8x7b",
    "cluster": {"node": "xeon_amx_rtx_4090_x1", "num_nodes": 1, "scale_out": {"kind": "none"}},
    "routing": {"generator": "zipf"},
    "batch": {"tokens_per_rank": 1, "context_tokens": 128},
    "offload": {"passes": 6, "warmup_passes": 2},
}


def resolved(*overrides):
    return resolve_tree(Tree(json.loads(json.dumps(SMALL)), {}, "test"), list(overrides))


def test_a_cache_below_one_tokens_experts_is_refused():
    with pytest.raises(InputError, match="slots_per_layer: got 1; accepted: at least 2"):
        build_offload(resolved("memory.cache.slots_per_layer=1"))


def test_a_cache_beyond_the_device_is_refused_with_what_fits():
    with pytest.raises(InfeasibleError, match="accepted: at most 1 slots a layer"):
        build_offload(resolved("memory.cache.slots_per_layer=7"))


def test_tiers_that_cannot_hold_the_model_are_refused():
    small = [
        "cluster.node.host.dram.capacity_bytes=32e9",
        "cluster.node.host.ssd=null",
        "dtypes.experts=int4",
    ]
    assert build_offload(resolved("dtypes.experts=int4", small[1])).tiers.host_slots is None
    with pytest.raises(InfeasibleError, match="no ssd; accepted: a larger host.dram"):
        build_offload(resolved("cluster.node.host.dram.capacity_bytes=16e9", *small[1:]))


@pytest.mark.parametrize("path", ["accuracy=[1.2]", "accuracy=[-0.1]"])
def test_an_accuracy_outside_0_to_1_is_refused(path):
    with pytest.raises(InputError, match="memory.prefetch.accuracy"):
        build_offload(
            resolved(
                "dtypes.experts=int4", "memory.prefetch.policy=next_layer_gate", f"memory.prefetch.{path}"
            )
        )


def test_a_run_reports_what_it_did():
    found = run_offload(resolved("dtypes.experts=int4", "memory.prefetch.policy=next_layer_gate")).result
    metrics = found.metrics
    assert metrics["output_tokens_per_s"].value == pytest.approx(1 / metrics["tpot_s"].value)
    assert metrics["tpot_s"].low < metrics["tpot_s"].value < metrics["tpot_s"].high
    assert 0 <= metrics["hit_fraction"].value <= 1
    assert 0 < metrics["prefetch_precision_fraction"].value <= 1
    speeds = [row["tokens_per_s"] for row in found.views["offload"]["curve"]]
    assert speeds[-1] == max(speeds)


def test_same_input_same_bytes(tmp_path):
    file = tmp_path / "small.json"
    file.write_text(json.dumps(SMALL | {"dtypes": {"experts": "int4"}}))
    runs = [CliRunner().invoke(app, ["run", str(file), "--json", "--no-timing"]) for _ in range(2)]
    assert runs[0].exit_code == 0, runs[0].output
    assert runs[0].stdout == runs[1].stdout
    assert json.loads(runs[0].stdout)["question"] == "offload"


@pytest.mark.parametrize(("layout", "first", "last"), [("even", 5, 5), ("shallow", 8, 2), ("front", 8, 0)])
def test_layouts_keep_the_total(layout, first, last):
    slots = laid_out(20, 4, 8, layout)
    assert slots.sum() == 20
    assert (slots[0], slots[-1]) == (first, last)
