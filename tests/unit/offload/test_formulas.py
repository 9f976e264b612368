"""Throughput systems, near-memory units and variants: laws beside the published values."""

import numpy as np
import pytest

from moesim.offload import throughput, variants
from moesim.offload.near_memory import Engine, reordered_s, shared_experts_s


def test_ring_stalls_only_when_a_load_outlasts_the_work_of_the_ring():
    free = throughput.ring_pass_s(sections=8, resident=4, compute_s=1.0, load_s=0.9)
    bound = throughput.ring_pass_s(sections=8, resident=4, compute_s=1.0, load_s=3.0)
    assert free == pytest.approx(8.0)
    assert bound == pytest.approx(24.0)
    assert throughput.ring_pass_s(sections=8, resident=8, compute_s=1.0, load_s=9.0) == 8.0


def test_grouping_loads_each_used_model_once():
    choices = [[0, 1], [1, 2], [0, 2], [0, 1]]
    grouped = throughput.grouped_makespan_s(choices, load_s=10.0, run_s=1.0)
    one_by_one = throughput.sequential_makespan_s(choices, load_s=10.0, run_s=1.0)
    assert grouped == 3 * 10.0 + 8
    assert one_by_one > grouped
    halves = throughput.grouped_makespan_s(choices, load_s=10.0, run_s=1.0, num_devices=2)
    assert grouped / 2 <= halves < grouped


def test_overlapped_admission_beats_whole_batches():
    given = {
        "prompt": 98,
        "generated": 32,
        "kv_capacity_tokens": 5e5,
        "pass_s": 5.0,
        "device_tokens_per_s": 4e3,
    }
    assert throughput.overlapped_tokens_per_s(**given) > throughput.separate_tokens_per_s(**given)


def test_the_link_of_a_streamed_layer_sets_the_pace_until_the_device_does():
    given = {"weight_bytes": 2e9, "resident_fraction": 0.5, "link_bytes_per_s": 1e10, "flops_per_s": 1e14}
    assert throughput.streamed_layer(**given, flops=1e12).seconds == pytest.approx(0.1)
    assert throughput.streamed_layer(**given, flops=1e14).seconds == pytest.approx(1.0)


def test_a_split_is_never_worse_than_either_engine():
    rng = np.random.default_rng(0)
    processor, near = Engine(1e15, 3e12), Engine(1e14, 1.3e13)
    tokens = rng.integers(0, 60, (50, 16)).astype(float)
    flops, moved = tokens * 3e8, np.where(tokens > 0, 3e8, 0.0)
    seconds, on_processor = shared_experts_s(flops, moved, processor, near)
    alone = [engine.seconds(flops, moved).sum(axis=-1) for engine in (processor, near)]
    assert (seconds <= np.minimum(*alone) + 1e-12).all()
    assert (on_processor > 0).any()
    assert (on_processor < 16).all()


def test_expert_order_hides_the_loads():
    token_major, expert_major = reordered_s(
        tokens=100, top_k=4, layers=6, expert_bytes=1e6, compute_s=0.1, bytes_per_s=1e10
    )
    assert expert_major == 0.1
    assert token_major == pytest.approx(0.1 + 0.24)


def test_sizes_and_shares_of_variants():
    assert variants.mixed_size_bytes(
        expert_parameters=8e9, expert_bits=2, other_parameters=1e9, other_bits=4
    ) == pytest.approx(2.5e9)
    assert variants.true_expert_fraction(1.0, 8, 8) == 0.5
    assert variants.saved_fraction(mean_experts=1.0, top_k=2, expert_share=0.9) == pytest.approx(0.45)
    full = variants.expert_forward_s(launch_s=1.0, num_experts=4, full_s=20.0, true_fraction=1.0)
    none = variants.expert_forward_s(launch_s=1.0, num_experts=4, full_s=20.0, true_fraction=0.0)
    assert (full, none) == (20.0, 4.0)
