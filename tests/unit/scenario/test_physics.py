"""Changing one number of the machine moves exactly the parts of the step that depend on it."""

import pytest

from moesim.engine.critical_path import critical_path
from moesim.metrics.breakdown import path_breakdown
from moesim.scenario.build import build, routed_lanes
from moesim.scenario.resolve import resolve
from moesim.scenario.simulate import simulate

SMALL = [
    "model=qwen3_30b_a3b",
    "plan.attention_dp=16",
    "plan.ep=16",
    "routing.num_batches=1",
    "routing.generator=zipf",
    "batch.tokens_per_rank=32",
    "dtypes.weights=bf16",
    "dtypes.experts=bf16",
    "bands.samples=2",
]


def parts(*overrides):
    """Seconds of each part of the critical path; a run would add sensitivities and views to that."""
    built = build(resolve("deepseek_v3_decode_h200x32", [*SMALL, *overrides]))
    simulated = simulate(built, routed_lanes(built, built.solution.placement, 1))
    path = critical_path(simulated.program, simulated.recorded)
    return {share.name: share.seconds for share in path_breakdown(simulated.program, path)}


@pytest.fixture(scope="module")
def baseline():
    return parts()


COMM = {"dispatch", "combine"}
DEVICE = {"node": "cluster.node"}


@pytest.mark.parametrize(
    ("override", "may_move", "must_move"),
    [
        ("cluster.node.nic.bandwidth_bytes_per_s=1e11", COMM, COMM),
        ("cluster.node.scale_up.bandwidth_bytes_per_s=9e11", COMM, set()),
        ("cluster.scale_out.latency_s=1e-4", COMM, COMM),
        (
            "cluster.node.device.memory.hbm.bandwidth_bytes_per_s=9.6e12",
            None,
            {"attention", "experts", "attention projections", "output head"},
        ),
        ("cluster.node.device.peak_flops_per_s.bf16=1.9788e15", None, set()),
        ("cluster.node.device.memory.hbm.capacity_bytes=3e11", set(), set()),
    ],
)
def test_one_knob_moves_its_parts_only(baseline, override, may_move, must_move):
    changed = parts(override)
    assert changed.keys() == baseline.keys()
    moved = {name for name in baseline if changed[name] != pytest.approx(baseline[name], rel=1e-9)}
    if may_move is None:
        may_move = set(baseline) - COMM
    assert moved <= may_move
    assert must_move <= moved


def test_twice_the_memory_bandwidth_nearly_halves_memory_bound_time():
    # decode attention of grouped-query heads reads its cache and does little else; fixed costs stay, so the
    # time falls to somewhat more than half (the roofline alone, without launches, halves it exactly)
    long = "batch.context_tokens=32768"
    slow = parts(long)
    fast = parts(long, "cluster.node.device.memory.hbm.bandwidth_bytes_per_s=9.6e12")
    assert 0.5 <= fast["attention"] / slow["attention"] < 0.65


def test_faster_never_slower(baseline):
    for override in (
        "cluster.node.nic.bandwidth_bytes_per_s=4e11",
        "cluster.node.device.peak_flops_per_s.bf16=2e15",
        "cluster.node.device.memory.hbm.bandwidth_bytes_per_s=9.6e12",
        "cluster.node.device.launch_s=0",
    ):
        assert sum(parts(override).values()) <= sum(baseline.values()) * (1 + 1e-12)
