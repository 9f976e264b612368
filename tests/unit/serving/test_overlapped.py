"""Iterations cut in parts whose exchanges run beside each other's work."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.hardware import load_cluster
from moesim.model import load
from moesim.network.faults import Faults
from moesim.parallel.plan import Plan
from moesim.scenario.from_command import scenario_of_command
from moesim.scenario.resolve import resolve, resolve_tree
from moesim.scenario.serving import build_serving
from moesim.serving.checkpoints import stored_formats
from moesim.serving.deployment import Deployment
from moesim.serving.overlapped import layers_s
from moesim.serving.profiles import load_profile
from moesim.serving.step_costs import total
from moesim.serving.step_times import StepShape
from moesim.steps.overlap import overlap_policies
from moesim.units import US

TWO = overlap_policies.build("two_batch")
COMMAND = "vllm serve deepseek-ai/DeepSeek-R1 -dp 16 --enable-expert-parallel"
SMALL = ["workload.num_requests=50", "workload.rate_per_s=2"]


def deployment(ranks=8, **more):
    formats = stored_formats("qwen3_30b_a3b", "fp8", "fp8")
    plan = Plan.of(1, 1, ranks, ranks, 1)
    profile = load_profile("vllm", "0.15.1")
    profile = profile.model_copy(update=profile.with_exchanges(True, None, None))
    made = Deployment(load("qwen3_30b_a3b"), plan, formats, load_cluster("h200_x8"), profile, 512)
    return replace(made, **more)


def decodes(batch, ranks=8):
    ones = np.ones((1, ranks))
    return StepShape.of(num_decodes=ones * batch, decode_context_tokens=ones * batch * 3000)


def by_turns(layers, beside, dispatch, experts, combine):
    """Two halves in turn: a turn ends when its work and the exchange of the turn before are both done."""
    turns = [turn for _ in range(layers) for turn in [(beside, dispatch)] * 2 + [(experts, combine)] * 2]
    total = hidden = 0.0
    for work, exchange in turns:
        total += max(work, hidden)
        hidden = exchange
    return total + hidden


@settings(max_examples=60)
@given(st.integers(1, 9), st.lists(st.integers(0, 900), min_size=4, max_size=4))
def test_two_batches_take_turns(layers, microseconds):
    each = [n * US for n in microseconds]
    found = layers_s(TWO, layers, *(np.array([seconds * layers]) for seconds in each))
    assert found[0] == pytest.approx(by_turns(layers, *each), rel=1e-6, abs=1e-9)


def test_without_overlap_the_parts_are_a_sum():
    found = layers_s(overlap_policies.build("none"), 4, *(np.array([4e-3, 8e-3]) * n for n in (1, 2, 3, 4)))
    assert found == pytest.approx([40e-3, 80e-3])


def test_overlap_hides_exchanges_and_pays_for_weights_that_are_read_twice():
    plain, cut = deployment(), deployment(overlap=TWO)
    shapes = decodes(128)
    before, after = (service.step_times("exact").seconds(shapes)[0] for service in (plain, cut))
    terms, parts = (
        {term.label: term.seconds[0] for term in service.step_times("exact").terms(shapes)}
        for service in (plain, cut)
    )
    moved = terms["dispatch"] + terms["combine"]
    assert before - moved < after < before + terms["experts"]
    assert parts["dispatch"] + parts["combine"] < moved
    assert parts["experts"] > terms["experts"]
    assert total(cut.step_times("exact").terms(shapes))[0] == pytest.approx(after, rel=1e-6)


def test_a_small_iteration_is_not_cut():
    """vLLM's thresholds: more than 32 decode tokens on every rank, 512 with prompts."""
    plain, cut = (service.step_times("exact") for service in (deployment(), deployment(overlap=TWO)))
    for batch in (1, 32):
        assert cut.seconds(decodes(batch)) == plain.seconds(decodes(batch))
    assert cut.seconds(decodes(33)) != plain.seconds(decodes(33))
    idle = np.ones((1, 8)) * 64
    idle[0, 3] = 0
    shapes = StepShape.of(num_decodes=idle, decode_context_tokens=idle * 3000)
    assert cut.seconds(shapes) == plain.seconds(shapes)


def test_a_slow_device_holds_all_ranks_up():
    slow = deployment(faults=Faults(device_speed={3: 0.5}))
    shapes = decodes(64)
    whole, late = (service.step_times("exact").seconds(shapes)[0] for service in (deployment(), slow))
    assert 1.3 * whole < late < 2 * whole


def test_flags_of_commands_reach_the_iteration():
    found = {}
    early = " --enable-dbo --dbo-decode-token-threshold 8 --all2all-backend deepep_low_latency"
    for flags in ("", " --enable-dbo", early):
        tree, _ = scenario_of_command(COMMAND + flags, "h200_sxm", "0.15.1")
        found[flags] = build_serving(resolve_tree(tree)).pools[0].deployment
    plain, plainly, early = found.values()
    assert not plain.overlaps
    assert plainly.overlaps
    assert (plainly.profile.overlap_from.decode_tokens, early.profile.overlap_from.decode_tokens) == (33, 9)
    assert early.profile.kernels.all_to_all_from == 1


def test_an_overlap_of_nothing_is_told():
    command = "sglang serve --model-path deepseek-ai/DeepSeek-R1 --tp 8 --enable-two-batch-overlap"
    tree, warnings = scenario_of_command(command, "h200_sxm", "0.5.5")
    assert "overlap" not in tree.data
    assert any("changes nothing here" in warning for warning in warnings)
    with pytest.raises(InputError, match=r"overlap\.policy: got 'two_batch'"):
        build_serving(resolve("deepseek_r1_serve_h200x8", [*SMALL, "overlap.policy=two_batch"]))


def test_sections_of_other_questions_are_told_and_contradictions_refused():
    built = build_serving(resolve("deepseek_r1_serve_h200x8", [*SMALL, "batch={tokens_per_rank: 3}"]))
    assert any("batch: not read" in warning for warning in built.warnings)
    for change in ("plan.num_devices=4", "serving.prefill={plan: {tp: 8, num_devices: 4}}"):
        others = ["serving.decode={instances: 1}"] if "prefill" in change else []
        with pytest.raises(InputError, match=r"num_devices: got 4; accepted: 8"):
            build_serving(resolve("deepseek_r1_serve_h200x8", [*SMALL, change, *others]))
    faulty = ["faults={device_speed: {0: 0.5}}", "serving.instances=2"]
    with pytest.raises(InputError, match="faults"):
        build_serving(resolve("deepseek_r1_serve_h200x8", [*SMALL, *faulty]))
