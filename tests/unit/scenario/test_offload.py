"""Offload scenarios: bad input, what fits where, and one run to the end."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from moesim.cli.app import app
from moesim.errors import InfeasibleError, InputError
from moesim.files import Tree
from moesim.scenario.offload import run_offload
from moesim.scenario.offloading import build_offload, laid_out
from moesim.scenario.resolve import resolve, resolve_tree

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


@pytest.mark.parametrize("slots", [7, 8, 64])
def test_a_cache_beyond_the_device_is_refused_with_what_fits_also_when_it_names_every_expert(slots):
    with pytest.raises(InfeasibleError, match="accepted: at most 1 slots a layer"):
        build_offload(resolved(f"memory.cache.slots_per_layer={slots}"))


def test_a_cache_of_all_experts_that_fit_holds_all():
    everything = "memory.cache.slots_per_layer=64"
    large = "cluster.node.device.memory.gddr.capacity_bytes=200e9"
    assert build_offload(resolved(everything, large)).tiers.slots.tolist() == [8] * 32


def test_a_program_at_barriers_hands_over_later_with_more_threads():
    def handover_s(*overrides):
        return build_offload(resolved("dtypes.experts=int4", *overrides)).costs.cpu.first_s

    few, many = (handover_s("executor.program=llama.cpp", f"executor.cpu_threads={n}") for n in (6, 56))
    assert few < handover_s() < many
    assert handover_s("executor.cpu_threads=6") == handover_s("executor.cpu_threads=56")
    with pytest.raises(InputError, match=r"executor.program: got 'vllm'; accepted: kt-kernel, ktransformers"):
        handover_s("executor.program=vllm")


def test_a_placement_that_follows_the_prompt_knows_the_requests_own_tokens():
    follows = ["memory.cache.policy=prompt_static", "executor.policy=cpu", "routing={generator: matched}"]
    built = build_offload(resolved(*follows))
    prompt = built.demand.prompt_counts
    assert prompt.sum(axis=1).tolist() == [built.demand.ids.shape[2] * 128] * 32
    held = built.offload.cache.initial(built.demand, np.full(32, 3))
    most = np.sort(prompt, axis=1)[:, -3:].sum(axis=1)
    assert np.where(held, prompt, 0).sum(axis=1).tolist() == most.tolist()
    with pytest.raises(InputError, match="prompt_static.*accepted: decode of one sequence"):
        build_offload(resolved(*follows, "batch.tokens_per_rank=4"))
    with pytest.raises(InputError, match="offload.passes: got 5002; accepted: .* fewer than the 156 tokens"):
        build_offload(resolved(*follows, "offload.passes=5000"))


def test_tiers_that_cannot_hold_the_model_are_refused():
    dram_only = ["cluster.node.host.ssd=null", "cluster.node.host.cxl=null", "dtypes.experts=int4"]
    assert build_offload(resolved(*dram_only)).tiers.host_slots is None
    with pytest.raises(InfeasibleError, match="no ssd; accepted: a larger host.dram"):
        build_offload(resolved("cluster.node.host.dram.capacity_bytes=16e9", *dram_only))


def test_cxl_memory_comes_before_the_disk():
    small = ["cluster.node.host.dram.capacity_bytes=16e9", "dtypes.experts=int4"]
    with_cxl = build_offload(resolved(*small)).tiers
    assert with_cxl.host_slots is not None
    assert with_cxl.cxl_slots is None
    both = build_offload(resolved(*small, "cluster.node.host.cxl.capacity_bytes=4e9")).tiers
    assert both.cxl_slots is not None
    assert (both.cxl_slots > 0).all()
    slow, fast = (
        run_offload(resolved(*small, *more), with_changes=False).result.metrics
        for more in (["cluster.node.host.cxl=null"], [])
    )
    assert fast["tpot_s"].value < slow["tpot_s"].value
    assert "cxl_busy_fraction" in fast


@pytest.mark.parametrize("unit", ["matrices", "bit_planes"])
def test_parts_of_experts_move_as_many_bytes(unit):
    base = ["dtypes.experts=int4"]
    whole = run_offload(resolved(*base), with_changes=False).result.metrics
    parts = run_offload(resolved(*base, f"memory.transfer.unit={unit}"), with_changes=False).result.metrics
    assert parts["bytes_moved"].value == pytest.approx(whole["bytes_moved"].value)
    if unit == "matrices":
        # the device starts on the first matrix while the others travel
        assert parts["tpot_s"].value < whole["tpot_s"].value


def test_near_memory_needs_units_with_a_memory_of_their_own():
    with pytest.raises(InputError, match=r"executor\.policy: got 'near_memory'; accepted: a node whose pim"):
        build_offload(resolved("dtypes.experts=int4", "executor.policy=near_memory"))
    with pytest.raises(InputError, match=r"executor\.attention: got 'pim'; accepted: device or cpu"):
        build_offload(resolved("dtypes.experts=int4", "executor.attention=pim"))


def test_attention_on_the_cpu_frees_the_device_and_costs_time():
    base = ["dtypes.experts=int4", "batch.context_tokens=4096"]
    near, far = (build_offload(resolved(*base, f"executor.attention={where}")) for where in ("device", "cpu"))
    assert near.tiers.parts["kv cache"] > far.tiers.parts["kv cache"] == 0
    times = [
        run_offload(resolved(*base, f"executor.attention={where}"), with_changes=False).result.metrics
        for where in ("device", "cpu")
    ]
    assert times[0]["tpot_s"].value < times[1]["tpot_s"].value
    assert times[1]["cpu_busy_fraction"].value > 0


def test_interleaved_pages_are_slower_than_split_experts():
    base = ["dtypes.experts=int4", "executor.policy=cpu", "memory.cache.policy=frequency_static"]
    times = {
        numa: run_offload(resolved(*base, f"executor.numa={numa}"), with_changes=False).result.metrics
        for numa in ("split", "experts", "interleaved")
    }
    seconds = {numa: found["tpot_s"].value for numa, found in times.items()}
    assert seconds["split"] < seconds["interleaved"]
    assert seconds["split"] < seconds["experts"]


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


@pytest.mark.parametrize("name", ["mixtral_8x7b_duplex", "mixtral_8x7b_attacc", "deepseek_v2_lite_aim"])
def test_near_memory_units_of_shipped_scenarios_work(name):
    """Each runs, its units are used, and the same machine without them is slower."""
    quick = "routing={generator: zipf}"
    few = ["offload.passes=2", "offload.warmup_passes=1", "bands.samples=2", quick]
    found = run_offload(resolve(name, few), with_changes=False).result
    assert found.views["offload"]["busy_fraction"]["pim"] > 0
    without = "executor={policy: device}"
    plain = run_offload(resolve(name, [*few, without]), with_changes=False).result
    assert plain.metrics["tpot_s"].value > found.metrics["tpot_s"].value
